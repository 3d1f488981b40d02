import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_images import encoded, picture, write

from serving.errors import InputError
from serving.inputs.images import MOST_LINE_BYTES, ListedImages, open_image_list
from serving.inputs.names import LIST_SUFFIXES
from serving.inputs.sources import InputRow, UnreadableRow, each_row
from serving.runtime.tensors import TensorInfo

INFO = TensorInfo(name="images", dtype="uint8", shape=("batch", 4, 5, 1))


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    return [
        str(write(tmp_path / f"{index}.png", encoded(picture(4, 5, 1, index), "PNG")))
        for index in range(10)
    ]


def listed(path: Path | None = None) -> ListedImages:
    return open_image_list(path, INFO, Path("model.onnx"), resize=False)


def on_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> ListedImages:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    return listed()


def lines(paths: list[str]) -> bytes:
    return "".join(f"{path}\n" for path in paths).encode()


def test_images_of_a_file(tmp_path: Path, paths: list[str]) -> None:
    source = listed(write(tmp_path / f"images{LIST_SUFFIXES[0]}", lines(paths)))
    for _ in range(2):  # a file can be read again
        items = list(each_row(source, 4))
        assert [item.id for item in items] == paths
        for index, item in enumerate(items):
            assert isinstance(item, InputRow)
            np.testing.assert_array_equal(item.value, picture(4, 5, 1, index))
    assert (source.count, source.slow, source.fingerprint()) == (None, True, None)


def test_images_of_stdin(monkeypatch: pytest.MonkeyPatch, paths: list[str]) -> None:
    source = on_stdin(monkeypatch, lines(paths))
    assert [item.id for item in each_row(source, 4)] == paths
    assert not sys.stdin.buffer.closed


def test_images_of_a_pipe(paths: list[str]) -> None:
    """They are read while they come, not when the last has come."""
    script = (
        "import sys; from pathlib import Path\n"
        "from serving.inputs.images import open_image_list\n"
        "from serving.runtime.tensors import TensorInfo\n"
        "info = TensorInfo(name='images', dtype='uint8', shape=('batch', 4, 5, 1))\n"
        "for chunk in open_image_list(None, info, Path('m'), resize=False).chunks(1):\n"
        "    print(chunk.content[0], flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        for path in paths:
            process.stdin.write(f"{path}\n".encode())
            process.stdin.flush()
            assert process.stdout.readline().decode() == f"{path}\n"
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize("start", [0, 4, 8])
def test_a_list_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, paths: list[str], start: int
) -> None:
    whole = list(on_stdin(monkeypatch, lines(paths)).chunks(4))
    assert [(chunk.start, chunk.count) for chunk in whole] == [(0, 4), (4, 4), (8, 2)]
    rest = list(on_stdin(monkeypatch, lines(paths)).chunks(4, start))
    assert rest == [chunk for chunk in whole if chunk.start >= start]


def test_the_digest_is_of_all_lines_so_far(
    monkeypatch: pytest.MonkeyPatch, paths: list[str]
) -> None:
    def digests(changed: list[str], size: int = 4, start: int = 0) -> list[str | None]:
        chunks = on_stdin(monkeypatch, lines(changed)).chunks(size, start)
        return [chunk.digest for chunk in chunks]

    first = digests(paths)
    assert len(set(first)) == 3
    assert digests(paths[:-1])[:2] == first[:2]
    assert digests(["other.png", *paths[1:]])[1:] != first[1:]
    assert digests(["other.png", *paths[1:]], start=4)[0] != first[1]
    assert digests(paths, size=8) == first[1:]


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
    with pytest.raises(InputError) as caught:
        list(listed(path).chunks(4))
    assert str(caught.value) == f"{path} holds no images"


def test_a_list_that_became_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"stdin holds 2 images, and 4 were read of it before"):
        list(on_stdin(monkeypatch, b"a\nb\n").chunks(2, 4))
    assert list(on_stdin(monkeypatch, b"a\nb\n").chunks(2, 2)) == []


def test_a_stream_without_lines_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO(b"a.png\n" + bytes(1 << 22))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
    with pytest.raises(InputError, match=r"stdin: line 2 has more than 65536 bytes"):
        list(listed().chunks(1))
    assert stream.tell() <= 2 * MOST_LINE_BYTES


def test_a_line_of_the_most_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"a" * (MOST_LINE_BYTES - 1) + b"\nb\n"
    (chunk,) = on_stdin(monkeypatch, content).chunks(4)
    assert [len(path) for path in chunk.content] == [MOST_LINE_BYTES - 1, 1]


def test_a_source_can_be_sent(tmp_path: Path, paths: list[str]) -> None:
    source = pickle.loads(pickle.dumps(listed(write(tmp_path / "a.lst", lines(paths)))))
    chunk = pickle.loads(pickle.dumps(next(source.chunks(2))))
    assert source.decode(chunk).rows.shape == (2, 4, 5, 1)


def test_a_model_that_takes_texts() -> None:
    text = TensorInfo(name="text", dtype="object", shape=("batch",))
    with pytest.raises(InputError, match=r"^stdin: m takes string \[rows\], which no image is"):
        open_image_list(None, text, Path("m"), resize=False)
