"""Rows of Parquet and Arrow files, and of Arrow's stream on stdin, record batch by record batch.

What is being decoded is in memory, and no more. An Arrow file of record batches that are too large
for that is mapped, and what was read of it is let go.
"""

import io
import mmap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pyarrow import ipc, parquet

from serving.errors import DamagedError, InputError
from serving.inputs.sources import Batch, Chunk, FileRows, ReadTarget, display_name, refuse_broken
from serving.inputs.streams import Stream, open_stream
from serving.inputs.tables.arrow_columns import (
    ColumnReader,
    ImageColumn,
    as_bytes,
    choose_columns,
    without_extension,
)

Form = Literal["parquet", "file", "stream"]
"""Arrow's own two: a file begins and ends with a mark, and tells where its batches are."""
FILE_MARK = b"ARROW1"
BUFFER_BYTES = 1 << 20
MOST_BATCH_BYTES = 64 << 20
"""Of the record batches of an Arrow file, on average, for it to be read and not mapped: a mapped
file that another program cuts short ends this one."""
WINDOW_BYTES = 32 << 20
"""Of a mapped file, after which what was read is let go."""
ERRORS = (pa.ArrowException, OSError, ValueError, MemoryError)


class RecordBatches:
    """Record batches that make a chunk; they can be sent to other processes."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return sum(one.num_rows for one in self.batches)

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        # pyarrow by itself would send the whole buffers, of which these are slices.
        sink = io.BytesIO()
        with ipc.new_stream(sink, self.batches[0].schema) as writer:
            for batch in self.batches:
                writer.write_batch(batch)
        return _unpacked, (sink.getvalue(),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrowRows(FileRows):
    """The rows of a file, or of stdin."""

    form: Form
    count: int | None
    reader: ColumnReader
    columns: tuple[str, ...]
    """What is read of a Parquet file, by path within the columns."""
    head: bytes
    """What was read of stdin to know the columns."""

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """Slices of record batches, `size` rows at a time; InputError for stdin without a row."""
        names = list(dict.fromkeys(self.reader.names))
        with (
            refuse_broken(self.name, "cannot be read to its end", ERRORS),
            open_stream(self.path, self.head) as stream,
        ):
            for pieces in self._pieces(stream, size, start):
                content = RecordBatches([piece.select(names) for piece in pieces])
                count = len(content)
                yield Chunk(start=start, count=count, content=content, digest=stream.digest)
                start += count
        if not start:
            raise DamagedError(self.name, "holds no rows")

    def decode(self, chunk: Chunk) -> Batch:
        """The rows of a chunk; InputError for one that is no sound record batch."""
        batches = chunk.content.batches
        ids = self.ids(chunk.start, len(chunk.content))
        with refuse_broken(self.name, f"is damaged after row {chunk.start}", ERRORS):
            return self.reader.batch(ids, [_joined(batches, name) for name in self.reader.names])

    def _pieces(self, stream: Stream, size: int, start: int) -> Iterator[list[Any]]:
        if self.form == "stream":
            return _recut(_from(ipc.open_stream(stream), start), size)
        path = self.path or Path()
        if self.form == "parquet":
            return _recut(_of_parquet(path, self.columns, size, start), size)
        return _recut(_from(_of_file(path), start), size)


def open_arrow(path: Path | None, target: ReadTarget) -> ArrowRows:
    """The rows of a Parquet or an Arrow file, or of stdin for None.

    Whole rows in one column are taken before numbers in many. Raises InputError for what cannot be
    read or holds no row, and for columns that do not fit the model or leave a choice.
    """
    name, form = display_name(path), _form_of(path)
    kind = "Parquet" if form == "parquet" else "Arrow"
    with refuse_broken(name, f"is no {kind} file to read", ERRORS):
        schema, count, head = _look(path, form)
    reader, columns = choose_columns(name, schema, target)
    rows = ArrowRows(
        path=path,
        slow=isinstance(reader, ImageColumn),
        form=form,
        count=count,
        reader=reader,
        columns=columns,
        head=head,
    )
    if path is not None:
        next(rows.chunks(1))
    return rows


def _form_of(path: Path | None) -> Form:
    if path is None:
        return "stream"
    if path.suffix.lower() in (".parquet", ".pq"):
        return "parquet"
    with path.open("rb") as file:
        return "file" if file.read(len(FILE_MARK)) == FILE_MARK else "stream"


def _look(path: Path | None, form: Form) -> tuple[Any, int | None, bytes]:
    """The schema, the number of rows where it is told, and what was read of stdin."""
    if path is None or form == "stream":
        with open_stream(path, keep=True) as stream:
            return ipc.open_stream(stream).schema, None, stream.kept()
    if form == "parquet":
        with parquet.ParquetFile(path) as file:
            return file.schema_arrow, file.metadata.num_rows, b""
    from pyarrow import dataset

    content = pa.py_buffer(_mapped(path))
    schema = ipc.open_file(pa.BufferReader(content)).schema
    # It counts without reading, but not where a name stands for several columns.
    counted = len(set(schema.names)) == len(schema.names)
    rows = dataset.IpcFileFormat().make_fragment(content).count_rows() if counted else None
    return schema, rows, b""


def _of_parquet(path: Path, columns: Sequence[str], size: int, start: int) -> Iterator[Any]:
    """Record batches from the row `start` on; the row groups before it are not read."""
    # Buffered, a row group is read page by page, however large it is.
    with parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
        first = 0
        while first < file.num_row_groups and start >= file.metadata.row_group(first).num_rows:
            start -= file.metadata.row_group(first).num_rows
            first += 1
        batches = file.iter_batches(
            batch_size=size,
            row_groups=list(range(first, file.num_row_groups)),
            columns=list(dict.fromkeys(columns)),
        )
        yield from _from(batches, start)


def _of_file(path: Path) -> Iterator[Any]:
    with pa.OSFile(str(path)) as file:
        reader = ipc.open_file(file)
        if file.size() <= MOST_BATCH_BYTES * reader.num_record_batches:
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)
            return
    yield from _of_large_batches(path)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _of_large_batches(path: Path) -> Iterator[Any]:
    """Slices of the record batches, with what was read of the file out of the memory."""
    mapped = _mapped(path)
    reader = ipc.open_file(pa.BufferReader(pa.py_buffer(mapped)))
    for index in range(reader.num_record_batches):
        batch = reader.get_batch(index)
        batch.validate()
        rows = max(1, batch.num_rows * WINDOW_BYTES // max(1, batch.nbytes))
        for start in range(0, batch.num_rows, rows):
            if path.stat().st_size < len(mapped):
                raise InputError(f"{path} changed while it was read: it has become shorter")
            yield batch.slice(start, rows)
            # What is still in use is read again from the file.
            mapped.madvise(mmap.MADV_DONTNEED)


def _from(batches: Iterable[Any], start: int) -> Iterator[Any]:
    """What follows the first `start` rows."""
    for batch in batches:
        batch.validate()
        if start < batch.num_rows:
            yield batch.slice(start)
        start = max(0, start - batch.num_rows)


def _recut(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Slices of batches that have `size` rows together; the last have fewer."""
    pieces: list[Any] = []
    missing = size
    for batch in batches:
        at = 0
        while batch.num_rows - at >= missing:
            yield [*pieces, batch.slice(at, missing)]
            at += missing
            pieces, missing = [], size
        if at < batch.num_rows:
            pieces.append(batch.slice(at))
            missing -= batch.num_rows - at
    if pieces:
        yield pieces


def _joined(batches: Sequence[Any], name: str) -> Any:
    """A column of all batches, sound and of a plain type."""
    columns = []
    for batch in batches:
        column = batch.column(name)
        as_bytes(column).validate(full=True)
        columns.append(without_extension(column))
    return columns[0] if len(columns) == 1 else pa.concat_arrays(columns)


def _unpacked(content: bytes) -> RecordBatches:
    return RecordBatches(list(ipc.open_stream(content)))
