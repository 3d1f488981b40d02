"""Small data of the forms that a user brings, made of what comes inside scikit-learn.

A project of `ferry init` begins with them, so that its experiment runs at once.
"""

import io
from importlib import resources

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline import datasets
from serving.files import csv_text

IMAGES, PER_CLASS = "images", 100
"""The folder, and how many images of each digit there are."""
TABLE = "flowers.csv"
MEASURED = ("sepal_length", "sepal_width", "petal_length", "petal_width")
INSIDE = "datasets/data"
"""Of scikit-learn."""


def images() -> dict[str, bytes]:
    """PNG files of handwritten digits by their path: `images/7/012.png`, 8 x 8, grey."""
    with resources.as_file(resources.files("sklearn") / INSIDE) as raw:
        rows = datasets.get("digits").read(raw).train
    return {
        f"{IMAGES}/{label}/{number:03}.png": _png(pixels)
        for label in range(int(rows.labels.max()) + 1)
        for number, pixels in enumerate(rows.inputs[rows.labels == label][:PER_CLASS])
    }


def table() -> dict[str, bytes]:
    """`flowers.csv`, iris: four measures of 150 flowers, and the species of each."""
    file = resources.files("sklearn") / INSIDE / "iris.csv"
    (_, _, *species), *rows = (line.split(",") for line in file.read_text().splitlines())
    named = [[*values, species[int(label)]] for *values, label in rows]
    return {TABLE: csv_text([*MEASURED, "species"], named).encode()}


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    # They go from 0 to 16.
    Image.fromarray(pixels[..., 0] * np.uint8(15)).save(file, "PNG")
    return file.getvalue()
