"""Which files an image source takes, in which order, and how it is cut, sent and resumed."""

import contextlib
import inspect
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_images import encoded, picture, write

from serving.errors import InputError
from serving.inputs.images import Images, open_images
from serving.inputs.names import IMAGE_SUFFIXES
from serving.inputs.sources import InputRow, UnreadableRow, each_row
from serving.runtime.tensors import TensorInfo

INFO = TensorInfo(name="images", dtype="uint8", shape=("batch", 4, 5, 1))
NOBODY = 65534


def opened(*paths: Path, resize: bool = False) -> Images:
    return open_images(paths, INFO, Path("model.onnx"), resize=resize)


def save(path: Path, seed: int = 0) -> np.ndarray:
    pixels = picture(4, 5, 1, seed)
    write(path, encoded(pixels, "PNG"))
    return pixels


def ids(source: Images) -> list[str]:
    return [item.id for item in each_row(source)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images, in folders and beside them."""
    for index in range(10):
        save(tmp_path / "images" / f"{index % 3}" / f"{index}.png", index)
    return tmp_path / "images"


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Whoever runs the tests, but not root, who may read all."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_chunks_hold_paths(folder: Path) -> None:
    source = opened(folder)
    chunks = list(source.chunks(4))
    assert [(chunk.start, chunk.count) for chunk in chunks] == [(0, 4), (4, 4), (8, 2)]
    assert all(isinstance(path, str) for chunk in chunks for path in chunk.content)
    assert [path for chunk in chunks for path in chunk.content] == ids(source)
    assert (source.count, source.slow) == (10, True)
    assert chunks[0].digest is None


@pytest.mark.parametrize("start", [0, 4, 8, 12])
def test_a_source_goes_on_where_it_was(folder: Path, start: int) -> None:
    source = opened(folder)
    whole = [chunk for chunk in source.chunks(4) if chunk.start >= start]
    assert list(source.chunks(4, start)) == whole


def test_a_source_and_its_chunks_can_be_sent(folder: Path) -> None:
    source = pickle.loads(pickle.dumps(opened(folder)))
    chunk = pickle.loads(pickle.dumps(next(source.chunks(3))))
    batch = source.decode(chunk)
    assert batch.rows.shape == (3, 4, 5, 1)
    np.testing.assert_array_equal(batch.rows[1], picture(4, 5, 1, 3))
    assert batch.ids[1] == str(folder / "0" / "3.png")


def test_the_pixels_belong_to_their_paths(folder: Path) -> None:
    for item in each_row(opened(folder)):
        assert isinstance(item, InputRow)
        np.testing.assert_array_equal(item.value, picture(4, 5, 1, int(Path(item.id).stem)))


def test_files_and_folders_keep_their_order(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    odd = tmp_path / "without_a_suffix"
    save(odd)
    source = opened(odd, folder, tmp_path / "a.png", folder / "2")
    assert source.count == 15
    found = ids(source)
    assert (found[0], found[11]) == (str(odd), str(tmp_path / "a.png"))
    assert found[1:11] == sorted(found[1:11])
    assert found[12:] == [str(folder / "2" / f"{index}.png") for index in (2, 5, 8)]


def test_the_working_folder_is_not_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert ids(opened(Path()))[0] == "0/0.png"
    assert ids(opened(Path("0")))[0] == "0/0.png"


def test_suffixes_in_any_case(tmp_path: Path) -> None:
    for name in ("a.PNG", "b.Jpeg", "c.gif", "d.png.txt", "e", ".f.png"):
        write(tmp_path / name, b"")
    assert ids(opened(tmp_path)) == [str(tmp_path / "a.PNG"), str(tmp_path / "b.Jpeg")]


def test_links(folder: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "file.png").symlink_to(folder / "1" / "1.png")
    (links / "folder.png").symlink_to(folder)
    (links / "broken.png").symlink_to(tmp_path / "gone")
    (links / "loop.png").symlink_to(links / "loop.png")
    (links / "broken.txt").symlink_to(tmp_path / "gone")
    found = {Path(item.id).name: item for item in each_row(opened(links))}
    assert list(found) == ["broken.png", "file.png", "loop.png"]
    assert isinstance(found["file.png"], InputRow)
    assert found["broken.png"].reason == "No such file or directory"
    assert "symbolic links" in found["loop.png"].reason


def test_a_folder_that_is_named_like_an_image(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png" / "b.png")
    (tmp_path / "images" / "empty.png").mkdir()
    assert ids(opened(tmp_path / "images")) == [str(tmp_path / "images" / "a.png" / "b.png")]
    assert ids(opened(tmp_path / "images" / "a.png")) == [
        str(tmp_path / "images" / "a.png" / "b.png")
    ]


def test_a_tree_deeper_than_pythons_calls(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 150)
    save(deep / "a.png")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        (chunk,) = opened(tmp_path).chunks(4)
    finally:
        sys.setrecursionlimit(limit)
    assert chunk.content == (str(deep / "a.png"),)


def test_what_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, secret = folder / "1", folder / "2" / "5.png"
    monkeypatch.chdir(folder)
    list(each_row(opened(Path())))  # Pillow loads what it needs
    folder.chmod(0o755)
    secret.chmod(0)
    closed.chmod(0)
    try:
        with nobody():
            found = list(each_row(opened(Path())))
    finally:
        closed.chmod(0o755)
    assert [item for item in found if isinstance(item, UnreadableRow)] == [
        UnreadableRow("1", "Permission denied"),
        UnreadableRow("2/5.png", "Permission denied"),
    ]
    assert sum(isinstance(item, InputRow) for item in found) == 6


def test_a_fingerprint_changes_with_the_files(folder: Path) -> None:
    source = opened(folder)
    path = folder / "1" / "1.png"
    seen = [source.fingerprint()]
    assert source.fingerprint() == seen[0]
    os.utime(path, ns=(0, 1))
    seen.append(source.fingerprint())
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(0, 1))
    seen.append(source.fingerprint())
    path.rename(folder / "1" / "0.png")
    seen.append(source.fingerprint())
    (folder / "1" / "0.png").unlink()
    seen.append(source.fingerprint())
    (folder / "1" / "0.png").symlink_to("gone")
    seen.append(source.fingerprint())
    assert len(set(seen)) == len(seen)


def test_the_order_of_the_roots_is_in_the_fingerprint(folder: Path) -> None:
    one, other = folder / "0", folder / "1"
    assert opened(one, other).fingerprint() != opened(other, one).fingerprint()


def test_every_folder_must_hold_an_image(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "also").mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        opened(folder, tmp_path / "empty")
    assert str(caught.value) == (
        f"{tmp_path / 'empty'} holds no images ({', '.join(IMAGE_SUFFIXES)})"
    )


def test_an_image_that_changes_its_kind_is_a_row_that_cannot_be_read(folder: Path) -> None:
    source = opened(folder)
    path = folder / "1" / "1.png"
    chunk = next(source.chunks(10))
    path.unlink()
    path.mkdir()
    assert source.decode(chunk).unreadable == [
        UnreadableRow(str(path), "it is a folder, not a file")
    ]
