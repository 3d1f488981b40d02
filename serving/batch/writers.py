"""Write columns batch by batch: CSV, JSON Lines, Parquet or Arrow, into a file that appears whole.

The suffix of the output says which; without an output, rows go to stdout. Where a row has many
values in a column, CSV holds them as a flat JSON list, JSON Lines as nested lists, and Parquet and
Arrow as a flat list, whose shape is in the schema's metadata as `ferry.shape.NAME`.
"""

import contextlib
import csv
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from serving.batch.answers import ID, Column, Columns
from serving.errors import ModelError, UsageError, for_terminal
from serving.files import atomic_write, json_line
from serving.inputs.names import PACKED_SUFFIXES
from serving.inputs.sources import NumberedIds

Write = Callable[[Columns], None]
"""Takes one batch after the other, of the same columns; OSError when the disk is full."""
STREAM = "arrow stream"
# Cells of a group of rows: enough to compress well, little enough to hold in memory.
GROUP_CELLS = 1_000_000
PACKED_LEVEL = 6
LINES = ("csv", "jsonl")
FORMATS = (*LINES, "parquet", "arrow")
FOLDER_FORMAT = "parquet"
"""The format of an output without a suffix, which is a folder of shards."""
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
SUFFIXES = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}


def format_of(output: Path | None, asked: str | None, *, default: str) -> str:
    """The format asked for, or the suffix's; UsageError for none, and for Parquet on stdout.

    Lines that are compressed are "csv.gz", "jsonl.zst" and the like.
    """
    if output is None:
        chosen = asked or default
        if chosen == "parquet":
            raise UsageError("Parquet cannot go to stdout; name a file with --output")
        return chosen
    if is_folder(output):
        return asked or FOLDER_FORMAT
    packing = output.suffix.lower() if output.suffix.lower() in PACKED_SUFFIXES else ""
    suffix = Path(output.stem).suffix.lower() if packing else output.suffix.lower()
    form = asked or SUFFIXES.get(suffix)
    if form is None:
        known = ", ".join(SUFFIXES)
        raise UsageError(f"{output}: its suffix is none of {known}; choose with --format")
    if packing and form not in LINES:
        raise UsageError(f"{output}: only CSV and JSON Lines are written as {packing}")
    return form + packing


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
    safe: bool = False,
) -> Iterator[Write]:
    """What writes into `output` (None: stdout), which appears when the block ends well.

    `columns` are those of the first batch; nothing is written yet. `metadata` goes into the schema
    of Parquet and Arrow; on stdout Arrow is the streaming form. A CSV begins with its `header`,
    unless it is to follow another one; a `safe` one has a ' before what a spreadsheet would take
    for a formula. Raises OSError, which names the output.
    """
    if output is None and form == "arrow":
        form = STREAM
    form, _, packing = form.partition(".")
    try:
        with _opened(output) as whole, _packed(whole, packing) as file:
            if form == "csv":
                writer = _csv_writer(file, columns, header=header, safe=safe)
            elif form == "jsonl":
                writer = _json_lines_writer(file)
            else:
                writer = _arrow_writer(file, form, columns, metadata)
            with writer as write:
                yield write
    except OSError as error:
        # A full disk says only that it is full.
        if error.filename is None and not isinstance(error, BrokenPipeError):
            error.filename = str(output or "stdout")
        raise


@contextlib.contextmanager
def _opened(output: Path | None) -> Iterator[IO[bytes]]:
    if output is None:
        # Exact in a pipe; what is in a row may not command a terminal.
        yield cast("IO[bytes]", _Terminal()) if sys.stdout.buffer.isatty() else sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with atomic_write(output) as file:
        yield file


class _Terminal(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        text = bytes(content).decode("utf-8", "backslashreplace")
        sys.stdout.buffer.write(for_terminal(text).encode())
        return len(content)


@contextlib.contextmanager
def _packed(file: IO[bytes], packing: str) -> Iterator[IO[bytes]]:
    """What compresses into a file as "gz" or "zst"; for "" the file itself."""
    if packing == "gz":
        import gzip

        # The time is left out, so that the same rows are the same bytes.
        with gzip.GzipFile("", "wb", PACKED_LEVEL, file, mtime=0) as packed:
            yield cast("IO[bytes]", packed)
    elif packing == "zst":
        import pyarrow as pa

        twin = os.fdopen(os.dup(file.fileno()), "wb")  # which the stream will close
        with pa.CompressedOutputStream(pa.PythonFile(twin, "w"), "zstd") as packed:
            yield packed
    else:
        yield file


# Lines


@contextlib.contextmanager
def _csv_writer(file: IO[bytes], columns: Columns, *, header: bool, safe: bool) -> Iterator[Write]:
    def cells(values: Column) -> Iterable[object]:
        return map(_no_formula, _csv_cells(values)) if safe else _csv_cells(values)

    with _as_text(file) as text:
        table = csv.writer(text, lineterminator="\n")
        if header:
            table.writerow(map(_no_formula, columns) if safe else columns)
        yield lambda batch: table.writerows(zip(*map(cells, batch.values()), strict=True))


def _no_formula(cell: object) -> object:
    """A cell that no spreadsheet takes for a formula, as OWASP says: a text with a ' before."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell


@contextlib.contextmanager
def _json_lines_writer(file: IO[bytes]) -> Iterator[Write]:
    def write(batch: Columns) -> None:
        rows = zip(*map(_values, batch.values()), strict=True)
        records = (dict(zip(batch, row, strict=True)) for row in rows)
        text.write("".join(map(json_line, records)))

    with _as_text(file) as text:
        yield write


@contextlib.contextmanager
def _as_text(file: IO[bytes]) -> Iterator[io.TextIOWrapper]:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    try:
        yield text
    finally:
        text.detach()  # the file is its owner's to close


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


# Columns with types


def join_parts(file: IO[bytes], parts: Sequence[Path], form: str) -> None:
    """Write one file of several of the same columns: line by line, or group by group."""
    if form.partition(".")[0] in LINES:  # compressed ones in a row are one
        import shutil

        for part in parts:
            with part.open("rb") as lines:
                shutil.copyfileobj(lines, file)
        return
    import pyarrow as pa
    from pyarrow import parquet

    joined: Any = None
    for part in parts:
        if form == "parquet":
            with parquet.ParquetFile(part) as groups:
                joined = joined or arrow_file(file, form, groups.schema_arrow)
                for index in range(groups.num_row_groups):
                    table = groups.read_row_group(index)
                    joined.write_table(table, len(table))
        else:
            with pa.OSFile(str(part)) as source, pa.ipc.open_file(source) as batches:
                joined = joined or arrow_file(file, form, batches.schema)
                for index in range(batches.num_record_batches):
                    joined.write_batch(batches.get_batch(index))
    if joined is not None:
        joined.close()


@contextlib.contextmanager
def _arrow_writer(
    file: IO[bytes], form: str, columns: Columns, metadata: Mapping[str, str]
) -> Iterator[Write]:
    writer = ArrowWriter(file, form, columns, metadata)
    try:
        yield writer.write
        writer.flush()
    finally:
        writer.file.close()  # which writes the footer


class ArrowWriter:
    """Columns with types, in groups of some thousand rows, of Parquet or of Arrow."""

    def __init__(
        self, file: IO[bytes], form: str, columns: Columns, metadata: Mapping[str, str]
    ) -> None:
        import pyarrow as pa
        from pyarrow import compute

        self._arrow, self._compute = pa, compute
        self._shapes = {name: _shape(values) for name, values in columns.items()}
        shapes = {f"ferry.shape.{name}": json.dumps(s) for name, s in self._shapes.items() if s}
        fields = [(name, self._type(values)) for name, values in columns.items()]
        self._schema = pa.schema(fields, metadata={**metadata, **shapes})
        self.file = arrow_file(file, form, self._schema)
        cells = sum(math.prod(shape) for shape in self._shapes.values())
        self._group_rows = max(1, GROUP_CELLS // cells)
        self._waiting: list[Columns] = []
        self._waiting_rows = 0

    def write(self, columns: Columns) -> None:
        """Keep one batch, and write a group when there are enough; ModelError for another shape."""
        for name, values in columns.items():
            if _shape(values) != self._shapes[name]:
                raise ModelError(
                    f"output {name} has rows of shape {list(_shape(values))} after "
                    f"{list(self._shapes[name])}; write .jsonl, which takes both"
                )
        self._waiting.append(columns)
        self._waiting_rows += len(next(iter(columns.values())))
        if self._waiting_rows >= self._group_rows:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait, as one group."""
        if not self._waiting:
            return
        made = [self._array(field) for field in self._schema]
        table = self._arrow.Table.from_arrays(made, schema=self._schema)
        self.file.write_table(table, len(table))
        self._waiting, self._waiting_rows = [], 0

    def _texts(self, part: Column) -> Any:
        """Ids as Arrow's strings; numbered ones without an object for each."""
        if not isinstance(part, NumberedIds):
            return self._arrow.array(part, self._arrow.string())
        numbers = np.arange(part.start, part.start + part.length)
        counted = self._compute.cast(self._arrow.array(numbers), self._arrow.string())
        return self._compute.binary_join_element_wise(part.name, counted, ":")

    def _type(self, values: Column) -> Any:
        if isinstance(values, NumberedIds):
            return self._arrow.string()
        text = values.dtype.kind in "OUT"
        one = self._arrow.string() if text else self._arrow.from_numpy_dtype(values.dtype)
        return self._arrow.list_(one) if values.ndim > 1 else one

    def _array(self, field: Any) -> Any:
        """A column of all the rows that wait."""
        parts = [columns[field.name] for columns in self._waiting]
        if field.name == ID:
            return self._arrow.concat_arrays([self._texts(part) for part in parts])
        values = np.concatenate([np.asarray(part) for part in parts])
        if values.ndim == 1:
            return self._arrow.array(values, type=field.type)
        size = math.prod(values.shape[1:])
        offsets = self._arrow.array(np.arange(len(values) + 1) * size, self._arrow.int32())
        flat = self._arrow.array(values.reshape(-1), type=field.type.value_type)
        return self._arrow.ListArray.from_arrays(offsets, flat)


def arrow_file(file: IO[bytes], form: str, schema: Any) -> Any:
    """A file of a schema, of Parquet or of one of Arrow's two forms, that takes tables."""
    from pyarrow import ipc, parquet

    if form == "parquet":
        # No two ids are alike: a dictionary of them would be built, and dropped.
        words = [name for name in schema.names if name != ID]
        return parquet.ParquetWriter(file, schema, use_dictionary=words)
    return (ipc.new_stream if form == STREAM else ipc.new_file)(file, schema)


def _shape(values: Column) -> tuple[int, ...]:
    """The shape of the values of one row."""
    return () if isinstance(values, NumberedIds) else values.shape[1:]
