"""MNIST and Fashion-MNIST: the same four IDX files, of other images."""

import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from idx_files import packed, write_images, write_labels, write_mnist

from pipeline import datasets
from pipeline.datasets import MAX_ROWS, read_idx, read_labelled
from serving.errors import InputError

MNIST, FASHION = datasets.get("mnist"), datasets.get("fashion_mnist")
BOTH = pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])


def test_the_four_files_become_rows_and_are_not_mixed_up(tmp_path: Path) -> None:
    write_mnist(tmp_path, train=40, test=20)
    rows = MNIST.read(tmp_path)
    assert rows.train.inputs.shape == (40, 28, 28, 1)
    assert rows.test.inputs.shape == (20, 28, 28, 1)
    assert rows.train.inputs.dtype == np.uint8
    np.testing.assert_array_equal(rows.test.labels, np.arange(20) % 10)
    assert [FASHION.labels[label] for label in rows.test.labels[8:10]] == ["Bag", "Ankle boot"]
    write_labels(tmp_path / "t10k-labels-idx1-ubyte.gz", np.full(20, 7))
    after = MNIST.read(tmp_path)
    assert set(after.test.labels.tolist()) == {7}
    np.testing.assert_array_equal(after.train.labels, rows.train.labels)


@BOTH
def test_a_label_of_no_class_is_refused(tmp_path: Path, name: str) -> None:
    write_mnist(tmp_path, train=40, test=20)
    write_labels(tmp_path / "train-labels-idx1-ubyte.gz", np.full(40, 10))
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte\.gz: label 10 in row 0"):
        datasets.get(name).read(tmp_path)


def test_they_have_the_same_names_but_not_the_same_files() -> None:
    assert MNIST.files[0].urls == (
        "http://yann.lecun.com/exdb/mnist/train-images-idx3-ubyte.gz",
        "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz",
    )
    for ours, theirs in zip(FASHION.files, MNIST.files, strict=True):
        assert ours.name == theirs.name
        assert ours.sha256 != theirs.sha256
        assert not set(ours.urls) & set(theirs.urls)


def test_the_official_files_hold_what_is_published() -> None:
    mirror = os.environ.get("FERRY_MIRROR", "")
    folder = Path(mirror) / "mnist"
    if not mirror or not folder.is_dir():
        pytest.skip("FERRY_MIRROR names no folder with the official MNIST files")
    rows = MNIST.read(folder)
    assert rows.train.inputs.shape == (60000, 28, 28, 1)
    assert np.bincount(rows.test.labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    # The mean and standard deviation that every tutorial quotes: 0.1307 and 0.3081.
    assert rows.train.inputs.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert rows.train.inputs.std() / 255 == pytest.approx(0.3081, abs=5e-5)


# One file


IMAGES = np.random.default_rng(1).integers(0, 256, (5, 4, 3), np.uint8)
LABELS = np.array([0, 9, 3, 3, 1])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "toy" / "file.gz"


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def refused(path: Path, content: bytes, row: tuple[int, ...] = (4, 3)) -> str:
    """What is said of a file that holds `content`, after the file's name."""
    put(path, content)
    with pytest.raises(InputError) as caught:
        read_idx(path, row)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path)).lstrip(": ")


def test_images_and_labels_come_back_as_written(tmp_path: Path) -> None:
    read = read_labelled(
        write_images(tmp_path / "images.gz", IMAGES),
        write_labels(tmp_path / "labels.gz", LABELS),
        size=(4, 3),
        classes=10,
    )
    assert (read.inputs.dtype, read.inputs.shape) == (np.uint8, (5, 4, 3, 1))
    np.testing.assert_array_equal(read.inputs[..., 0], IMAGES)
    assert read.labels.dtype == np.int64
    np.testing.assert_array_equal(read.labels, LABELS)


def test_counts_that_differ_are_refused(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images.gz", IMAGES)
    labels = write_labels(tmp_path / "labels.gz", LABELS[:4])
    with pytest.raises(InputError, match=r"images\.gz holds 5 images, but .*labels\.gz holds 4"):
        read_labelled(images, labels, size=(4, 3), classes=10)


def test_a_wrong_magic_is_refused(path: Path) -> None:
    said = refused(path, packed(2049, 5, 4, 3, values=IMAGES.tobytes()))
    assert said == "the magic number must be 2051, got 2049"
    said = refused(path, packed(2051, 5, values=LABELS.astype("u1").tobytes()), ())
    assert said == "the magic number must be 2049, got 2051"


def test_other_dimensions_are_refused(path: Path) -> None:
    said = refused(path, packed(2051, 5, 3, 4, values=IMAGES.tobytes()))
    assert said == "the images must be 4 x 3, the header says 3 x 4"


@pytest.mark.parametrize("rows", [0, MAX_ROWS + 1, 2**32 - 1])
def test_a_count_beyond_reason_is_refused(path: Path, rows: int) -> None:
    said = refused(path, packed(2051, rows, 4, 3, values=b""))
    assert said == f"the header says {rows} rows, expected 1 to {MAX_ROWS}"


def test_short_and_long_data_are_refused(path: Path) -> None:
    values = IMAGES.tobytes()
    said = refused(path, packed(2051, 5, 4, 3, values=values[:-1]))
    assert said == "60 bytes must follow the header, there are only 59"
    said = refused(path, packed(2051, 5, 4, 3, values=values + b"!"))
    assert said == "60 bytes must follow the header, there are more"


@pytest.mark.parametrize("length", [0, 7, 15])
def test_a_header_that_is_cut_is_refused(path: Path, length: int) -> None:
    header = struct.pack(">4I", 2051, 5, 4, 3)[:length]
    said = refused(path, gzip.compress(header))
    assert said == f"the header must have 16 bytes, there are {length}"


def test_what_is_no_gzip_file_is_refused(path: Path) -> None:
    good = packed(2051, 5, 4, 3, values=IMAGES.tobytes())
    wrong_sum = good[:-8] + bytes([good[-8] ^ 1]) + good[-7:]
    for content in (
        b"not gzip at all",
        good[:-4],
        good[: len(good) // 2],
        wrong_sum,
        good + b"tail",
    ):
        assert refused(path, content).startswith("is not a whole gzip file: ")


def test_a_bomb_is_not_unpacked(path: Path) -> None:
    put(path, packed(2051, 5, 4, 3, values=bytes(50_000_000)))
    tracemalloc.start()
    with pytest.raises(InputError, match="there are more"):
        read_idx(path, (4, 3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
