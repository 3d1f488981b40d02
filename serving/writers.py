"""Write predictions batch by batch, as CSV, JSON Lines or Parquet, into a file that appears whole.

The suffix of the output says which; without an output, rows go to stdout.
"""

import contextlib
import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from serving.errors import UsageError
from serving.files import atomic_write
from serving.model import Prediction

__all__ = ["FORMATS", "Columns", "Writer", "format_of", "open_writer"]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What is written of each row."""

    score: str
    """The name of the score: "probability", or "score" where it is none."""
    classes: tuple[str, ...]
    """The labels whose scores are written too, all or none of them."""

    @property
    def names(self) -> tuple[str, ...]:
        """The header."""
        return ("id", "label", "label_index", self.score, *self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One column per class: `probability_cat`."""
        return tuple(f"{self.score}_{label}" for label in self.classes)


class Writer(Protocol):
    """Takes predictions batch by batch."""

    def write(self, ids: Sequence[str], prediction: Prediction) -> None:
        """Write one batch; OSError when the disk is full."""


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
        self._columns = columns
        self._csv = csv.writer(file, lineterminator="\n")
        self._csv.writerow(columns.names)

    def write(self, ids: Sequence[str], prediction: Prediction) -> None:
        """Write one batch."""
        self._csv.writerows(_rows(ids, prediction, self._columns))


class JsonLinesWriter:
    """One JSON object a line."""

    def __init__(self, file: IO[str], columns: Columns) -> None:
        self._columns = columns
        self._file = file

    def write(self, ids: Sequence[str], prediction: Prediction) -> None:
        """Write one batch."""
        names = self._columns.names
        lines = [
            json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, allow_nan=False)
            for row in _rows(ids, prediction, self._columns)
        ]
        self._file.write("".join(f"{line}\n" for line in lines))


class ParquetWriter:
    """Columns with types, in row groups of some thousand rows."""

    def __init__(self, file: IO[bytes], columns: Columns, metadata: Mapping[str, str]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self._arrow = pa
        self._columns = columns
        floats = [(name, pa.float32()) for name in (columns.score, *columns.class_names)]
        first = [("id", pa.string()), ("label", pa.string())]
        fields = [*first, ("label_index", pa.int64()), *floats]
        self._schema = pa.schema(fields, metadata=dict(metadata))
        self._file = parquet.ParquetWriter(file, self._schema)
        self._group_rows = max(1, GROUP_CELLS // len(fields))
        self._waiting: list[tuple[Sequence[str], Prediction]] = []

    def write(self, ids: Sequence[str], prediction: Prediction) -> None:
        """Keep one batch, and write a row group when there are enough."""
        self._waiting.append((ids, prediction))
        if sum(len(batch) for _, batch in self._waiting) >= self._group_rows:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait, as one row group."""
        if not self._waiting:
            return
        scores = np.concatenate([batch.scores for _, batch in self._waiting])
        arrays = [
            [name for ids, _ in self._waiting for name in ids],
            [label for _, batch in self._waiting for label in batch.label],
            np.concatenate([batch.label_index for _, batch in self._waiting]),
            np.concatenate([batch.score for _, batch in self._waiting]),
            *(scores[:, index] for index in range(len(self._columns.classes))),
        ]
        made = [
            self._arrow.array(array, type=field.type)
            for array, field in zip(arrays, self._schema, strict=True)
        ]
        table = self._arrow.Table.from_arrays(made, schema=self._schema)
        self._file.write_table(table, row_group_size=len(table))
        self._waiting = []

    def close(self) -> None:
        """Write the footer."""
        self._file.close()


def _rows(ids: Sequence[str], prediction: Prediction, columns: Columns) -> Iterator[list[object]]:
    scores = _shortest(prediction.scores) if columns.classes else [[]] * len(ids)
    cells = zip(
        ids,
        prediction.label,
        prediction.label_index.tolist(),
        _shortest(prediction.score),
        scores,
        strict=True,
    )
    for name, label, index, score, more in cells:
        yield [name, label, index, score, *more]


def _shortest(values: npt.NDArray[np.float32]) -> list[Any]:
    """As Python floats, each the shortest number that reads back as the same float32."""
    shortest: list[Any] = values.astype(np.str_).astype(np.float64).tolist()
    return shortest
