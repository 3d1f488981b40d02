"""IDX files, plain and compressed, of images and of labels; the official ones of MNIST too."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from samples_of_rows import IMAGES, MODEL, batches, rows_of

from serving.errors import InputError
from serving.inputs.arrays import MappedRows, StreamedRows, open_idx
from serving.inputs.names import is_idx
from serving.runtime.tensors import TensorInfo

PIXELS = np.random.default_rng(1).integers(0, 256, (11, 4, 5), np.uint8)
MNIST = TensorInfo(name="images", dtype="uint8", shape=("batch", 28, 28, 1))
LABELS = TensorInfo(name="labels", dtype="uint8", shape=("batch",))
NAMES = ("t10k-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz")


def idx(values: np.ndarray, kind: int = 8) -> bytes:
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes([0, 0, kind, values.ndim]) + sizes + values.tobytes()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def refused(path: Path, info: TensorInfo = IMAGES) -> str:
    with pytest.raises(InputError) as caught:
        batches(open_idx(path, info, MODEL))
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "whether"),
    [
        ("t10k-images-idx3-ubyte", True),
        ("train-images-idx3-ubyte.gz", True),
        ("train-images.idx3-ubyte", True),
        ("TRAIN.IDX", True),
        ("a.idx1.gz", True),
        ("a.idx.zip", False),
        ("ubyte", False),
        ("a.idx.npy", False),
        ("a.gz", False),
    ],
)
def test_what_is_named_as_idx(name: str, whether: bool) -> None:
    assert is_idx(Path("folder.idx") / name) == whether


@pytest.mark.parametrize(
    ("name", "kind"), list(zip(NAMES, (MappedRows, StreamedRows), strict=True))
)
@pytest.mark.parametrize("start", [0, 4, 8, 11])
def test_grey_images_get_their_axis_of_channels(
    tmp_path: Path, name: str, kind: type, start: int
) -> None:
    path = written(tmp_path / name, idx(PIXELS))
    source = open_idx(path, IMAGES, MODEL)
    assert isinstance(source, kind)
    assert source.count == 11
    made = batches(source, 4, start)
    assert [one for batch in made for one in batch.ids] == [
        f"{path}:{index}" for index in range(start, 11)
    ]
    if made:
        rows = np.concatenate([batch.rows for batch in made])
        np.testing.assert_array_equal(rows, PIXELS[start:, ..., np.newaxis])


def test_axes_are_taken_as_they_are_where_they_fit(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.idx", idx(PIXELS))
    flat = TensorInfo(name="images", dtype="uint8", shape=("batch", 4, 5))
    np.testing.assert_array_equal(rows_of(open_idx(path, flat, MODEL)), PIXELS)
    assert "takes uint8 [rows, 4, 6]" in refused(
        path, TensorInfo(name="images", dtype="uint8", shape=("batch", 4, 6))
    )
    assert "takes float32 [rows, 4, 5]" in refused(
        path, TensorInfo(name="images", dtype="float32", shape=("batch", 4, 5))
    )


def test_labels_are_no_images(tmp_path: Path) -> None:
    path = written(tmp_path / "t10k-labels-idx1-ubyte", idx(np.arange(11, dtype=np.uint8)))
    message = refused(path)
    assert "holds uint8 [11], one value a row, as labels are; model.onnx takes uint8 [" in message
    assert rows_of(open_idx(path, LABELS, MODEL)).tolist() == list(range(11))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin as an IDX file does"),
        (b"\0\0\x08\x03\0\0", "does not begin as an IDX file does"),
        (b"\x93NUMPY\x01\x00v\x00", "does not begin as an IDX file does, but with 93 4e 55 4d"),
        (b"\0\0\x08\0", "does not begin as an IDX file does"),
        (idx(PIXELS.astype(">f4"), 0x0D), "holds values of type 0x0d; only bytes, 0x08, are read"),
        (idx(PIXELS[:0]), "holds no rows"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    assert message in refused(written(tmp_path / name, content))


def test_a_header_is_held_against_the_size_of_the_file(tmp_path: Path) -> None:
    for content in (idx(PIXELS)[:-1], idx(PIXELS) + b"x"):
        message = refused(written(tmp_path / "rows.idx", content))
        assert f"has {len(content)} bytes, by its header they must be 236" in message


def test_a_compressed_file_is_held_against_its_header_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "rows.idx.gz"
    assert "ends after 10 rows, its header tells of 11" in refused(written(path, idx(PIXELS)[:-1]))
    assert "goes on after the 11 rows" in refused(written(path, idx(PIXELS) + b"x"))


def test_a_compressed_file_that_is_not_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.idx.gz", idx(np.tile(PIXELS, (100, 1, 1))))
    whole = path.read_bytes()
    for size in (5, 25, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path)
    path.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
    assert "cannot be read to its end: CRC check failed" in refused(path)
    path.write_bytes(b"no gzip at all")
    assert "is not a whole gzip file" in refused(path)


def test_the_official_files_of_mnist(tmp_path: Path) -> None:
    folder = Path(os.environ.get("FERRY_MIRROR", "")) / "mnist"
    packed = folder / "t10k-images-idx3-ubyte.gz"
    if not packed.is_file():
        pytest.skip("FERRY_MIRROR has no MNIST")
    source = open_idx(packed, MNIST, MODEL)
    assert source.count == 10_000
    rows = rows_of(source, 512)
    assert rows.shape == (10_000, 28, 28, 1)
    assert round(float(rows.mean()), 2) == 33.79
    plain = tmp_path / "t10k-images-idx3-ubyte"
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    np.testing.assert_array_equal(rows_of(open_idx(plain, MNIST, MODEL), 4096), rows)
    assert "as labels are" in refused(folder / "t10k-labels-idx1-ubyte.gz", MNIST)
