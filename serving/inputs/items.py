"""What the inputs of `ferry predict` are made of: chunks that are cheap to cut, batches of rows.

A source cuts itself into chunks, in order and in one thread; a chunk is small, or a view of mapped
memory, and any thread or process may decode it into a batch. What cannot be read is told in the
batch, so that one broken image does not stop a run of a million.

A row's id is its file's name and its index, from 0: `rows.npy:12`; an image's is its name alone.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One row that can be fed to the model."""

    id: str
    """An image's path, or `rows.npy:12`."""
    value: Array
    """Of the model's dtype and shape, without the batch axis."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """One row that cannot."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class NumberedIds(Sequence[str]):
    """The ids of consecutive rows of a file, made when they are asked for: `rows.npy:12`, ..."""

    name: str
    start: int
    length: int

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        numbers = range(self.start, self.start + self.length)[index]
        if isinstance(numbers, range):
            return [f"{self.name}:{number}" for number in numbers]
        return f"{self.name}:{numbers}"

    def __iter__(self) -> Iterator[str]:
        return iter(self[:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive rows of a source that are not decoded yet; it can be sent to other processes."""

    start: int
    """The index of its first row in the source, unreadable ones counted."""
    count: int
    content: Any
    """What the source's `decode` needs: paths, bytes, records, or a view of mapped rows."""
    digest: str | None = None
    """For a stream that cannot be read twice: the sha256 of all of it up to the chunk's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The rows of a chunk."""

    ids: Sequence[str]
    """Of all rows, the unreadable ones too."""
    rows: Array
    """The readable ones, in order: [rows, ...] of the model's dtype and shape."""
    faults: Mapping[int, str] = field(default_factory=dict)
    """Why a row cannot be read, by its index in the chunk, in order."""

    @property
    def readable_ids(self) -> Sequence[str]:
        """The ids that belong to `rows`."""
        if not self.faults:
            return self.ids
        return [one for index, one in enumerate(self.ids) if index not in self.faults]

    def first(self, count: int) -> "Batch":
        """The same of the first `count` rows only."""
        if count >= len(self.ids):
            return self
        faults = {index: reason for index, reason in self.faults.items() if index < count}
        return Batch(ids=self.ids[:count], rows=self.rows[: count - len(faults)], faults=faults)

    @property
    def unreadable(self) -> list[Unreadable]:
        """The others, with their reasons."""
        return [Unreadable(self.ids[index], reason) for index, reason in self.faults.items()]


class Source(Protocol):
    """One input, or several that are read as one. It can be sent to other processes."""

    @property
    def count(self) -> int | None:
        """The number of its rows, or None where only reading it all would tell."""

    @property
    def slow(self) -> bool:
        """Whether decoding takes so long that processes of its own pay, as for images."""

    def fingerprint(self) -> str | None:
        """What changes when the input does, from names, sizes and times of change.

        None for a stream that is read once, as stdin, whose chunks carry digests instead.
        """

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """The chunks of `size` rows from the row `start` on, a multiple of it; the last is short.

        Raises InputError for a file that turns out to be broken where it cannot be read on.
        """

    def decode(self, chunk: Chunk) -> Batch:
        """The rows of a chunk."""


def items_of(source: Source, size: int = 64) -> Iterator[Row | Unreadable]:
    """Every row of a source, one by one and in order."""
    for chunk in source.chunks(size):
        batch = source.decode(chunk)
        readable = 0
        for index, one in enumerate(batch.ids):
            if index in batch.faults:
                yield Unreadable(one, batch.faults[index])
            else:
                yield Row(one, batch.rows[readable, ...])  # an array, of one text too
                readable += 1


def batch_of(ids: Sequence[str], values: Sequence[Array | str], empty: Array) -> Batch:
    """A batch of values that are rows, or the reasons why there is no row.

    `empty` has no rows, and the dtype and shape of the others.
    """
    faults = {index: value for index, value in enumerate(values) if isinstance(value, str)}
    rows = [value for value in values if not isinstance(value, str)]
    return Batch(ids=ids, rows=np.stack(rows) if rows else empty, faults=faults)


def printable(path: Path) -> str:
    """The path as text that can be written anywhere, even if it is not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def reason_of(error: Exception) -> str:
    """What a library said, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
