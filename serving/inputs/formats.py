"""Named columns of CSV and JSON Lines, of files and of stdin, cut into chunks of raw records.

Nothing is ever held in memory; what is wrong with one record is told in it.
"""

import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serving.errors import InputError
from serving.inputs.items import Chunk
from serving.inputs.lines import decoded_lines, text_fault
from serving.inputs.streams import Stream, cut, name_of, opened


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file."""

    values: Sequence[object]
    """Of the columns asked for, in that order; none where there is a fault."""
    place: str
    """Where in the file it is, "line 14: "."""
    fault: str | None = None


class ColumnFile(Protocol):
    """Lines with named columns, of a file, or of stdin where the path is None."""

    @property
    def path(self) -> str | None:
        """The file."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names, as they stand in the file."""

    def chunks(self, size: int, start: int) -> Iterator[Chunk]:
        """Records that are not looked into, `size` at a time, from the one at `start` on."""

    def records(self, names: Sequence[str], content: Any) -> list[Record]:
        """The records of a chunk's content, with the values of the columns `names`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvFile:
    """Comma-separated values whose first line names the columns; blank lines are no records."""

    path: str | None
    columns: tuple[str, ...]
    head: bytes
    """The first lines, where stdin was read up to its header."""

    def chunks(self, size: int, start: int) -> Iterator[Chunk]:
        """The fields of the records after the header, each with the number of its last line."""
        with opened(self.path, self.head) as stream:
            yield from cut(stream, itertools.islice(_csv_records(stream), 1, None), size, start)

    def records(self, names: Sequence[str], content: Any) -> list[Record]:
        """The records of a chunk's content."""
        at = [self.columns.index(name) for name in names]
        return [self._record(line, fields, at) for line, fields in content]

    def _record(self, line: int, fields: list[str], at: Sequence[int]) -> Record:
        place = f"line {line}: "
        if len(fields) != len(self.columns):
            fault = f"it has {len(fields)} fields, the header has {len(self.columns)}"
            return Record((), place, fault)
        return Record([fields[index] for index in at], place)


def open_csv(path: str | None) -> CsvFile:
    """Look at the header of a file, or of stdin; InputError when it has none."""
    name = name_of(path)
    with opened(path) as stream:
        stream.keep()
        _, header = next(_csv_records(stream), (0, []))
        if not header:
            raise InputError(f"{name} is empty; its first line should name the columns")
        fault = next(filter(None, map(text_fault, header)), None)
        if fault:
            raise InputError(f"{name}: the name of a column {fault}")
        return CsvFile(path=path, columns=tuple(header), head=stream.kept())


def _csv_records(stream: Stream) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank, each with the number of its last line."""
    reader = csv.reader(decoded_lines(stream))
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise InputError(f"{stream.name}: line {reader.line_num}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLinesFile:
    """One JSON object a line; the first one names the columns, blank lines are no records."""

    path: str | None
    columns: tuple[str, ...]
    head: bytes
    """The first lines, where stdin was read up to its first record."""

    def chunks(self, size: int, start: int) -> Iterator[Chunk]:
        """The lines with a record, with their numbers."""
        with opened(self.path, self.head) as stream:
            yield from cut(stream, _json_lines(stream), size, start)

    def records(self, names: Sequence[str], content: Any) -> list[Record]:
        """The records of a chunk's content."""
        return [_json_record(names, line, f"line {number}: ") for number, line in content]


def open_json_lines(path: str | None) -> JsonLinesFile:
    """Look at the first record of a file, or of stdin; InputError when it is no object."""
    with opened(path) as stream:
        stream.keep()
        _, line = next(_json_lines(stream), (0, ""))
        first = _json_object(line)
        if not first:
            raise InputError(
                f"{stream.name}: line 1 should be a JSON object with the columns as its keys"
            )
        return JsonLinesFile(path=path, columns=tuple(first), head=stream.kept())


def _json_lines(stream: Stream) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    lines = enumerate(decoded_lines(stream), start=1)
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
