"""Rows of CSV: one column of text, or as many numbers as the model takes.

Numbers go through pyarrow, a block of records at a time; a block that pyarrow refuses is read
record by record. What divides the fields, and what stands before decimals, is told by the first
lines where the options do not say it.
"""

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import DamagedError, InputError
from serving.inputs.sources import Chunk, ReadTarget, display_name
from serving.inputs.streams import Stream, chunks_of, open_stream, take
from serving.inputs.tables.columns import WITH_COMMA, Numbers, chosen_columns
from serving.inputs.tables.records import Record, TableRows, looked_into
from serving.inputs.text import decode_line, raw_lines, text_fault
from serving.runtime.tensors import Array

FIRST_BYTES = 1 << 20
"""Read record by record: a small file is read before pyarrow would be imported."""
FLOAT_BITS = 53
"""Whole numbers of more bits may not be a float64."""
DELIMITERS = (",", ";", "\t", "|")
"""What may divide fields."""
SAMPLE_ROWS = 1000
"""Looked at for commas before decimals."""
TABS = re.compile(r"\.tsv(\.|$)", re.IGNORECASE)
WITH_POINT = re.compile(r"\s*[-+]?\d*\.\d+([eE][-+]?\d+)?\s*")
NULLS = ("", "nan", "NaN", "-nan", "NA", "<NA>", "N/A", "n/a", "null", "NULL", "None")
"""What pyarrow takes for no value."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a file writes its fields."""

    delimiter: str = ","
    decimal: str = "."


def open_csv(path: Path | None, target: ReadTarget) -> "CsvRows":
    """The records of a file, or of stdin for None.

    Raises InputError for columns that are not there, too many or few, for no record, and for a
    model that takes neither a text nor some numbers. Of stdin no more than the header is read yet.
    """
    with open_stream(path, keep=True) as stream:
        columns, dialect = read_csv_header(stream, target, path)
        head = stream.kept()
    rows = CsvRows(
        path=path,
        columns=columns,
        names=chosen_columns(display_name(path), columns, target, dialect.decimal),
        head=head,
        input=target.input,
        numbers=Numbers.of(target, dialect.decimal),
        delimiter=dialect.delimiter,
    )
    return looked_into(rows)


@dataclass(frozen=True, slots=True)
class CsvBlock:
    """Records without a quote, one a line, as they stand in a file."""

    lines_before: int
    count: int
    content: bytes

    def __len__(self) -> int:
        return self.count

    def rows(
        self, columns: Sequence[str], names: Sequence[str], numbers: Numbers, delimiter: str
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
                arrow_csv.ParseOptions(quote_char=False, delimiter=delimiter),
                arrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(read, pa.float64()),
                    include_columns=list(read),
                    null_values=list(NULLS) if numbers.missing else [],
                    decimal_point=numbers.decimal,
                ),
            )
        except pa.ArrowInvalid:
            return None
        wide = np.stack([table.column(keys[place]).to_numpy() for place in places], axis=1)
        if numbers.dtype.kind in "iu" and (np.abs(wide) >= 2**FLOAT_BITS).any():
            return None
        rows, good = numbers.convert(wide)
        return rows if good.all() else None


CsvRecords = Sequence[tuple[int, list[str]]]
"""The fields of each record, with the number of its last line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvRows(TableRows):
    """Comma-separated values whose first line names the columns; blank lines are no records."""

    delimiter: str

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """The records after the header; numbers in blocks where they are simple enough."""
        with open_stream(self.path, self.head) as stream:
            reader = CsvReader(stream, self.delimiter)
            reader.records(1)
            taken = reader.records if self.input.is_text else reader.block
            yield from chunks_of(stream, taken, size, start)

    def records(self, content: CsvBlock | CsvRecords) -> list[Record]:
        """The records of a chunk's content."""
        if isinstance(content, CsvBlock):
            lines = map(decode_line, io.BytesIO(content.content))
            reader = csv.reader(lines, delimiter=self.delimiter)
            content = list(_csv_records(reader, self.name, content.lines_before))
        places = [self.columns.index(name) for name in self.names]
        return [self._record(line, fields, places) for line, fields in content]

    def fast_rows(self, chunk: Chunk) -> Array | None:
        """The rows of a chunk, read all at once; None where a record needs a look of its own."""
        if isinstance(chunk.content, CsvBlock):
            rows = chunk.content.rows(self.columns, self.names, self.numbers, self.delimiter)
            if rows is not None:
                return rows
        # Without `super()`, which a class with slots does not have.
        return TableRows.fast_rows(self, chunk)

    def _record(self, line: int, fields: list[str], places: Sequence[int]) -> Record:
        place = f"line {line}: "
        if len(fields) != len(self.columns):
            fault = f"it has {len(fields)} fields, the header has {len(self.columns)}"
            return Record((), place, fault)
        return Record([fields[index] for index in places], place)


class CsvReader:
    """The records of a stream, taken some at a time and from front to back."""

    def __init__(self, stream: Stream, delimiter: str = ",") -> None:
        self.delimiter = delimiter
        self._name = stream.name
        self._lines = raw_lines(stream)
        self._first = FIRST_BYTES
        """Bytes that are still to be read record by record."""
        self._passed = 0
        """Lines that were read."""

    def line(self) -> bytes:
        """The next line that is not blank, to be put ahead of the next records; or nothing."""
        for line in self._lines:
            if line.strip():
                return line
            self._passed += 1
        return b""

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
        lines = map(decode_line, itertools.chain(ahead, self._lines))
        reader = csv.reader(lines, delimiter=self.delimiter)
        found = take(_csv_records(reader, self._name, self._passed), size)
        self._passed += reader.line_num
        return found


def read_csv_header(
    stream: Stream, target: ReadTarget, path: Path | None
) -> tuple[tuple[str, ...], Dialect]:
    """The names of the columns, and how the file is written; InputError when it has no header.

    Of stdin, which has no `path`, no more is read than the header, which does not tell what stands
    before decimals.
    """
    options, reader = target.options, CsvReader(stream)
    first = reader.line()
    asked = {"tab": "\t"}.get(options.delimiter or "", options.delimiter)
    named = asked or tabs_of(path)
    reader.delimiter = named or delimiter_of(decode_line(first))
    found, error = reader.records(1, [first])
    if error is not None:
        raise error
    if not found:
        raise DamagedError(stream.name, "is empty; its first line should name the columns")
    ((_, header),) = found
    fault = next(filter(None, map(text_fault, header)), None)
    if fault:
        raise InputError(f"{stream.name}: the name of a column {fault}")
    decimal = options.decimal
    numbers = not target.input.is_text and stream.digest is None
    if decimal is None and reader.delimiter != "," and numbers:
        decimal = _decimal_of(reader)
    dialect = Dialect(reader.delimiter, decimal or ".")
    if dialect.delimiter == dialect.decimal:
        raise InputError(f"{stream.name}: a comma divides its fields, and --decimal says ','")
    if (named or ",") != dialect.delimiter:
        target.say(stream.name, f"{dialect.delimiter!r} is taken to divide fields (--delimiter)")
    if (options.decimal or ".") != dialect.decimal:
        target.say(stream.name, "',' is taken to stand before decimals (--decimal)")
    return tuple(header), dialect


def tabs_of(path: Path | None) -> str | None:
    """A tab, where the name of a file says that it divides the fields."""
    return "\t" if path is not None and TABS.search(path.name) else None


def delimiter_of(header: str) -> str:
    """What divides the fields: that which stands most often in the header, a comma before others.

    Own data are read by the same rule, so that what trained a model is what it predicts of.
    """
    return max(DELIMITERS, key=header.count)


def _decimal_of(reader: CsvReader) -> str:
    """What stands before decimals: a comma where some of the first rows have one, none a point."""
    records, _ = reader.records(SAMPLE_ROWS)
    fields = list(itertools.chain.from_iterable(fields for _, fields in records))
    commas = any(map(WITH_COMMA.fullmatch, fields))
    return "," if commas and not any(map(WITH_POINT.fullmatch, fields)) else "."


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
