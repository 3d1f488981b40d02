"""The data sets: one file each, with a module-level `DATASET`; the file name is the name.

A file says where the official bytes are and how to read them; nothing here is fetched.
"""

import contextlib
import gzip
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import reading
from pipeline.errors import ConfigError
from pipeline.records.ready import Kind, Split
from serving.errors import InputError
from serving.files import require

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFile:
    """One official file, kept below `data/raw/D` under `name`."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    urls: tuple[str, ...] = ()
    """Official addresses, in order; none for a member of an archive and for an embedded file."""
    embedded: str | None = None
    """`package:path` of a file inside an installed package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive(RawFile):
    """An official tar archive; its members are streamed out by name and size, never extracted."""

    members: tuple[RawFile, ...]
    """Their names are the names inside the archive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRows:
    """All rows of a data set as the official files hold them."""

    train: Split
    test: Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What is known of a data set."""

    title: str
    kind: Kind
    homepage: str
    citation: str
    licence: str
    labels: tuple[str, ...] = ()
    """Names of the classes; int64 [rows] in `Split.labels` are indices into them."""
    targets: tuple[str, ...] = ()
    """Names of the columns that a regression predicts; float32 [rows, targets] in `Split.labels`. A
    data set has these or classes."""
    files: tuple[RawFile, ...]
    read: Callable[[Path], RawRows]
    """Read the raw folder; raises InputError naming the file and what is wrong in it."""
    archives: tuple[Archive, ...] = ()
    complete: bool = False
    """These are all the rows there can ever be: they are trained on, validated and tested on."""
    standardized: bool = True
    """Whether the graph standardizes the values; False for values that mean what they are."""
    mirrored_as: str | None = None
    """The folder below a mirror, where it is not called as the data set is."""
    features: tuple[str, ...] = ()
    """The columns of a user's own table."""
    source: str = ""
    """One sha256 over the files and the settings of a user's own data set."""

    def raw_files(self) -> tuple[RawFile, ...]:
        """Every file of the raw folder: the single ones and the members of archives."""
        return self.files + tuple(member for archive in self.archives for member in archive.members)


def names() -> tuple[str, ...]:
    """The data sets there are."""
    return reading.names(FOLDER)


def get(name: str) -> Dataset:
    """The data set of that name; UnknownNameError with the nearest one if there is none.

    Raises ConfigError for a file of the project that is no data set.
    """
    module = reading.load("data set", __name__, FOLDER, name, ["DATASET"])
    if not isinstance(module.DATASET, Dataset):
        raise ConfigError(f"{module.__file__}: DATASET must be a Dataset of pipeline.datasets")
    return module.DATASET


Indices = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
MAX_BYTES = 1 << 20
"""Of a table that comes inside a package; anything longer is something else."""


def stratified(labels: npt.NDArray[Any], rows: int, seed: int) -> tuple[Indices, Indices]:
    """Take `rows` of the rows, each class in its share, and return (those left, those taken).

    A row of each class or more is on either side. The same labels, count and seed give the same
    split. `labels` is int64 [rows]; both results are int64 row indices in ascending order. Of
    float32 [rows, targets], which have no classes, any rows are taken. Raises ValueError when
    `rows`, or what is left, is less than the number of classes, or when a class has a single row.
    """
    from sklearn.model_selection import train_test_split

    left, taken = train_test_split(
        np.arange(len(labels), dtype=np.int64),
        test_size=rows,
        random_state=seed,
        stratify=labels if labels.ndim == 1 else None,
    )
    if labels.ndim == 1:
        _swap_in_missing(labels, left, taken)
        _swap_in_missing(labels, taken, left)
    return np.sort(left), np.sort(taken)


def _swap_in_missing(labels: npt.NDArray[np.int64], other: Indices, side: Indices) -> None:
    """Give `side` a row of each class that it lacks, for one of the class it has most rows of."""
    for missing in np.setdiff1d(labels[other], labels[side]):
        theirs = np.flatnonzero(labels[other] == missing)[0]
        ours = np.flatnonzero(labels[side] == np.bincount(labels[side]).argmax())[0]
        other[theirs], side[ours] = side[ours], other[theirs]


def with_test_rows(rows: Split, count: int, seed: int) -> RawRows:
    """Make `count` of the rows the test set, for there is no official one; see `stratified`."""
    train, test = stratified(rows.labels, count, seed)
    return RawRows(train=rows.take(train), test=rows.take(test))


def row_count(value: float, rows: int, classes: int) -> int:
    """What a setting such as `validation_rows` comes to: below 1 it is that share of the rows.

    Of a share there is a row of each class, and one at least.
    """
    return max(classes, 1, round(value * rows)) if 0 < value < 1 else int(value)


def read_numbers(path: Path, columns: int, delimiter: str | None = None) -> Numbers:
    """Read a gzipped table of numbers, by default between blanks: float64 [rows, columns].

    Raises MissingInputError for a file that is not there and InputError, naming the file, for one
    that is no such table or unpacks to more than a mebibyte.
    """
    with unpacking(require(path, f"ferry pull {path.parent.name}")) as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise InputError(f"{path} unpacks to more than the {MAX_BYTES} bytes it may have")
    if not text.strip():
        raise InputError(f"{path} is empty")
    try:
        table = np.loadtxt(io.BytesIO(text), delimiter=delimiter, comments=None, ndmin=2)
    except ValueError as error:
        raise InputError(f"{path} is not a table of numbers: {error}") from error
    if table.shape[1] != columns:
        raise InputError(f"{path} must have {columns} columns, it has {table.shape[1]}")
    return table


@contextlib.contextmanager
def unpacking(path: Path) -> Iterator[gzip.GzipFile]:
    """Read a gzip file; InputError where it turns out to be none, or not whole."""
    try:
        with gzip.open(path) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file: {error}") from error


def check_labels(path: Path, labels: npt.NDArray[np.uint8], classes: int, place: str) -> None:
    """Refuse labels beyond the classes; `place` is what the file calls a row."""
    wrong = np.flatnonzero(labels >= classes)
    if wrong.size:
        row = wrong[0]
        raise InputError(
            f"{path}: label {labels[row]} in {place} {row}, but labels go from 0 to {classes - 1}"
        )


IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
IDX_LABELS = 0x0801
"""The magic number of a list of bytes; each further dimension adds 1."""
MAX_ROWS = 1_000_000
"""A header that claims more is refused before anything is unpacked."""


def idx_files(folders: tuple[str, ...], sums: tuple[tuple[int, str], ...]) -> tuple[RawFile, ...]:
    """Describe the four files, which lie below each of the official addresses `folders`.

    `sums` are the size and the sha256 of each, in the order of `IDX_FILES`.
    """
    return tuple(
        RawFile(
            name=name, size=size, sha256=sha256, urls=tuple(folder + name for folder in folders)
        )
        for name, (size, sha256) in zip(IDX_FILES, sums, strict=True)
    )


def idx_reader(size: tuple[int, int], classes: int) -> Callable[[Path], RawRows]:
    """Make the function that reads the four files of a raw folder, images of (height, width).

    IDX is the format of MNIST and of the data sets made in its image. It raises as `read_idx` does,
    and InputError for labels that do not fit the images.
    """

    def read(raw: Path) -> RawRows:
        files = [raw / name for name in IDX_FILES]
        return RawRows(
            train=read_labelled(*files[:2], size=size, classes=classes),
            test=read_labelled(*files[2:], size=size, classes=classes),
        )

    return read


def read_labelled(images: Path, labels: Path, *, size: tuple[int, int], classes: int) -> Split:
    """Read an image file as uint8 [rows, height, width, 1] and its label file as int64 [rows]."""
    pixels, answers = read_idx(images, size), read_idx(labels, ())
    check_labels(labels, answers, classes, "row")
    if len(pixels) != len(answers):
        raise InputError(
            f"{images} holds {len(pixels)} images, but {labels} holds {len(answers)} labels"
        )
    return Split(pixels[..., np.newaxis], answers.astype(np.int64))


def read_idx(path: Path, row: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Read an IDX file of bytes as uint8 [rows, *row]; its header is big-endian.

    Raises MissingInputError for a file that is not there and InputError, naming file and value, for
    one that is not what it should be.
    """
    require(path, f"ferry pull {path.parent.name}")
    with unpacking(path) as file:
        rows = _idx_rows(path, file.read(8 + 4 * len(row)), row)
        expected = rows * int(np.prod(row, dtype=np.int64))
        # One byte more than expected tells too long data from right, however long it is.
        values = file.read(expected + 1)
    if len(values) != expected:
        found = f"only {len(values)}" if len(values) < expected else "more"
        raise InputError(f"{path}: {expected} bytes must follow the header, there are {found}")
    return np.frombuffer(values, np.uint8).reshape(rows, *row)


def _idx_rows(path: Path, header: bytes, row: tuple[int, ...]) -> int:
    """Return the number of rows that the header gives, once all else in it is right."""
    length, magic = 8 + 4 * len(row), IDX_LABELS + len(row)
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
