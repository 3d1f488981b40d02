"""Rows of `.npy` and `.npz` files, mapped into memory where that can be.

Nothing is ever unpickled.
"""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import InputError
from serving.readers.items import Row, Unreadable, printable, reason_of
from serving.tensors import TensorInfo

__all__ = ["ARRAY_NAMES", "ARRAY_SUFFIXES", "Rows", "open_array"]

Array = npt.NDArray[Any]

ARRAY_SUFFIXES = (".npy", ".npz")
ARRAY_NAMES = ("images", "features", "text", "input", "inputs")


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of an array."""

    path: Path
    array: Array

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.array)

    def __iter__(self) -> Iterator[Row | Unreadable]:
        name = printable(self.path)
        for index in range(len(self.array)):
            yield Row(f"{name}:{index}", np.asarray(self.array[index]))


def open_array(path: Path, info: TensorInfo, model: Path, name: str | None = None) -> Array:
    """The rows of a `.npy`, or of the array `name` of a `.npz`, for the input `info` of `model`.

    Raises InputError for what is no such file, and for rows of another dtype or shape, or none.
    """
    rows = _load_npy(path) if path.suffix.lower() == ".npy" else _load_npz(path, name)
    if not rows.ndim or not info.accepts(rows.dtype, rows.shape[1:]):
        raise InputError(
            f"{path} holds {rows.dtype} {list(rows.shape)}; {model} takes {info.takes()}"
        )
    if not len(rows):
        raise InputError(f"{path} holds no rows")
    return rows


def _load_npy(path: Path) -> Array:
    try:
        # Mapped, not read: a file larger than the memory is fine. It never unpickles.
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OverflowError) as error:
        raise InputError(
            f"{path} is not a .npy file that can be read: {reason_of(error)}"
        ) from error


def _load_npz(path: Path, name: str | None) -> Array:
    try:
        # np.load would take a .npy by this name as well, and hand out an array.
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            member: Array = archive[_member(path, archive.files, name)]
            return member
    except (ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is not a .npz file that can be read: {reason_of(error)}"
        ) from error


def _member(path: Path, names: Sequence[str], wanted: str | None) -> str:
    """The array of a `.npz` to take: the one asked for, one of the usual names, the only one."""
    there = ", ".join(names) or "none"
    if wanted is not None:
        if wanted not in names:
            raise InputError(f"{path} holds no array named {wanted!r}; there are: {there}")
        return wanted
    usual = [name for name in ARRAY_NAMES if name in names]
    if usual:
        return usual[0]
    if len(names) != 1:
        raise InputError(f"{path} holds the arrays {there}; name one with --array")
    return names[0]
