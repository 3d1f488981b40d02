"""UCI digits: 1,797 images of handwritten digits, 8 x 8, that come inside scikit-learn.

These rows are the test part of the official data set. No official split of them exists, so a fixed,
seeded, stratified fifth is the test set here.
"""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.datasets import Dataset, RawFile, RawRows, read_numbers, with_test_rows
from pipeline.records.ready import Split
from serving.errors import InputError

FILE = "digits.csv.gz"
SIDE, CLASSES, BRIGHTEST = 8, 10, 16
COLUMNS = SIDE * SIDE + 1
TEST_SHARE, TEST_SEED = 5, 1
"""One row in five, by this seed: part of the data set's definition, so not in params.yaml."""


def read(raw: Path) -> RawRows:
    """Read the rows and split them: images uint8 [rows, 8, 8, 1], 0 background to 16 ink.

    Raises MissingInputError when the file is not there and InputError, naming file, row and value,
    when it is not what it should be.
    """
    path = raw / FILE
    values = _values(path)
    images = values[:, :-1].reshape(-1, SIDE, SIDE, 1)
    labels = values[:, -1].astype(np.int64)
    counts = np.bincount(labels, minlength=CLASSES)
    if counts.min() < TEST_SHARE:
        raise InputError(
            f"{path}: every digit must have {TEST_SHARE} rows or more, "
            f"digit {counts.argmin()} has {counts.min()}"
        )
    return with_test_rows(Split(images, labels), math.ceil(len(labels) / TEST_SHARE), TEST_SEED)


def _values(path: Path) -> npt.NDArray[np.uint8]:
    """Read and check the numbers of the file: uint8 [rows, 65], the label last."""
    table = read_numbers(path, COLUMNS, ",")
    limits = np.full(COLUMNS, BRIGHTEST)
    limits[-1] = CLASSES - 1
    # Written so that NaN is wrong too.
    wrong = np.argwhere(~((table >= 0) & (table <= limits) & (table == np.floor(table))))
    if len(wrong):
        row, column = wrong[0]
        raise InputError(
            f"{path}: row {row}, column {column} must be a whole number from 0 to "
            f"{limits[column]}, got {table[row, column]:g}"
        )
    return table.astype(np.uint8)


DATASET = Dataset(
    title="UCI digits",
    kind="image",
    homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
    citation=(
        "E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning "
        "Repository, 1998, doi:10.24432/C50P49"
    ),
    licence="CC BY 4.0",
    labels=tuple(str(digit) for digit in range(CLASSES)),
    files=(
        RawFile(
            name=FILE,
            size=57523,
            sha256="09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
            embedded="sklearn:datasets/data/digits.csv.gz",
        ),
    ),
    read=read,
)
