"""Write columns batch by batch: CSV, JSON Lines, Parquet or Arrow, into a file that appears whole.

The suffix of the output says which; without an output, rows go to stdout. Where a row has many
values in a column, CSV holds them as a flat JSON list, JSON Lines as nested lists, and Parquet and
Arrow as a flat list, whose shape is in the schema's metadata as `ferry.shape.NAME`.
"""

import contextlib
import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from serving.answers import Column, Columns
from serving.arrow_writer import STREAM, ArrowWriter, arrow_file
from serving.errors import UsageError
from serving.files import atomic_write
from serving.readers.items import NumberedIds

__all__ = ["FOLDER_FORMAT", "FORMATS", "Writer", "format_of", "is_folder", "open_writer"]

Array = npt.NDArray[Any]

FORMATS = ("csv", "jsonl", "parquet", "arrow")
FOLDER_FORMAT = "parquet"
"""Of an output without a suffix, which is a folder of shards."""
SUFFIXES = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}


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
    if is_folder(output):
        return FOLDER_FORMAT
    if output.suffix.lower() not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise UsageError(f"{output}: its suffix is none of {known}; choose with --format")
    return SUFFIXES[output.suffix.lower()]


def is_folder(output: Path) -> bool:
    """Whether an output is a folder of shards: it has no suffix, or is a folder with any name."""
    return output.suffix.lower() not in SUFFIXES and (not output.suffix or output.is_dir())


@contextlib.contextmanager
def open_writer(
    output: Path | None,
    form: str,
    columns: Columns,
    metadata: Mapping[str, str],
    *,
    header: bool = True,
) -> Iterator[Writer]:
    """A writer into `output` (None: stdout), which appears when the block ends well.

    `columns` are those of the first batch: their names, dtypes and shapes. Nothing is written yet.
    `metadata` goes into the schema of a Parquet or Arrow file; the text formats have no place for
    it. A CSV begins with its `header`, unless it is to follow another one. On stdout Arrow is the
    streaming form, in a file the one with random access.
    Raises OSError naming the output when it cannot be written.
    """
    if output is None and form == "arrow":
        form = STREAM
    try:
        with (
            _opened(output) as file,
            _writer(file, form, columns, metadata, header=header) as writer,
        ):
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
    file: IO[bytes], form: str, columns: Columns, metadata: Mapping[str, str], *, header: bool
) -> Iterator[Writer]:
    if form not in ("csv", "jsonl"):
        made = arrow_file(file, form)
        arrow = ArrowWriter(made, columns, metadata)
        try:
            yield arrow
            arrow.flush()
        finally:
            arrow.close()
        return
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    try:
        yield (
            CsvWriter(text, columns, header=header)
            if form == "csv"
            else JsonLinesWriter(text, columns)
        )
    finally:
        text.detach()  # the file is its owner's to close


class CsvWriter:
    """Comma-separated values, lines ended by a newline alone."""

    def __init__(self, file: IO[str], columns: Columns, *, header: bool) -> None:
        self._csv = csv.writer(file, lineterminator="\n")
        if header:
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


def _csv_cells(values: Column) -> Iterable[object]:
    """One cell a row; a row of many values is a flat JSON list."""
    if isinstance(values, NumberedIds) or values.ndim == 1:
        return _values(values)
    flat = values.reshape(len(values), -1)
    if values.dtype.kind == "f":  # what numpy writes is JSON, and ten times as fast
        return (f"[{', '.join(row)}]" for row in flat.astype(np.str_).tolist())
    return (json.dumps(row, ensure_ascii=False) for row in flat.tolist())


def _values(values: Column) -> list[Any]:
    """As Python values; a float is the shortest number that reads back as the same."""
    if isinstance(values, NumberedIds):
        return list(values)
    if values.dtype.kind == "f" and values.dtype != np.float64:
        values = values.astype(np.str_).astype(np.float64)
    listed: list[Any] = values.tolist()
    return listed
