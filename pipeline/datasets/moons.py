"""Moons: 2,000 points of the plane in two half circles that reach into each other, with noise.

scikit-learn's `make_moons` makes the points by a fixed seed; a fixed, seeded, stratified quarter is
the test set.
"""

from pathlib import Path

import numpy as np

from pipeline.datasets import Dataset, RawRows, with_test_rows
from pipeline.records.ready import Split

ROWS, NOISE, SEED = 2000, 0.1, 1
"""Noise is the standard deviation of what is added to both coordinates; the radius is 1."""
TEST_ROWS = 500


def read(_raw: Path) -> RawRows:
    """Make the rows, float32 [rows, 2], x and y of a point; no file is read."""
    from sklearn.datasets import make_moons

    points, moons = make_moons(ROWS, noise=NOISE, random_state=SEED)
    rows = Split(points.astype(np.float32), moons.astype(np.int64))
    return with_test_rows(rows, TEST_ROWS, SEED)


DATASET = Dataset(
    title="Moons",
    kind="table",
    homepage="https://scikit-learn.org/stable/modules/generated/sklearn.datasets.make_moons.html",
    citation=(
        "F. Pedregosa et al., Scikit-learn: Machine Learning in Python, Journal of Machine "
        "Learning Research 12:2825-2830, 2011"
    ),
    licence="BSD-3-Clause",
    labels=("upper", "lower"),
    files=(),
    read=read,
)
