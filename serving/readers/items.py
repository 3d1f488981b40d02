"""What every input of `ferry predict` is made of: rows to feed, and rows that cannot be read.

A row's id is its file's name and its index, from 0: `rows.npy:12`; an image's is its name alone.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Row", "Source", "Unreadable", "printable", "reason_of", "text_value"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row that can be fed to the model."""

    id: str
    """An image's path, or `rows.npy:12`."""
    value: npt.NDArray[Any]
    """Of the model's dtype and shape, without the batch axis."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """One row that cannot."""

    id: str
    reason: str


class Source(Protocol):
    """One input: a stream of rows, from the start each time it is iterated over."""

    @property
    def count(self) -> int | None:
        """The number of its rows, or None where only reading it all would tell."""

    def __iter__(self) -> Iterator[Row | Unreadable]: ...


def printable(path: Path) -> str:
    """The path as text that can be written anywhere, even if it is not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def reason_of(error: Exception) -> str:
    """What a library said, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def text_value(text: str, row_shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A text as a row of a model that takes strings; object, as its length is its own."""
    value = np.empty(row_shape, object)
    value[...] = text
    return value
