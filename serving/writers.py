"""Write columns batch by batch, as CSV, JSON Lines or Parquet, into a file that appears whole.

The suffix of the output says which; without an output, rows go to stdout. Where a row has many
values in a column, CSV holds them as a flat JSON list, JSON Lines as nested lists, and Parquet as a
flat list, whose shape is in the schema's metadata as `ferry.shape.NAME`.
"""

import contextlib
import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from serving.answers import Columns
from serving.errors import ModelError, UsageError
from serving.files import atomic_write

__all__ = ["FORMATS", "Writer", "format_of", "open_writer"]

Array = npt.NDArray[Any]

FORMATS = ("csv", "jsonl", "parquet")
SUFFIXES = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
# Cells of a Parquet row group: enough to compress well, little enough to hold in memory.
GROUP_CELLS = 1_000_000


class Writer(Protocol):
    """Takes columns batch by batch."""

    def write(self, columns: Columns) -> None:
        """Write one batch of the same columns; OSError when the disk is full."""


def format_of(output: Path | None, asked: str | None, *, default: str) -> str:
    """The format of an output: the one asked for, or that of its suffix.

    Raises UsageError for a suffix that says nothing, and for Parquet on stdout.
    """
    if output is None:
        chosen = asked or default
        if chosen == "parquet":
            raise UsageError("Parquet cannot go to stdout; name a file with --output")
        return chosen
    if asked:
        return asked
    if output.suffix.lower() not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise UsageError(f"{output}: its suffix is none of {known}; choose with --format")
    return SUFFIXES[output.suffix.lower()]


@contextlib.contextmanager
def open_writer(
    output: Path | None, form: str, columns: Columns, metadata: Mapping[str, str]
) -> Iterator[Writer]:
    """A writer into `output` (None: stdout), which appears when the block ends well.

    `columns` are those of the first batch: their names, dtypes and shapes. Nothing is written yet.
    `metadata` goes into the schema of a Parquet file; the text formats have no place for it.
    Raises OSError naming the output when it cannot be written.
    """
    try:
        with _opened(output) as file, _writer(file, form, columns, metadata) as writer:
            yield writer
    except OSError as error:
        # A full disk says only that it is full.
        if error.filename is None and not isinstance(error, BrokenPipeError):
            error.filename = str(output or "stdout")
        raise


@contextlib.contextmanager
def _opened(output: Path | None) -> Iterator[IO[bytes]]:
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with atomic_write(output) as file:
        yield file


@contextlib.contextmanager
def _writer(
    file: IO[bytes], form: str, columns: Columns, metadata: Mapping[str, str]
) -> Iterator[Writer]:
    if form == "parquet":
        parquet = ParquetWriter(file, columns, metadata)
        try:
            yield parquet
            parquet.flush()
        finally:
            parquet.close()
        return
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    try:
        yield CsvWriter(text, columns) if form == "csv" else JsonLinesWriter(text, columns)
    finally:
        text.detach()  # the file is its owner's to close


class CsvWriter:
    """Comma-separated values with a header, lines ended by a newline alone."""

    def __init__(self, file: IO[str], columns: Columns) -> None:
        self._csv = csv.writer(file, lineterminator="\n")
        self._csv.writerow(columns)

    def write(self, columns: Columns) -> None:
        """Write one batch."""
        self._csv.writerows(zip(*map(_csv_cells, columns.values()), strict=True))


class JsonLinesWriter:
    """One JSON object a line."""

    def __init__(self, file: IO[str], columns: Columns) -> None:
        self._names = tuple(columns)
        self._file = file

    def write(self, columns: Columns) -> None:
        """Write one batch."""
        rows = zip(*map(_values, columns.values()), strict=True)
        lines = [
            json.dumps(
                dict(zip(self._names, row, strict=True)), ensure_ascii=False, allow_nan=False
            )
            for row in rows
        ]
        self._file.write("".join(f"{line}\n" for line in lines))


class ParquetWriter:
    """Columns with types, in row groups of some thousand rows."""

    def __init__(self, file: IO[bytes], columns: Columns, metadata: Mapping[str, str]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self._arrow = pa
        self._shapes = {name: values.shape[1:] for name, values in columns.items()}
        told = {f"ferry.shape.{name}": json.dumps(s) for name, s in self._shapes.items() if s}
        fields = [(name, self._type(values)) for name, values in columns.items()]
        self._schema = pa.schema(fields, metadata={**metadata, **told})
        self._file = parquet.ParquetWriter(file, self._schema)
        cells = sum(math.prod(shape) for shape in self._shapes.values())
        self._group_rows = max(1, GROUP_CELLS // cells)
        self._waiting: list[Columns] = []
        self._waiting_rows = 0

    def write(self, columns: Columns) -> None:
        """Keep one batch, and write a row group when there are enough.

        Raises ModelError when a row's values have another shape than those of the first batch.
        """
        for name, values in columns.items():
            if values.shape[1:] != self._shapes[name]:
                raise ModelError(
                    f"output {name} has rows of shape {list(values.shape[1:])} after "
                    f"{list(self._shapes[name])}; write .jsonl, which takes both"
                )
        self._waiting.append(columns)
        self._waiting_rows += len(next(iter(columns.values())))
        if self._waiting_rows >= self._group_rows:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait, as one row group."""
        if not self._waiting:
            return
        made = [self._array(field) for field in self._schema]
        table = self._arrow.Table.from_arrays(made, schema=self._schema)
        self._file.write_table(table, row_group_size=len(table))
        self._waiting, self._waiting_rows = [], 0

    def close(self) -> None:
        """Write the footer."""
        self._file.close()

    def _type(self, values: Array) -> Any:
        text = values.dtype.kind in "OUT"
        one = self._arrow.string() if text else self._arrow.from_numpy_dtype(values.dtype)
        return self._arrow.list_(one) if values.ndim > 1 else one

    def _array(self, field: Any) -> Any:
        """A column of all the rows that wait."""
        values = np.concatenate([columns[field.name] for columns in self._waiting])
        if values.ndim == 1:
            return self._arrow.array(values, type=field.type)
        size = math.prod(values.shape[1:])
        offsets = self._arrow.array(np.arange(len(values) + 1) * size, self._arrow.int32())
        flat = self._arrow.array(values.reshape(-1), type=field.type.value_type)
        return self._arrow.ListArray.from_arrays(offsets, flat)


def _csv_cells(values: Array) -> Iterable[object]:
    """One cell a row; a row of many values is a flat JSON list."""
    if values.ndim == 1:
        return _values(values)
    flat = values.reshape(len(values), -1)
    if values.dtype.kind == "f":  # what numpy writes is JSON, and ten times as fast
        return (f"[{', '.join(row)}]" for row in flat.astype(np.str_).tolist())
    return (json.dumps(row, ensure_ascii=False) for row in flat.tolist())


def _values(values: Array) -> list[Any]:
    """As Python values; a float is the shortest number that reads back as the same."""
    if values.dtype.kind == "f" and values.dtype != np.float64:
        values = values.astype(np.str_).astype(np.float64)
    listed: list[Any] = values.tolist()
    return listed
