"""Which images a folder and a list hold, in which order, and how these are cut and resumed."""

import contextlib
import inspect
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from samples_of_rows import batches, target
from tiny_images import as_image, encoded, picture, saved, write

from serving.errors import InputError
from serving.inputs import images as module
from serving.inputs.images import (
    MOST_LINE_BYTES,
    Images,
    ListedImages,
    open_image_list,
    open_images,
)
from serving.inputs.names import IMAGE_SUFFIXES
from serving.inputs.sources import InputRow, UnreadableRow, each_row
from serving.runtime.tensors import TensorInfo

INFO = TensorInfo(name="images", dtype="uint8", shape=("batch", 4, 5, 1))
NOBODY = 65534


def opened(*paths: Path, resize: bool = False) -> Images:
    return open_images(paths, target(INFO, resize=resize))


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


@pytest.mark.parametrize("start", [0, 4, 8])
def test_the_images_from_any_chunk_on(folder: Path, start: int) -> None:
    source = opened(folder)
    made = batches(source, 4, start)
    found = [f"{folder}/{index % 3}/{index}.png" for index in (0, 3, 6, 9, 1, 4, 7, 2, 5, 8)]
    assert [one for batch in made for one in batch.ids] == found[start:]
    np.testing.assert_array_equal(made[-1].rows[-1], picture(4, 5, 1, 8))
    assert (source.count, source.slow) == (10, True)


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


def test_a_folder_is_read_in_order_with_the_folders_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for name in ("b.png", "a/2.png", "a/10.png", "c/d/e.png", "Z.png", ".cache/thumbnail.png"):
        save(folder / name)
    names = ("Z.png", "a/10.png", "a/2.png", "b.png", "c/d/e.png")
    for _ in range(2):
        assert ids(opened(folder)) == [str(folder / name) for name in names]


def test_every_file_of_a_folder_is_read_or_named(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for name in ("1.png", "2.PNG", "3.txt", "4"):  # what it is, its content tells
        save(folder / name)
    one = as_image(picture(4, 5, 1))
    for name, form in (("5.gif", "GIF"), ("6.jfif", "JPEG"), ("7.pgm", "PPM"), ("8.jpe", "JPEG")):
        write(folder / name, saved(one, form))
    write(folder / "90.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    write(folder / "91.csv", b"a,b\n1,2\n")
    os.mkfifo(folder / "92")
    (folder / "93").symlink_to(folder)
    (folder / "94.bmp").symlink_to(folder / "1.png")
    for name in (".hidden.png", "Thumbs.db", ".git/1.png"):
        write(folder / name, b"")
    source = opened(folder, resize=True)  # a GIF has a palette
    found = list(each_row(source))
    assert source.count == len(found) == 13
    assert [Path(item.id).name for item in found if isinstance(item, InputRow)] == [
        *("1.png", "2.PNG", "3.txt", "4", "5.gif", "6.jfif", "7.pgm", "8.jpe", "94.bmp")
    ]
    reasons = {Path(row.id).name: row.reason for row in found if isinstance(row, UnreadableRow)}
    assert reasons == {
        "90.heic": "it is HEIC, which is not read; convert it to JPEG",
        "91.csv": "it is not an image, or not of a known format",
        "92": "it is a named pipe, not a file",
        "93": "it is a link to a folder, and is not followed; give the folder",
    }


def test_links(folder: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "file.png").symlink_to(folder / "1" / "1.png")
    (links / "folder.png").symlink_to(folder)
    (links / "broken.png").symlink_to(tmp_path / "gone")
    (links / "loop.png").symlink_to(links / "loop.png")
    found = {Path(item.id).name: item for item in each_row(opened(links))}
    assert list(found) == ["broken.png", "file.png", "folder.png", "loop.png"]
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


def test_what_is_not_kept_of_the_first_walk_is_walked_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = opened(folder)
    monkeypatch.setattr(module, "MOST_KEPT", 1)
    walked = opened(folder)
    assert (walked.kept, len(kept.kept or ())) == (None, kept.count)
    assert list(walked.chunks(2, 2)) == list(kept.chunks(2, 2))
    assert walked.fingerprint() == kept.fingerprint()


def test_a_fingerprint_changes_with_the_files(folder: Path) -> None:
    path = folder / "1" / "1.png"
    seen = [opened(folder).fingerprint()]
    assert opened(folder).fingerprint() == seen[0]
    os.utime(path, ns=(0, 1))
    seen.append(opened(folder).fingerprint())
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(0, 1))
    seen.append(opened(folder).fingerprint())
    path.rename(folder / "1" / "0.png")
    seen.append(opened(folder).fingerprint())
    (folder / "1" / "0.png").unlink()
    seen.append(opened(folder).fingerprint())
    (folder / "1" / "0.png").symlink_to("gone")
    seen.append(opened(folder).fingerprint())
    assert len(set(seen)) == len(seen)
    one, other = folder / "0", folder / "2"
    assert opened(one, other).fingerprint() != opened(other, one).fingerprint()


def test_every_folder_must_hold_an_image(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "also").mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        opened(folder, tmp_path / "empty")
    assert str(caught.value) == (
        f"{tmp_path / 'empty'} holds no images ({', '.join(IMAGE_SUFFIXES)}), and no tables"
    )
    write(tmp_path / "empty" / "also" / "a.heic", b"")
    with pytest.raises(InputError, match=r"; of the 1 files there, the first is .*also/a\.heic$"):
        opened(folder, tmp_path / "empty")


def test_an_image_that_changes_its_kind_is_a_row_that_cannot_be_read(folder: Path) -> None:
    source = opened(folder)
    path = folder / "1" / "1.png"
    chunk = next(source.chunks(10))
    path.unlink()
    path.mkdir()
    assert source.decode(chunk).unreadable == [
        UnreadableRow(str(path), "it is a folder, not a file")
    ]


# Lists of images


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    return [
        str(write(tmp_path / f"{index}.png", encoded(picture(4, 5, 1, index), "PNG")))
        for index in range(10)
    ]


def listed(path: Path | None = None) -> ListedImages:
    return open_image_list(path, target(INFO))


def on_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> ListedImages:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    return listed()


def lines(paths: list[str]) -> bytes:
    return "".join(f"{path}\n" for path in paths).encode()


def test_images_of_a_file(tmp_path: Path, paths: list[str]) -> None:
    source = listed(write(tmp_path / "images.lst", lines(paths)))
    for _ in range(2):  # a file can be read again
        items = list(each_row(source, 4))
        assert [item.id for item in items] == paths
        for index, item in enumerate(items):
            assert isinstance(item, InputRow)
            np.testing.assert_array_equal(item.value, picture(4, 5, 1, index))
    assert (source.count, source.slow) == (None, True)
    assert source.fingerprint() == source.fingerprint() is not None


@pytest.mark.parametrize("start", [0, 4, 8])
def test_a_list_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, paths: list[str], start: int
) -> None:
    whole = list(on_stdin(monkeypatch, lines(paths)).chunks(4))
    assert [(chunk.start, chunk.count) for chunk in whole] == [(0, 4), (4, 4), (8, 2)]
    rest = list(on_stdin(monkeypatch, lines(paths)).chunks(4, start))
    assert rest == [chunk for chunk in whole if chunk.start >= start]


def test_images_of_a_list_that_change_are_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, paths: list[str]
) -> None:
    path = write(tmp_path / "images.lst", lines(paths))
    before = listed(path).fingerprint()
    digests = [chunk.digest for chunk in on_stdin(monkeypatch, lines(paths)).chunks(4)]
    os.utime(paths[5], ns=(1, 1))
    assert listed(path).fingerprint() != before
    later = [chunk.digest for chunk in on_stdin(monkeypatch, lines(paths)).chunks(4)]
    assert later[0] == digests[0]
    assert not set(later[1:]) & set(digests)


def test_ends_of_lines_and_blank_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    source = on_stdin(monkeypatch, b"\na.png\r\n\n  \nb c.png\n d.png")
    (chunk,) = source.chunks(64)
    assert chunk.content == ("a.png", "b c.png", " d.png")


def test_what_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    source = on_stdin(monkeypatch, b"gone.png\nfolder\nnul\0.png\n/dev/zero\ncaf\xe9.png\n")
    assert list(each_row(source)) == [
        UnreadableRow("gone.png", "No such file or directory"),
        UnreadableRow("folder", "it is a folder, not a file"),
        UnreadableRow("nul\0.png", "embedded null byte"),
        UnreadableRow("/dev/zero", "it is a device, not a file"),
        UnreadableRow("caf\\xe9.png", "No such file or directory"),
    ]


def test_a_name_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = bytes(tmp_path) + b"/caf\xe9.png"
    write(Path(os.fsdecode(path)), encoded(picture(4, 5, 1), "PNG"))
    (item,) = each_row(on_stdin(monkeypatch, path + b"\n"))
    assert isinstance(item, InputRow)
    assert item.id.endswith("caf\\xe9.png")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  \r\n"])
def test_an_empty_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match=r"^stdin holds no images$"):
        list(on_stdin(monkeypatch, content).chunks(4))
    path = write(tmp_path / "images.lst", content)
    with pytest.raises(InputError, match=rf"^{path} holds no images$"):
        list(listed(path).chunks(4))


@pytest.mark.parametrize("end", [b"\0", b""])
def test_paths_that_each_end_in_nul(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: bytes
) -> None:
    """As `find -print0` writes them; of their names nothing but the NUL is left out."""
    names = [f"{tmp_path}/two\nlines.png", f"{tmp_path}/a \r.png", *(f"{n}.png" for n in range(9))]
    save(Path(names[0]))
    content = "\0".join(names).encode() + end
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    source = open_image_list(None, target(INFO, null=True))
    whole = list(source.chunks(4))
    assert [path for chunk in whole for path in chunk.content] == names
    assert isinstance(next(each_row(listed_in(tmp_path, content))), InputRow)
    rest = list(listed_in(tmp_path, content).chunks(4, 8))
    assert [path for chunk in rest for path in chunk.content] == names[8:]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    with pytest.raises(InputError, match=r"^stdin: a NUL ends each of its paths; --null reads"):
        list(listed().chunks(4))
    with pytest.raises(InputError, match="a path has more than 65536 bytes; --null is for paths"):
        list(listed_in(tmp_path, b"a.png\n" * 20_000).chunks(4))


def listed_in(folder: Path, content: bytes) -> ListedImages:
    """A list of paths that each end in NUL."""
    return open_image_list(write(folder / "images.lst", content), target(INFO, null=True))


def test_a_list_that_became_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"stdin holds 2 images, and 4 were read of it before"):
        list(on_stdin(monkeypatch, b"a\nb\n").chunks(2, 4))
    assert list(on_stdin(monkeypatch, b"a\nb\n").chunks(2, 2)) == []


def test_a_stream_without_lines_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO(b"a.png\n" + bytes(1 << 22))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
    with pytest.raises(InputError, match=r"stdin has more than 65536 bytes in line 2"):
        list(listed().chunks(1))
    assert stream.tell() <= 2 * MOST_LINE_BYTES


def test_a_line_of_the_most_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"a" * (MOST_LINE_BYTES - 1) + b"\nb\n"
    (chunk,) = on_stdin(monkeypatch, content).chunks(4)
    assert [len(path) for path in chunk.content] == [MOST_LINE_BYTES - 1, 1]
