"""Rows of `.npy`, `.npz` and IDX files, read where they lie or decompressed on the way.

No more is read at a time than the chunks that are in use, whatever the size of the file. It is not
mapped: a file that is cut short by another program would end this one. Nothing is ever unpickled.
"""

import contextlib
import functools
import io
import math
import struct
import tokenize
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import numpy as np

from serving.errors import DamagedError, InputError, listed
from serving.inputs.names import ARRAY_SUFFIXES
from serving.inputs.sources import (
    Batch,
    Chunk,
    FileRows,
    ReadTarget,
    reason_of,
    refuse_broken,
    value_or_reason,
)
from serving.inputs.streams import Stream, open_stream
from serving.runtime.tensors import Array

if TYPE_CHECKING:
    from serving.inputs.tables.columns import Numbers

ARRAY_NAMES = ("images", "features", "text", "input", "inputs")
UINT8 = np.dtype(np.uint8)
IDX_BYTES = 8
"""The code of an IDX file whose values are bytes."""
BLOCK_BYTES = 1 << 20
GZIP_ERRORS = (OSError, EOFError, MemoryError, zlib.error)
# What numpy, gzip and, beside its own, zipfile raise on broken files.
READING_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    OverflowError,
    RuntimeError,
    MemoryError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What an array is."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    in_columns: bool = False
    """Whether the first axis is the fastest, as in Fortran."""

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def refuse_other(self, size: int, name: str) -> None:
        """ValueError where `size` bytes are not as many as those of the values."""
        wanted = self.dtype.itemsize * math.prod(self.shape)
        if size != wanted:
            how = "is cut short" if size < wanted else f"goes on after the {self.shape[0]} rows"
            raise ValueError(f"the array {name} {how}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayFile(FileRows):
    """The array whose rows are read."""

    header: ArrayHeader
    """Its shape is [rows, ...], as the model takes them."""
    offset: int
    """The bytes before the first value."""
    numbers: "Numbers | None"
    """What the values become; None for texts, and for what is neither integer nor float."""

    @property
    def count(self) -> int:
        """The number of rows, as the header tells it."""
        return self.header.shape[0]

    def batch(self, start: int, rows: Array) -> Batch:
        """A batch of rows as they lie; what the model cannot take is named."""
        ids = self.ids(start, len(rows))
        if self.numbers is None or self.numbers.fit(rows):
            return Batch(ids=ids, rows=rows)
        made, good = self.numbers.convert(rows)
        whole = good.reshape(len(rows), -1).all(axis=1)
        faults = {}
        for index in map(int, np.flatnonzero(~whole)):
            wrong = rows[index][~good[index]].reshape(-1)[0].item()
            faults[index] = str(value_or_reason(functools.partial(self.numbers.one, None), wrong))
        return Batch(ids=ids, rows=made[whole] if faults else made, faults=faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainRows(ArrayFile):
    """Those of an array that lies in a file as it lies in memory."""

    path: Path

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """Nothing but numbers: whoever decodes a chunk reads its rows."""
        for first in range(start, self.count, size):
            yield Chunk(start=first, count=min(size, self.count - first), content=None)

    def decode(self, chunk: Chunk) -> Batch:
        """The rows of a chunk; InputError for a file that has become too short."""
        try:
            rows = self._read(chunk.start, chunk.count)
        except (OSError, ValueError) as error:
            reason = f"changed while it was read: {reason_of(error)}"
            raise InputError(f"{self.name} {reason}") from error
        return self.batch(chunk.start, np.ascontiguousarray(rows))

    def _read(self, start: int, count: int) -> Array:
        header, first = self.header, self.offset + start * self.header.row_bytes
        shape = (count, *header.shape[1:])
        with self.path.open("rb", buffering=0) as file:
            if not header.in_columns:
                rows = np.empty(shape, header.dtype)
                _fill(rows, file, first)
                return rows
            columns = np.empty((math.prod(shape[1:]), count), header.dtype)
            for number, column in enumerate(columns):
                at = number * self.count + start
                _fill(column, file, self.offset + at * header.dtype.itemsize)
        return columns.T.reshape(shape, order="F")

    def mapped(self) -> Array:
        """All rows where they lie."""
        header = self.header
        if 0 in header.shape:  # nothing to map
            return np.empty(header.shape, header.dtype)
        order: Literal["F", "C"] = "F" if header.in_columns else "C"
        return np.memmap(self.path, header.dtype, "r", self.offset, header.shape, order)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedRows(ArrayFile):
    """Those of an array that is compressed, or comes from stdin."""

    member: str | None = None
    """Of a zip archive; None for a gzip file."""
    head: bytes = b""
    """What was read of stdin: all before the first value."""

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """The values of `size` rows at a time; InputError where the file is not what it says."""
        pieces = self._of_columns if self.header.in_columns else self._of_rows
        broken = refuse_broken(self.name, "cannot be read to its end", _errors_of_archives())
        with broken, self._opened() as stream:
            for rows in pieces(stream, size, start):
                yield Chunk(start=start, count=len(rows), content=rows, digest=stream.digest)
                start += len(rows)

    def decode(self, chunk: Chunk) -> Batch:
        """The rows of a chunk."""
        return self.batch(chunk.start, chunk.content)

    def _of_rows(self, stream: Stream, size: int, start: int) -> Iterator[Array]:
        dtype, width = self.header.dtype, self.header.row_bytes
        _pass(stream, self.offset + start * width)
        for first in range(start, self.count, size):
            count = min(size, self.count - first)
            content = stream.read(count * width)
            if len(content) < count * width:
                there = first + len(content) // max(1, width)
                raise DamagedError(
                    stream.name, f"ends after {there} rows, its header tells of {self.count}"
                )
            rows = np.frombuffer(content, dtype) if content else np.empty(0, dtype)
            yield rows.reshape(count, *self.header.shape[1:])
        # This also makes zipfile and gzip compare their sums.
        if stream.read(1):
            raise DamagedError(stream.name, f"goes on after the {self.count} rows of its header")

    def _of_columns(self, stream: Stream, size: int, start: int) -> Iterator[Array]:
        """The same of an array whose rows are all there only when all of it is."""
        _pass(stream, self.offset)
        content = stream.read(self.count * self.header.row_bytes)
        rows = np.frombuffer(content, self.header.dtype).reshape(self.header.shape, order="F")
        for first in range(start, self.count, size):
            yield np.ascontiguousarray(rows[first : first + size])

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Stream]:
        if self.path is None:
            with open_stream(None, self.head) as stream:
                yield stream
        elif self.member is None:
            import gzip

            with gzip.open(self.path) as file:
                yield Stream(self.path, cast("IO[bytes]", file))
        else:
            import zipfile

            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as member:
                yield Stream(self.path, member)


ArrayRows = PlainRows | StreamedRows


def _fill(values: Array, file: io.FileIO, offset: int) -> None:
    """Read values that lie in one piece; ValueError when the file ends before them."""
    if not values.nbytes:
        return
    file.seek(offset)
    left = values.reshape(-1).view(np.uint8).data
    while left:
        count = file.readinto(left)
        if not count:
            raise ValueError("it ends too early")
        left = left[count:]


def _pass(stream: Stream, count: int) -> None:
    while count and (content := stream.read(min(count, BLOCK_BYTES))):
        count -= len(content)


# .npy and .npz


def open_array(path: Path, target: ReadTarget) -> Array:
    """All rows of a `.npy`, which are mapped, or of an array of a `.npz`.

    Raises InputError for what is no such file, and for rows of another dtype or shape, or none.
    """
    rows = open_array_rows(path, target)
    if isinstance(rows, PlainRows):
        return rows.mapped()
    (chunk,) = rows.chunks(rows.count)  # to their end, where sums are compared
    whole: Array = chunk.content
    return whole


def open_array_rows(path: Path | None, target: ReadTarget) -> ArrayRows:
    """The rows of an array or of an IDX file, or those of a `.npy` on stdin for None.

    Memory does not grow with the file. Raises what `open_array` and `open_idx` raise; damage within
    an array shows when it is read. Of stdin no more is read yet than the header.
    """
    if path is None:
        with open_stream(None, keep=True) as stream, _readable("stdin", ".npy"):
            header = _checked(stream, "stdin", target)
        head = stream.kept()
        return StreamedRows(
            path=None,
            header=header,
            offset=len(head),
            numbers=_numbers(target, header.dtype),
            head=head,
        )
    suffix = path.suffix.lower()
    if suffix not in ARRAY_SUFFIXES:
        return open_idx(path, target)
    return _open_npz(path, target) if suffix == ".npz" else _open_npy(path, target)


def _open_npy(path: Path, target: ReadTarget) -> PlainRows:
    with _readable(str(path), ".npy"), path.open("rb") as file:
        header = _checked(file, str(path), target)
        offset = file.tell()
        header.refuse_other(file.seek(0, 2) - offset, path.name)
    return PlainRows(
        path=path, header=header, offset=offset, numbers=_numbers(target, header.dtype)
    )


def _open_npz(path: Path, target: ReadTarget) -> StreamedRows:
    """Read as a stream, whether it is compressed or not, as then its sum is compared."""
    import zipfile

    with _readable(str(path), ".npz"), zipfile.ZipFile(path) as archive:
        members = {one.filename.removesuffix(".npy"): one for one in archive.infolist()}
        entry = members[_member(path, list(members), target.options.array)]
        with archive.open(entry) as member:
            header = _checked(member, str(path), target)
            offset = member.tell()
        header.refuse_other(entry.file_size - offset, entry.filename)
    return StreamedRows(
        path=path,
        member=entry.filename,
        header=header,
        offset=offset,
        numbers=_numbers(target, header.dtype),
    )


def _checked(file: Any, name: str, target: ReadTarget) -> ArrayHeader:
    """The header of an array that the model takes; InputError for another one."""
    header = read_header(file)
    dtype, shape = header.dtype, header.shape
    fits = bool(shape) and target.input.accepts(dtype, shape[1:])
    if not fits:
        casts = _numbers(target, dtype) is not None and dtype.kind in "fiu" and bool(shape)
        casts = casts and target.input.accepts(np.dtype(target.input.dtype), shape[1:])
        if not (casts and target.options.cast):
            hint = "; --cast converts them" if casts else ""
            raise InputError(f"{name} holds {dtype} {list(shape)}; {target.takes()}{hint}")
        target.say(name, f"{dtype} is cast to {target.input.dtype}")
    if not shape[0]:
        raise DamagedError(name, "holds no rows")
    return header


def _numbers(target: ReadTarget, dtype: np.dtype[Any]) -> "Numbers | None":
    """How values of `dtype` become the model's; None where they all are, or where none can be."""
    if dtype.kind != "f" and dtype.name == target.input.dtype:
        return None
    from serving.inputs.tables.columns import Numbers, of_numbers

    return Numbers.of(target) if of_numbers(target.input) else None


def read_header(file: Any, name: str = "it") -> ArrayHeader:
    """What the first bytes of a `.npy` tell; ValueError where they tell nothing good."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_2_0
    if version == (1, 0):
        read = np.lib.format.read_array_header_1_0
    shape, in_columns, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, which are never loaded")
    if any(axis < 0 for axis in shape):
        raise ValueError(f"{name} has the shape {list(shape)}")
    # An array of one axis lies in both orders.
    return ArrayHeader(dtype, shape, in_columns=in_columns and len(shape) > 1)


def _readable(name: str, suffix: str) -> AbstractContextManager[None]:
    errors = READING_ERRORS if suffix == ".npy" else _errors_of_archives()
    return refuse_broken(name, f"is not a {suffix} file that can be read", errors)


def _errors_of_archives() -> tuple[type[Exception], ...]:
    import lzma
    import zipfile

    return *READING_ERRORS, lzma.LZMAError, zipfile.BadZipFile


def _member(path: Path, names: Sequence[str], wanted: str | None) -> str:
    """The array of a `.npz` to take: the one asked for, one of the usual names, the only one."""
    there = listed(names) or "none"
    if wanted is not None:
        if wanted not in names:
            raise InputError(f"{path} holds no array named {wanted!r}; there are: {there}")
        return wanted
    usual = [name for name in ARRAY_NAMES if name in names]
    if usual:
        return usual[0]
    if len(names) != 1:
        raise InputError(f"{path} holds the arrays {there}; name one with --array")
    return names[0]


# IDX


def open_idx(path: Path, target: ReadTarget) -> ArrayRows:
    """The rows of an IDX file; grey images get an axis of channels where the model has it.

    Raises InputError for a broken file and for rows that the model does not take, as labels.
    """
    compressed = path.name.lower().endswith(".gz")
    sizes = _idx_sizes(path, compressed=compressed)
    offset = 4 + 4 * len(sizes)
    header = ArrayHeader(UINT8, _idx_shape(path, sizes, target))
    if compressed:  # its length shows at its end
        return StreamedRows(
            path=path, header=header, offset=offset, numbers=_numbers(target, header.dtype)
        )
    expected, found = offset + math.prod(sizes), path.stat().st_size
    if found != expected:
        raise DamagedError(str(path), f"has {found} bytes, by its header they must be {expected}")
    return PlainRows(
        path=path, header=header, offset=offset, numbers=_numbers(target, header.dtype)
    )


def _idx_sizes(path: Path, *, compressed: bool) -> tuple[int, ...]:
    """The length of each axis."""
    import gzip

    broken = refuse_broken(str(path), "is not a whole gzip file", GZIP_ERRORS)
    with broken, gzip.open(path) if compressed else path.open("rb") as file:
        magic = file.read(4)
        axes = magic[3] if len(magic) == 4 else 0
        content = file.read(4 * axes)
    if magic[:2] != b"\0\0" or not axes or len(content) != 4 * axes:
        raise InputError(f"{path} does not begin as an IDX file does, but with {magic.hex(' ')}")
    if magic[2] != IDX_BYTES:
        raise InputError(
            f"{path} holds values of type 0x{magic[2]:02x}; only bytes, 0x08, are read"
        )
    return struct.unpack(f">{axes}I", content)


def _idx_shape(path: Path, sizes: tuple[int, ...], target: ReadTarget) -> tuple[int, ...]:
    """The shape of the rows as the model takes them; InputError when it does not."""
    for shape in (sizes, (*sizes, 1)):
        if target.input.accepts(UINT8, shape[1:]):
            if not shape[0]:
                raise DamagedError(str(path), "holds no rows")
            return shape
    labels = ", one value a row, as labels are" if len(sizes) == 1 else ""
    raise InputError(f"{path} holds uint8 {list(sizes)}{labels}; {target.takes()}")
