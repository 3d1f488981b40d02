"""MNIST and Fashion-MNIST: the same four files, of other images."""

import os
from pathlib import Path

import numpy as np
import pytest
from idx_files import write_labels, write_mnist

from pipeline import datasets
from serving.errors import InputError, MissingInputError

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
def test_every_file_is_needed(tmp_path: Path, name: str) -> None:
    dataset = datasets.get(name)
    for file in dataset.files:
        folder = tmp_path / file.name / name
        write_mnist(folder, train=40, test=20)
        (folder / file.name).unlink()
        with pytest.raises(
            MissingInputError, match=f"{file.name} is not there; `ferry pull {name}`"
        ):
            dataset.read(folder)


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
