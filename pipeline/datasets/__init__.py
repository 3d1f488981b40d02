"""The data sets: one file each, with a module-level `DATASET`; the file name is the name.

A file says where the official bytes are and how to read them; nothing here is fetched. `stratified`
splits rows that have no official split.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.config import reading
from pipeline.records.ready import Kind

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
class Archive:
    """An official tar archive; its members are streamed out by name and size, never extracted."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    urls: tuple[str, ...]
    members: tuple[RawFile, ...]
    """Their names are the names inside the archive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRows:
    """All rows of a data set as the official files hold them."""

    train_inputs: npt.NDArray[np.generic]
    """Images: uint8 [rows, H, W, C]; tables: float32 [rows, features]; text: str [rows]."""
    train_labels: npt.NDArray[np.int64]
    """int64 [rows], indices into the labels."""
    test_inputs: npt.NDArray[np.generic]
    test_labels: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What is known of a data set."""

    title: str
    kind: Kind
    homepage: str
    citation: str
    licence: str
    labels: tuple[str, ...]
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

    def raw_files(self) -> tuple[RawFile, ...]:
        """Every file of the raw folder: the single ones and the members of archives."""
        return self.files + tuple(member for archive in self.archives for member in archive.members)


def names() -> tuple[str, ...]:
    """The data sets there are."""
    return reading.names(FOLDER)


def get(name: str) -> Dataset:
    """The data set of that name; UnknownNameError with the nearest one if there is none."""
    dataset: Dataset = reading.load("data set", __name__, FOLDER, name).DATASET
    return dataset


Indices = npt.NDArray[np.int64]


def stratified(labels: npt.NDArray[np.int64], rows: int, seed: int) -> tuple[Indices, Indices]:
    """Take `rows` of the rows, each class in its share, and return (those left, those taken).

    The same labels, count and seed give the same split. `labels` is int64 [rows]; both results are
    int64 row indices in ascending order. Raises ValueError when `rows`, or what is left, is less
    than the number of classes, or when a class has a single row.
    """
    from sklearn.model_selection import train_test_split

    left, taken = train_test_split(
        np.arange(len(labels), dtype=np.int64), test_size=rows, random_state=seed, stratify=labels
    )
    return np.sort(left), np.sort(taken)
