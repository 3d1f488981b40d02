"""Read gzip-compressed IDX files, the format of MNIST and of the data sets made in its image.

Big-endian: a magic number (two zero bytes, 8 for uint8, the number of dimensions), the length of
each dimension as uint32, then one byte a value.
"""

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.datasets import RawFile, RawRows
from serving.errors import InputError
from serving.files import require

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
IMAGES, LABELS = 2051, 2049
MAX_ROWS = 1_000_000
"""A header that claims more is refused before anything is unpacked."""


def idx_files(folders: tuple[str, ...], sums: tuple[tuple[int, str], ...]) -> tuple[RawFile, ...]:
    """Describe the four files, which lie below each of the official addresses `folders`.

    `sums` are the size and the sha256 of each, in the order of `FILES`.
    """
    return tuple(
        RawFile(
            name=name, size=size, sha256=sha256, urls=tuple(folder + name for folder in folders)
        )
        for name, (size, sha256) in zip(FILES, sums, strict=True)
    )


def reader(size: tuple[int, int], classes: int) -> Callable[[Path], RawRows]:
    """Make the function that reads the four files of a raw folder.

    The images are uint8 [rows, height, width, 1], 0 background to 255. It raises as `read_part`
    does.
    """

    def read(raw: Path) -> RawRows:
        paths = [raw / name for name in FILES]
        train_inputs, train_labels = read_part(*paths[:2], size=size, classes=classes)
        test_inputs, test_labels = read_part(*paths[2:], size=size, classes=classes)
        return RawRows(
            train_inputs=train_inputs,
            train_labels=train_labels,
            test_inputs=test_inputs,
            test_labels=test_labels,
        )

    return read


def read_part(
    images: Path, labels: Path, *, size: tuple[int, int], classes: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Read an image file and its label file.

    Returns uint8 [rows, height, width, 1] and int64 [rows]. Raises MissingInputError for a file
    that is not there and InputError, naming file and value, for one that is not what it should be.
    """
    pixels = read_images(images, size=size)
    answers = read_labels(labels, classes=classes)
    if len(pixels) != len(answers):
        raise InputError(
            f"{images} holds {len(pixels)} images, but {labels} holds {len(answers)} labels"
        )
    return pixels, answers


def read_images(path: Path, *, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Read images of the given (height, width) as uint8 [rows, height, width, 1], 0 to 255.

    Raises MissingInputError and InputError as `read_part` does.
    """
    height, width = size
    return _read(path, IMAGES, (height, width)).reshape(-1, height, width, 1)


def read_labels(path: Path, *, classes: int) -> npt.NDArray[np.int64]:
    """Read labels as int64 [rows], each from 0 to `classes` - 1.

    Raises MissingInputError and InputError as `read_part` does.
    """
    labels = _read(path, LABELS, ())
    wrong = np.flatnonzero(labels >= classes)
    if wrong.size:
        row = wrong[0]
        raise InputError(
            f"{path}: label {labels[row]} in row {row}, but labels go from 0 to {classes - 1}"
        )
    return labels.astype(np.int64)


def _read(path: Path, magic: int, row: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Read the values of an IDX file whose rows have the shape `row`, flat."""
    require(path, f"ferry pull {path.parent.name}")
    try:
        with gzip.open(path) as file:
            rows = _rows(path, file.read(8 + 4 * len(row)), magic, row)
            expected = rows * int(np.prod(row, dtype=np.int64))
            # One byte more than expected tells too long data from right, however long it is.
            values = file.read(expected + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file: {error}") from error
    if len(values) != expected:
        found = f"only {len(values)}" if len(values) < expected else "more"
        raise InputError(f"{path}: {expected} bytes must follow the header, there are {found}")
    return np.frombuffer(values, np.uint8)


def _rows(path: Path, header: bytes, magic: int, row: tuple[int, ...]) -> int:
    """Return the number of rows that the header gives, once all else in it is right."""
    length = 8 + 4 * len(row)
    if len(header) < length:
        raise InputError(f"{path}: the header must have {length} bytes, there are {len(header)}")
    found, rows, *shape = (int(value) for value in struct.unpack(f">{length // 4}I", header))
    if found != magic:
        raise InputError(f"{path}: the magic number must be {magic}, got {found}")
    if tuple(shape) != row:
        wanted, got = (" x ".join(map(str, sizes)) for sizes in (row, shape))
        raise InputError(f"{path}: the images must be {wanted}, the header says {got}")
    if not 1 <= rows <= MAX_ROWS:
        raise InputError(f"{path}: the header says {rows} rows, expected 1 to {MAX_ROWS}")
    return rows
