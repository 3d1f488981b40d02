"""Diabetes: 442 patients, ten measurements each, and how far the disease went in a year.

A regression: the one target is a number. The rows come inside scikit-learn, as they were measured;
no official split of them exists, so a fixed, seeded fifth is the test set here.
"""

import math
from pathlib import Path

import numpy as np

from pipeline.datasets import Dataset, Numbers, RawFile, RawRows, read_numbers, with_test_rows
from pipeline.records.ready import Split
from serving.errors import InputError

INPUTS, TARGETS = "diabetes_data_raw.csv.gz", "diabetes_target.csv.gz"
FEATURES = 10
"""Age, sex, body mass index, mean blood pressure, and six serum values."""
TEST_SHARE, TEST_SEED = 5, 1
"""One row in five, by this seed: part of the data set's definition, so not in params.yaml."""


def read(raw: Path) -> RawRows:
    """Read the rows and split them: float32 [rows, 10], and the target float32 [rows, 1].

    Raises MissingInputError when a file is not there and InputError, naming file and row, when it
    is not what it should be.
    """
    inputs, targets = _read(raw / INPUTS, FEATURES), _read(raw / TARGETS, 1)
    if len(inputs) != len(targets):
        raise InputError(
            f"{raw / INPUTS} holds {len(inputs)} rows, but {raw / TARGETS} holds {len(targets)}"
        )
    rows = Split(inputs.astype(np.float32), targets.astype(np.float32))
    return with_test_rows(rows, math.ceil(len(inputs) / TEST_SHARE), TEST_SEED)


def _read(path: Path, columns: int) -> Numbers:
    table = read_numbers(path, columns)
    wrong = np.argwhere(~np.isfinite(table))
    if len(wrong):
        row, column = wrong[0]
        raise InputError(f"{path}: row {row}, column {column} is {table[row, column]}")
    return table


DATASET = Dataset(
    title="Diabetes",
    kind="table",
    homepage="https://www4.stat.ncsu.edu/~boos/var.select/diabetes.html",
    citation=(
        "B. Efron, T. Hastie, I. Johnstone, R. Tibshirani, Least Angle Regression, Annals of "
        "Statistics 32:407-499, 2004"
    ),
    licence="BSD-3-Clause",
    targets=("progression",),
    files=(
        RawFile(
            name=INPUTS,
            size=7073,
            sha256="7fc0ded571454b1982210d3bb43f0aca44eae01a0b8654a3b24022bdb6b38009",
            embedded="sklearn:datasets/data/diabetes_data_raw.csv.gz",
        ),
        RawFile(
            name=TARGETS,
            size=1050,
            sha256="8e53f65eb811df43c206f3534bb3af0e5fed213bc37ed6ba36310157d6023803",
            embedded="sklearn:datasets/data/diabetes_target.csv.gz",
        ),
    ),
    read=read,
)
