from pathlib import Path

import numpy as np
import pytest
from idx_files import write_labels, write_mnist

from pipeline import datasets
from serving.errors import InputError, MissingInputError

FASHION = datasets.get("fashion_mnist")


def test_the_four_files_become_rows(tmp_path: Path) -> None:
    write_mnist(tmp_path, train=40, test=20)
    rows = FASHION.read(tmp_path)
    assert rows.train_inputs.shape == (40, 28, 28, 1)
    assert rows.test_inputs.dtype == np.uint8
    assert [FASHION.labels[label] for label in rows.test_labels[8:10]] == ["Bag", "Ankle boot"]


def test_what_is_wrong_is_told_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "fashion_mnist"
    write_mnist(folder, train=40, test=20)
    write_labels(folder / "t10k-labels-idx1-ubyte.gz", np.full(20, 10))
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte\.gz: label 10 in row 0"):
        FASHION.read(folder)
    (folder / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(MissingInputError, match="`ferry pull fashion_mnist` makes it"):
        FASHION.read(folder)


def test_it_has_mnists_file_names_but_not_its_files() -> None:
    mnist = datasets.get("mnist")
    assert [file.name for file in FASHION.files] == [file.name for file in mnist.files]
    for ours, theirs in zip(FASHION.files, mnist.files, strict=True):
        assert ours.sha256 != theirs.sha256
        assert not set(ours.urls) & set(theirs.urls)
