"""What the rows of CSV and of JSON Lines share: records, whose values become texts or numbers.

What is wrong with a value makes its row one that cannot be read, and the reason names the line, the
column and the value.
"""

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from serving.inputs.sources import Batch, Chunk, FileRows, batch_of, value_or_reason
from serving.inputs.tables.columns import Numbers, refuse_twice, text_of
from serving.inputs.text import row_shape_of_texts, text_batch
from serving.runtime.tensors import Array, TensorInfo

Rows = TypeVar("Rows", bound="TableRows")


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file."""

    values: Sequence[object]
    """Of the columns asked for, in that order; none where there is a fault."""
    place: str
    """Where in the file it is, "line 14: "."""
    fault: str | None = None

    def checked(self) -> Sequence[object]:
        """Its values; ValueError where there is a fault."""
        if self.fault:
            raise ValueError(self.fault)
        return self.values


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRows(FileRows, abc.ABC):
    """The records of a file, as rows of the model."""

    columns: tuple[str, ...]
    """All there are."""
    names: tuple[str, ...]
    """Those that are read."""
    head: bytes
    """What was read of stdin to know the columns."""
    input: TensorInfo
    numbers: Numbers
    """What the values become, where the model takes no texts."""
    nul: bool = False
    """Whether a text may hold a NUL; in a file of plain text it means that it is none."""
    count: None = None

    @abc.abstractmethod
    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """Records, `size` at a time, from the one at `start` on."""

    @abc.abstractmethod
    def records(self, content: Any) -> list[Record]:
        """The records of a chunk's content."""

    def decode(self, chunk: Chunk) -> Batch:
        """The rows of a chunk."""
        ids = self.ids(chunk.start, len(chunk.content))
        if self.input.is_text:
            name, records = self.names[0], self.records(chunk.content)
            return text_batch(
                ids,
                records,
                lambda record: text_of(name, record.checked()[0], nul=self.nul),
                row_shape_of_texts(self.input) or (),
                place=lambda index: records[index].place,
            )
        rows = self.fast_rows(chunk)
        if rows is not None:
            return Batch(ids=ids, rows=rows)
        found = [self._row_or_reason(record) for record in self.records(chunk.content)]
        return batch_of(ids, found, np.empty((0, *self.row_shape), self.numbers.dtype))

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of a row of numbers."""
        return (len(self.names),)

    def fast_rows(self, chunk: Chunk) -> Array | None:
        """The rows of a chunk, read all at once; None where a record needs a look of its own."""
        records = self.records(chunk.content)
        if any(record.fault for record in records):
            return None
        return self.numbers.records([record.values for record in records])

    def row(self, values: Sequence[object]) -> Array:
        """One row of the values of a record; ValueError with what is wrong with one of them."""
        pairs = zip(self.names, values, strict=True)
        return np.array([self.numbers.one(*pair) for pair in pairs], self.numbers.dtype)

    def _row_or_reason(self, record: Record) -> Array | str:
        found = value_or_reason(lambda one: self.row(one.checked()), record)
        return f"{record.place}{found}" if isinstance(found, str) else found


def looked_into(rows: Rows) -> Rows:
    """The same; InputError for a column that is there twice, and for a file without a record."""
    refuse_twice(rows.name, rows.columns, rows.names)
    if rows.path is not None:
        next(rows.chunks(1))
    return rows
