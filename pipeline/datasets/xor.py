"""XOR: the truth table of "one or the other, not both", which no straight line separates.

Four rows are all there can be, so each is trained on and tested on.
"""

from pathlib import Path

import numpy as np

from pipeline.datasets import Dataset, RawRows
from pipeline.records.ready import Split

TABLE = ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0))
"""Both inputs and the answer."""


def read(_raw: Path) -> RawRows:
    """Return the four rows, float32 [4, 2] of truth values; no file is read."""
    table = np.array(TABLE)
    inputs, labels = table[:, :2].astype(np.float32), table[:, 2].astype(np.int64)
    return RawRows(train=Split(inputs, labels), test=Split(inputs, labels))


DATASET = Dataset(
    title="XOR",
    kind="table",
    homepage="https://en.wikipedia.org/wiki/Exclusive_or",
    citation=(
        "M. Minsky, S. Papert, Perceptrons: An Introduction to Computational Geometry, MIT Press, "
        "1969"
    ),
    licence="public domain",
    labels=("0", "1"),
    files=(),
    read=read,
    complete=True,
    standardized=False,
)
