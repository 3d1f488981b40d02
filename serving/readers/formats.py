"""Named columns of CSV, JSON Lines and Parquet files, streamed record by record.

No file is ever held in memory; what is wrong with one record is told in it.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from serving.errors import InputError
from serving.readers.items import reason_of
from serving.readers.lines import decoded_lines, text_fault

__all__ = ["COLUMN_SUFFIXES", "ColumnFile", "Record", "open_column_file"]

PARQUET_ROWS = 1024
COLUMN_SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet", ".pq")


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file."""

    values: Sequence[object]
    """Of the columns asked for, in that order; none where there is a fault."""
    place: str
    """Where in the file it is, "line 14: ", or "" for a file without lines."""
    fault: str | None = None


class ColumnFile(Protocol):
    """A file with named columns."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names, as they stand in the file."""

    @property
    def count(self) -> int | None:
        """The number of records, or None where only reading it all would tell."""

    def records(self, names: Sequence[str]) -> Iterator[Record]:
        """The records, with the values of the columns `names`."""


def open_column_file(path: Path) -> ColumnFile:
    """Look at the columns of a file; InputError when it has none or cannot be read."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _open_csv(path)
    if suffix in (".parquet", ".pq"):
        return _open_parquet(path)
    return _open_json_lines(path)


@dataclass(frozen=True, slots=True)
class CsvFile:
    """Comma-separated values whose first line names the columns; blank lines are no records."""

    path: Path
    columns: tuple[str, ...]
    count: None = None

    def records(self, names: Sequence[str]) -> Iterator[Record]:
        """The records after the header."""
        at = [self.columns.index(name) for name in names]
        for line, fields in _csv_records(self.path, skip=1):
            place = f"line {line}: "
            if len(fields) == len(self.columns):
                yield Record([fields[index] for index in at], place)
            else:
                fault = f"it has {len(fields)} fields, the header has {len(self.columns)}"
                yield Record((), place, fault)


def _open_csv(path: Path) -> CsvFile:
    _, header = next(_csv_records(path), (0, []))
    if not header:
        raise InputError(f"{path} is empty; its first line should name the columns")
    fault = next(filter(None, map(text_fault, header)), None)
    if fault:
        raise InputError(f"{path}: the name of a column {fault}")
    return CsvFile(path, tuple(header))


def _csv_records(path: Path, skip: int = 0) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank, each with the number of its last line."""
    reader = csv.reader(decoded_lines(path))
    try:
        for fields in reader:
            if fields and skip:
                skip -= 1
            elif fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}") from error


@dataclass(frozen=True, slots=True)
class JsonLinesFile:
    """One JSON object a line; the first one names the columns, blank lines are no records."""

    path: Path
    columns: tuple[str, ...]
    count: None = None

    def records(self, names: Sequence[str]) -> Iterator[Record]:
        """The records, from the first line."""
        for number, line in _json_lines(self.path):
            record, place = _json_object(line), f"line {number}: "
            missing = [name for name in names if record is None or name not in record]
            if record is None:
                yield Record((), place, "it is not a JSON object")
            elif missing:
                yield Record((), place, f"it has no {missing[0]!r}")
            else:
                yield Record([record[name] for name in names], place)


def _open_json_lines(path: Path) -> JsonLinesFile:
    _, line = next(_json_lines(path), (0, ""))
    first = _json_object(line)
    if not first:
        raise InputError(f"{path}: line 1 should be a JSON object with the columns as its keys")
    return JsonLinesFile(path, tuple(first))


def _json_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    lines = enumerate(decoded_lines(path), start=1)
    return ((number, line) for number, line in lines if line.strip())


def _json_object(line: str) -> dict[str, object] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


@dataclass(frozen=True, slots=True)
class ParquetFile:
    """A Parquet file, read in batches of some columns."""

    path: Path
    columns: tuple[str, ...]
    count: int

    def records(self, names: Sequence[str]) -> Iterator[Record]:
        """The records of all row groups."""
        for batch in _parquet_batches(self.path, names):
            columns = {name: batch.column(name).to_pylist() for name in names}
            for values in zip(*(columns[name] for name in names), strict=True):
                yield Record(values, "")


def _open_parquet(path: Path) -> ParquetFile:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            return ParquetFile(path, tuple(file.schema_arrow.names), file.metadata.num_rows)
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} is no Parquet file to read: {reason_of(error)}") from error


def _parquet_batches(path: Path, names: Sequence[str]) -> Iterator[Any]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(
                batch_size=PARQUET_ROWS, columns=list(dict.fromkeys(names))
            )
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read to its end: {reason_of(error)}") from error
