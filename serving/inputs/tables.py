"""Rows of CSV and JSON Lines: one column of text, or as many numbers as the model takes.

What is wrong with a value makes its row one that cannot be read, and the reason names the line, the
column and the value. Numbers of CSV go through pyarrow, a block of records at a time; a block that
pyarrow refuses is read record by record.
"""

import abc
import csv
import functools
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import DamagedError, InputError
from serving.inputs.columns import (
    convert,
    number,
    number_columns,
    number_rows,
    refuse_twice,
    refuse_unknown,
    takes_numbers,
    text_column,
    text_of,
)
from serving.inputs.sources import (
    Batch,
    Chunk,
    FileRows,
    ReadTarget,
    Stream,
    batch_of,
    chunks_of,
    display_name,
    open_stream,
    take,
    value_or_reason,
)
from serving.inputs.text import decode_line, raw_lines, row_shape_of_texts, text_batch, text_fault
from serving.runtime.tensors import Array, TensorInfo

FIRST_BYTES = 1 << 20
"""Of CSV, read record by record: a small file is read before pyarrow would be imported."""
FLOAT_BITS = 53
"""Whole numbers of more bits may not be a float64."""


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
                lambda record: text_of(name, record.checked()[0]),
                row_shape_of_texts(self.input) or (),
                place=lambda index: records[index].place,
            )
        dtype = np.dtype(self.input.dtype)
        if isinstance(chunk.content, CsvBlock):
            rows = chunk.content.numbers(self.columns, self.names, dtype)
            if rows is not None:
                return Batch(ids=ids, rows=rows)
        return self._numbers(ids, self.records(chunk.content), dtype)

    def _numbers(
        self, ids: Sequence[str], records: Sequence[Record], dtype: np.dtype[Any]
    ) -> Batch:
        if not any(record.fault for record in records):
            rows = number_rows([record.values for record in records], dtype)
            if rows is not None:
                return Batch(ids=ids, rows=rows)

        def read(record: Record) -> Array:
            pairs = zip(self.names, record.checked(), strict=True)
            return np.array([number(name, value, dtype) for name, value in pairs], dtype)

        found = [value_or_reason(read, record) for record in records]
        values = [
            f"{record.place}{row}" if isinstance(row, str) else row
            for record, row in zip(records, found, strict=True)
        ]
        return batch_of(ids, values, np.empty((0, len(self.names)), dtype))


def open_table(path: Path | None, target: ReadTarget, form: str) -> TableRows:
    """The records of a file, or of stdin for None, whose `form` is "csv" or "jsonl".

    Without columns asked for, a model of text reads the only one, or the one named "text" or
    "sentence"; one of numbers reads them all, in their order. Raises InputError for columns that
    are not there, too many or few, for no record, and for a model that takes neither. Of stdin no
    more than the first record is read yet.
    """
    name, info, asked = display_name(path), target.input, target.options.columns
    if row_shape_of_texts(info) is None and not takes_numbers(info):
        raise InputError(f"{name}: {target.takes()}, which no record is; give such rows as .npy")
    with open_stream(path, keep=True) as stream:
        columns = _csv_columns(stream) if form == "csv" else _json_columns(stream)
        head = stream.kept()
    refuse_unknown(name, columns, asked)
    if info.is_text:
        names = text_column(name, columns, asked)
    else:
        names = number_columns(name, columns, asked, info)
    refuse_twice(name, columns, names)
    kind = CsvRows if form == "csv" else JsonLinesRows
    rows = kind(path=path, columns=columns, names=names, head=head, input=info)
    if path is not None:
        next(rows.chunks(1))
    return rows


# CSV


@dataclass(frozen=True, slots=True)
class CsvBlock:
    """Records without a quote, one a line, as they stand in a file."""

    lines_before: int
    count: int
    content: bytes

    def __len__(self) -> int:
        return self.count

    def numbers(
        self, columns: Sequence[str], names: Sequence[str], dtype: np.dtype[Any]
    ) -> Array | None:
        """The values of the columns `names`, of all `columns`, as pyarrow reads them.

        None where it refuses a value or a number of fields, or the dtype cannot hold a value.
        """
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        places = [columns.index(name) for name in names]
        keys = list(map(str, range(len(columns))))  # a column that is not read may share its name
        read = dict.fromkeys(keys[place] for place in places)
        try:
            table = arrow_csv.read_csv(
                pa.BufferReader(self.content),
                arrow_csv.ReadOptions(
                    use_threads=False, block_size=len(self.content) + 1, column_names=keys
                ),
                arrow_csv.ParseOptions(quote_char=False),
                arrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(read, pa.float64()),
                    include_columns=list(read),
                    null_values=[],  # an empty value is no number
                ),
            )
        except pa.ArrowInvalid:
            return None
        wide = np.stack([table.column(keys[place]).to_numpy() for place in places], axis=1)
        if dtype.kind in "iu" and (np.abs(wide) >= 2**FLOAT_BITS).any():
            return None
        rows, good = convert(wide, dtype)
        return rows if good.all() else None


CsvRecords = Sequence[tuple[int, list[str]]]
"""The fields of each record, with the number of its last line."""


class CsvRows(TableRows):
    """Comma-separated values whose first line names the columns; blank lines are no records."""

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """The records after the header; numbers in blocks where they are simple enough."""
        with open_stream(self.path, self.head) as stream:
            reader = CsvReader(stream)
            reader.records(1)
            taken = reader.records if self.input.is_text else reader.block
            yield from chunks_of(stream, taken, size, start)

    def records(self, content: CsvBlock | CsvRecords) -> list[Record]:
        """The records of a chunk's content."""
        if isinstance(content, CsvBlock):
            lines = map(decode_line, io.BytesIO(content.content))
            content = list(_csv_records(csv.reader(lines), self.name, content.lines_before))
        places = [self.columns.index(name) for name in self.names]
        return [self._record(line, fields, places) for line, fields in content]

    def _record(self, line: int, fields: list[str], places: Sequence[int]) -> Record:
        place = f"line {line}: "
        if len(fields) != len(self.columns):
            fault = f"it has {len(fields)} fields, the header has {len(self.columns)}"
            return Record((), place, fault)
        return Record([fields[index] for index in places], place)


class CsvReader:
    """The records of a stream, taken some at a time and from front to back."""

    def __init__(self, stream: Stream) -> None:
        self._name = stream.name
        self._lines = raw_lines(stream)
        self._first = FIRST_BYTES
        """Bytes that are still to be read record by record."""
        self._passed = 0
        """Lines that were read."""

    def block(self, size: int) -> tuple[CsvBlock | CsvRecords, InputError | None]:
        """The next `size` records, in a block if every line of them is one."""
        lines = list(itertools.islice(self._lines, size))
        content = b"".join(lines)
        self._first -= len(content)
        if self._first >= 0 or not _is_simple(lines, content):
            return self.records(size, lines)
        self._passed += len(lines)
        return CsvBlock(self._passed - len(lines), len(lines), content), None

    def records(
        self, size: int, ahead: Iterable[bytes] = ()
    ) -> tuple[CsvRecords, InputError | None]:
        """The next `size` records, or those before the fault and the fault.

        `ahead` are lines that were read already, of which every one is used: no more than `size`.
        """
        reader = csv.reader(map(decode_line, itertools.chain(ahead, self._lines)))
        found = take(_csv_records(reader, self._name, self._passed), size)
        self._passed += reader.line_num
        return found


def _csv_columns(stream: Stream) -> tuple[str, ...]:
    """The header of a file; InputError when it has none."""
    found, error = CsvReader(stream).records(1)
    if error is not None:
        raise error
    if not found:
        raise InputError(f"{stream.name} is empty; its first line should name the columns")
    ((_, header),) = found
    fault = next(filter(None, map(text_fault, header)), None)
    if fault:
        raise InputError(f"{stream.name}: the name of a column {fault}")
    return tuple(header)


def _csv_records(reader: Any, name: str, passed: int) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank, each with the number of its last line."""
    try:
        for fields in reader:
            if fields:
                yield passed + reader.line_num, fields
    except csv.Error as error:
        raise DamagedError(
            name, f"is damaged in line {passed + reader.line_num}: {error}"
        ) from error


def _is_simple(lines: Sequence[bytes], content: bytes) -> bool:
    """Whether the csv module finds a record in every line, and commas alone tell its fields."""
    return (
        b'"' not in content
        and (b"\r" not in content or content.count(b"\r") == content.count(b"\r\n"))
        and not any(blank in lines for blank in (b"\n", b"\r\n"))
        and max(map(len, lines), default=0) <= csv.field_size_limit()
    )


# JSON Lines


class JsonLinesRows(TableRows):
    """One JSON object a line; the first one names the columns, blank lines are no records."""

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """The lines with a record, with their numbers."""
        with open_stream(self.path, self.head) as stream:
            yield from chunks_of(stream, functools.partial(take, _json_lines(stream)), size, start)

    def records(self, content: Sequence[tuple[int, str]]) -> list[Record]:
        """The records of a chunk's content."""
        return [_json_record(self.names, line, f"line {number}: ") for number, line in content]


def _json_columns(stream: Stream) -> tuple[str, ...]:
    """The keys of the first record; InputError when it is no object."""
    _, line = next(_json_lines(stream), (0, ""))
    first = _json_object(line)
    if not first:
        raise InputError(
            f"{stream.name}: line 1 should be a JSON object with the columns as its keys"
        )
    return tuple(first)


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
