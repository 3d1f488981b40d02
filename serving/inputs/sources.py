"""What every source of rows is made of: its target, its chunks, and the batches of their rows.

A source cuts itself into chunks, in order and in one thread. A chunk is small, or a view of mapped
memory, and any thread or process may decode it into a batch. A row that cannot be read is named in
the batch with its reason, so that one broken image does not stop a run of a million.

A row's id is the name of its file and its index, counted from 0: `rows.npy:12`. An image's id is
its name alone.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, overload

import numpy as np

from serving.console import note
from serving.errors import DamagedError, InputError, UsageError, one_line, redacted
from serving.files import printable
from serving.runtime.tensors import Array, TensorInfo

Item = TypeVar("Item")
Value = TypeVar("Value")
REST = "; the rest of it is not read"
"""How the reason ends that stands for more rows than its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How inputs are read."""

    array: str | None = None
    """The array to take from `.npz` files."""
    columns: tuple[str, ...] = ()
    """The columns to read of tables; () for all, or the one that fits."""
    resize: bool = False
    """Whether images are fitted to the model in size and mode."""
    input_format: str | None = None
    """What stdin holds; None for what the model takes."""
    delimiter: str | None = None
    """What divides the fields of CSV: one character, or "tab"; None for what the header tells."""
    decimal: str | None = None
    """What stands before the decimals in CSV, "." or ","; None for what its first rows tell."""
    missing: Literal["refuse", "nan"] = "refuse"
    """Whether a row without a value, or with NaN, is refused, or is fed with NaN."""
    cast: bool = False
    """Whether arrays of another dtype become the model's, value by value."""
    null: bool = False
    """Whether a NUL ends each path of a list, as `find -print0` writes them."""

    def __post_init__(self) -> None:
        one = self.delimiter in (None, "tab") or len(self.delimiter or "") == 1
        if not one or (self.delimiter or "") in tuple('"\r\n'):
            raise UsageError(f"--delimiter must be one character or tab, got {self.delimiter!r}")


@dataclass(frozen=True, slots=True)
class ReadTarget:
    """What rows are read for; it can be sent to other processes."""

    input: TensorInfo
    """The input of the model that the rows are for."""
    model: Path
    """The model, for messages."""
    options: ReadOptions = ReadOptions()
    features: tuple[str, ...] = ()
    """The columns of a table that the model takes, in its order; () where it does not say."""
    said: set[str] = field(default_factory=set, compare=False, repr=False)
    """What was told already of how files are read."""

    def say(self, name: str, text: str) -> None:
        """Tell once, by the first file it is true of, how files are read."""
        if text not in self.said:
            self.said.add(text)
            note(f"{Path(name).name}: {text}")  # it may lie where it was fetched to

    def takes(self) -> str:
        """What the model takes, for messages: "m.onnx takes uint8 [rows, 8, 8, 1]"."""
        return f"{self.model} takes {self.input.takes()}"


@dataclass(frozen=True, slots=True)
class InputRow:
    """One row that can be fed to the model."""

    id: str
    """An image's path, or `rows.npy:12`."""
    value: Array
    """Of the model's dtype and shape, without the batch axis."""


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """One row that cannot."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """All that follows in a source that is damaged; the content of its last chunk, of one row."""

    id: str
    """That of the first row that is lost."""
    reason: str


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
    notes: frozenset[str] = frozenset()
    """What is to be told once of how rows were read."""

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
        rows = self.rows[: count - len(faults)]
        return replace(self, ids=self.ids[:count], rows=rows, faults=faults)

    @property
    def unreadable(self) -> list[UnreadableRow]:
        """The others, with their reasons."""
        return [UnreadableRow(self.ids[index], reason) for index, reason in self.faults.items()]


class RowSource(Protocol):
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

        Raises DamagedError for a file that turns out to be broken where it cannot be read on, and
        InputError for one that has changed, or cannot be had now.
        """

    def decode(self, chunk: Chunk) -> Batch:
        """The rows of a chunk; DamagedError when none of them can be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRows:
    """What the sources of one file, or of stdin, share."""

    path: Path | None
    """None for stdin, which can be read once."""
    slow: bool = False

    @property
    def name(self) -> str:
        """What ids and messages begin with."""
        return display_name(self.path)

    def fingerprint(self) -> str | None:
        """The sha256 of the path, size and time of change of the file; None for stdin."""
        return None if self.path is None else fingerprint_of_files([self.path])

    def ids(self, start: int, count: int) -> "NumberedIds":
        """The ids of some of its rows."""
        return NumberedIds(self.name, start, count)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut(FileRows):
    """A file among others of which no row can be read: it is one such row, so that it is named."""

    reason: str = "it is no table"
    count: int = 1

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:  # noqa: ARG002 - there is one
        """The file."""
        if not start:
            yield Chunk(start=0, count=1, content=None)

    def decode(self, chunk: Chunk) -> Batch:  # noqa: ARG002 - it is always the same
        """Its name, and the reason."""
        return Batch(ids=[self.name], rows=np.empty(0), faults={0: self.reason})


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


def each_row(source: RowSource, size: int = 64) -> Iterator[InputRow | UnreadableRow]:
    """Every row of a source, one by one and in order."""
    for chunk in source.chunks(size):
        yield from rows_of(source.decode(chunk))


def rows_of(batch: Batch) -> Iterator[InputRow | UnreadableRow]:
    """Every row of a batch."""
    readable = 0
    for index, one in enumerate(batch.ids):
        if index in batch.faults:
            yield UnreadableRow(one, batch.faults[index])
        else:
            yield InputRow(one, batch.rows[readable, ...])  # an array, of one text too
            readable += 1


def batch_of(ids: Sequence[str], values: Sequence[Array | str], empty: Array) -> Batch:
    """A batch of values that are rows or reasons for none; `empty` has their dtype and shape."""
    faults = {index: value for index, value in enumerate(values) if isinstance(value, str)}
    rows = [value for value in values if not isinstance(value, str)]
    return Batch(ids=ids, rows=np.stack(rows) if rows else empty, faults=faults)


def value_or_reason(read: Callable[[Item], Value], one: Item) -> Value | str:
    """What `read` makes of it, or why it makes nothing."""
    try:
        return read(one)
    except ValueError as error:
        return str(error)


def display_name(path: Path | None) -> str:
    """What ids begin with."""
    return "stdin" if path is None else redacted(printable(path))


@contextlib.contextmanager
def refuse_broken(name: str, what: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Raise DamagedError, "NAME WHAT: reason", for what a library raises on broken files.

    What the system refuses now is no damage, and an InputError: it may grant it the next time.
    """
    try:
        yield
    except errors as error:
        if isinstance(error, InputError):
            raise
        reason = f"{what}: {reason_of(error)}"
        if is_of_system(error):
            raise InputError(f"{name} {reason}") from error
        raise DamagedError(name, reason) from error


def is_of_system(error: Exception) -> bool:
    """Whether an error is the system's; libraries raise OSError for broken files as well."""
    return isinstance(error, OSError) and error.errno is not None


def reason_of(error: Exception) -> str:
    """What a library said, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


def fingerprint_of_files(paths: Iterable[str | Path]) -> str:
    """The sha256 of the path, size and time of change of every file, in order."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            found = os.stat(path)  # noqa: PTH116 - to make a Path takes longer than to look
        except (OSError, ValueError):  # its row tells the reason
            state = "-"
        else:
            state = f"{found.st_size} {found.st_mtime_ns}"
        digest.update(os.fsencode(f"{path}\0{state}\0"))
    return digest.hexdigest()
