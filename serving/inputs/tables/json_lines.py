"""Rows of JSON Lines: texts, numbers in columns of their own, or lists of them in one.

{"text": "a review"}    {"width": 1.5, "height": 2}    {"features": [1.5, 2]}
"""

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import DamagedError, InputError
from serving.inputs.sources import Chunk, ReadTarget, display_name
from serving.inputs.streams import Stream, chunks_of, open_stream, take
from serving.inputs.tables.columns import (
    Numbers,
    chosen_columns,
    row_shapes,
    whole_rows_column,
)
from serving.inputs.tables.records import Record, TableRows, looked_into
from serving.inputs.text import decode_line, raw_lines
from serving.runtime.tensors import Array


def open_json_lines(path: Path | None, target: ReadTarget) -> TableRows:
    """The records of a file, or of stdin for None.

    The columns are chosen as `chosen_columns` says, but for one with lists that are whole rows,
    which is taken before. Raises InputError for columns that are not there, too many or few, for
    no record, and for a model that takes none of these. Of stdin no more than the first record is
    read yet.
    """
    name = display_name(path)
    with open_stream(path, keep=True) as stream:
        first = _first_object(stream)
        head = stream.kept()
    column = _list_column(name, first, target)
    names = (column,) if column else chosen_columns(name, tuple(first), target)
    rows = (JsonLinesRows if column is None else ListRows)(
        path=path,
        columns=tuple(first),
        names=names,
        head=head,
        input=target.input,
        numbers=Numbers.of(target),
        nul=True,
    )
    return looked_into(rows)


class JsonLinesRows(TableRows):
    """One JSON object a line; the first one names the columns, blank lines are no records."""

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """The lines with a record, with their numbers."""
        with open_stream(self.path, self.head) as stream:
            yield from chunks_of(stream, functools.partial(take, _json_lines(stream)), size, start)

    def records(self, content: Sequence[tuple[int, str]]) -> list[Record]:
        """The records of a chunk's content."""
        return [_json_record(self.names, line, f"line {number}: ") for number, line in content]


class ListRows(JsonLinesRows):
    """Whole rows in one column: lists of numbers, one in the other or all in one."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of a row."""
        return tuple(axis for axis in self.input.shape[1:] if isinstance(axis, int))

    def fast_rows(self, chunk: Chunk) -> Array | None:
        """The rows of a chunk, read all at once; None where a record needs a look of its own."""
        records = self.records(chunk.content)
        if any(record.fault for record in records):
            return None
        try:
            values = np.array([record.values[0] for record in records])
        except ValueError:  # of different lengths
            return None
        if values.dtype.kind not in "fiu" or values.shape[1:] not in row_shapes(self.input):
            return None
        rows, good = self.numbers.convert(values)
        return rows.reshape(len(records), *self.row_shape) if good.all() else None

    def row(self, values: Sequence[object]) -> Array:
        """One row of a list; ValueError with what is wrong with it."""
        (name,), (value,) = self.names, values
        try:
            found = np.array(value)
            if found.dtype == object and self.numbers.missing:
                found = np.array(value, np.float64)
        except (ValueError, TypeError):
            raise ValueError(f"column {name!r} holds lists of different lengths") from None
        if found.shape not in row_shapes(self.input):
            shapes = f"{list(found.shape)} where the model takes {list(self.row_shape)}"
            raise ValueError(f"column {name!r} has values {shapes}")
        if found.dtype.kind not in "fiu":
            for one in found.reshape(-1).tolist():
                self.numbers.one(name, one)
            raise ValueError(f"column {name!r} holds what is no number")
        row, good = self.numbers.convert(found)
        if not good.all():
            self.numbers.one(name, found[~good][0].item())
        return row.reshape(self.row_shape)


def _list_column(name: str, first: dict[str, object], target: ReadTarget) -> str | None:
    """The column whose lists are rows of the model, by the first record; None without one."""
    asked = target.options.columns
    if target.input.is_text or len(asked) > 1:
        return None
    found = []
    for column in asked or first:
        values: Any = first[column]
        with contextlib.suppress(ValueError):  # lists of different lengths
            if isinstance(values, list) and np.shape(values) in row_shapes(target.input):
                found.append(column)
    return whole_rows_column(name, found)


def _first_object(stream: Stream) -> dict[str, object]:
    """The first record; InputError when it is no object, DamagedError when there is none."""
    _, line = next(_json_lines(stream), (0, ""))
    if not line:
        raise DamagedError(stream.name, "holds no rows")
    first = _json_object(line)
    if not first:
        raise InputError(
            f"{stream.name}: line 1 should be a JSON object with the columns as its keys"
        )
    return first


def _json_lines(stream: Stream) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    lines = enumerate(map(decode_line, raw_lines(stream)), start=1)
    return ((number, line) for number, line in lines if line.strip())


def _json_record(names: Sequence[str], line: str, place: str) -> Record:
    found = _json_object(line)
    if found is None:
        return Record((), place, "it is not a JSON object")
    missing = [name for name in names if name not in found]
    if missing:
        return Record((), place, f"it has no {missing[0]!r}")
    return Record([found[name] for name in names], place)


def _json_object(line: str) -> dict[str, object] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
