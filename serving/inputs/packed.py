"""Rows of fixed size that lie in a file one after the other: mapped there, or unpacked on the way.

A mapped row is never copied on its way to the model, and no more is mapped at a time than the
chunks that are in use, whatever the size of the file.

Rows of IDX files, the format of MNIST, plain or compressed by gzip.

Big-endian: two zero bytes, the type of the values (8 for bytes), the number of axes, the length of
each axis as uint32, then the values. Y. LeCun, http://yann.lecun.com/exdb/mnist/
"""

import contextlib
import gzip
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from serving.errors import InputError
from serving.inputs.items import Batch, Chunk, NumberedIds, Source, reason_of
from serving.inputs.streams import Stream, fingerprint_of_files, name_of, opened
from serving.runtime.tensors import TensorInfo

Array = npt.NDArray[Any]

BLOCK_BYTES = 1 << 20
# What numpy, zipfile and gzip raise on broken files.
READING_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedRows:
    """The rows of an array that lies in a file as it lies in memory."""

    path: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    """[rows, ...], as the model takes them."""
    offset: int
    """Where in the file the first value is."""
    in_columns: bool = False
    """Whether the first axis is the fastest, as in Fortran."""
    slow: bool = False

    @property
    def count(self) -> int:
        """The number of rows."""
        return self.shape[0]

    def fingerprint(self) -> str:
        """The sha256 of the path, size and time of change of the file."""
        return fingerprint_of_files([self.path])

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """Nothing but numbers: whoever decodes a chunk maps its rows."""
        for first in range(start, self.count, size):
            yield Chunk(start=first, count=min(size, self.count - first), content=None)

    def decode(self, chunk: Chunk) -> Batch:
        """The rows of a chunk, a view of the file where they lie as the model takes them.

        Raises InputError for a file that is shorter than it was.
        """
        ids = NumberedIds(name_of(self.path), chunk.start, chunk.count)
        try:
            rows = self._mapped(chunk.start, chunk.count)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.path} changed while it was read: {reason_of(error)}"
            ) from error
        return Batch(ids=ids, rows=np.require(rows, requirements=["C", "A"]))

    def _mapped(self, start: int, count: int) -> Array:
        if 0 in self.shape[1:]:  # nothing to map
            return np.empty((count, *self.shape[1:]), self.dtype)
        if self.in_columns:
            whole = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, "F")
            return whole[start : start + count].view(np.ndarray)
        offset = self.offset + start * row_bytes(self.dtype, self.shape)
        shape = (count, *self.shape[1:])
        return np.memmap(self.path, self.dtype, "r", offset, shape).view(np.ndarray)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """The rows of an array that is compressed, or comes from stdin."""

    path: str | None
    """None for stdin, which was read up to the first value."""
    member: str | None = None
    """Of a zip archive; None for a gzip file."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int = 0
    """The bytes before the first value."""
    head: bytes = b""
    """What was read of stdin."""
    in_columns: bool = False
    slow: bool = False

    @property
    def count(self) -> int:
        """The number of rows, as the header tells it."""
        return self.shape[0]

    def fingerprint(self) -> str | None:
        """The sha256 of the path, size and time of change of the file; None for stdin."""
        return None if self.path is None else fingerprint_of_files([self.path])

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """The values of `size` rows at a time, from the row `start` on.

        Raises InputError where the file is damaged, or of another length than its header tells.
        """
        try:
            with self._opened() as stream:
                if self.in_columns:
                    yield from self._of_columns(stream, size, start)
                else:
                    yield from self._of_rows(stream, size, start)
        except READING_ERRORS as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{name_of(self.path)} cannot be read to its end: {reason_of(error)}"
            ) from error

    def decode(self, chunk: Chunk) -> Batch:
        """The rows of a chunk."""
        rows: Array = chunk.content
        return Batch(ids=NumberedIds(name_of(self.path), chunk.start, len(rows)), rows=rows)

    def _of_rows(self, stream: Stream, size: int, start: int) -> Iterator[Chunk]:
        width = row_bytes(self.dtype, self.shape)
        _pass(stream, self.offset + len(self.head) + start * width)
        for first in range(start, self.count, size):
            count = min(size, self.count - first)
            content = stream.read(count * width)
            if len(content) < count * width:
                there = first + len(content) // max(1, width)
                raise InputError(
                    f"{stream.name} ends after {there} rows, its header tells of {self.count}"
                )
            rows = np.frombuffer(content, self.dtype) if content else np.empty(0, self.dtype)
            yield Chunk(
                start=first,
                count=count,
                content=rows.reshape(count, *self.shape[1:]),
                digest=stream.digest,
            )
        # This also makes zipfile and gzip compare their sums.
        if stream.read(1):
            raise InputError(f"{stream.name} goes on after the {self.count} rows of its header")

    def _of_columns(self, stream: Stream, size: int, start: int) -> Iterator[Chunk]:
        """The same of an array whose rows are all there only when all of it is."""
        _pass(stream, self.offset + len(self.head))
        content = stream.read(self.count * row_bytes(self.dtype, self.shape))
        rows = np.frombuffer(content, self.dtype).reshape(self.shape, order="F")
        for first in range(start, self.count, size):
            taken = np.ascontiguousarray(rows[first : first + size])
            yield Chunk(start=first, count=len(taken), content=taken, digest=stream.digest)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Stream]:
        if self.path is None:
            with opened(None, self.head) as stream:
                yield stream
        elif self.member is None:
            with gzip.open(self.path) as file:
                yield Stream(self.path, cast("IO[bytes]", file), b"")
        else:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as member:
                yield Stream(self.path, member, b"")


def row_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """The bytes of one row of an array [rows, ...]."""
    return dtype.itemsize * math.prod(shape[1:])


def _pass(stream: Stream, count: int) -> None:
    while count and (content := stream.read(min(count, BLOCK_BYTES))):
        count -= len(content)


UINT8 = np.dtype(np.uint8)
BYTES = 8
"""The code of values that are bytes."""


def open_idx(path: Path, info: TensorInfo, model: Path) -> Source:
    """The rows of an IDX file for the input `info` of `model`.

    Grey images without an axis of channels get one where the model has it. Raises InputError for
    what is no such file or has another length than its header tells, and for rows that the model
    does not take, labels for instance.
    """
    packed = path.name.lower().endswith(".gz")
    sizes = _sizes(path, packed=packed)
    offset = 4 + 4 * len(sizes)
    shape = _shape(path, sizes, info, model)
    if packed:  # its length shows at its end
        return PackedRows(path=str(path), dtype=UINT8, shape=shape, offset=offset)
    expected = offset + shape[0] * row_bytes(UINT8, shape)
    found = path.stat().st_size
    if found != expected:
        raise InputError(f"{path} has {found} bytes, by its header they must be {expected}")
    return MappedRows(path=str(path), dtype=UINT8, shape=shape, offset=offset)


def _sizes(path: Path, *, packed: bool) -> tuple[int, ...]:
    """The length of each axis."""
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            magic = file.read(4)
            axes = magic[3] if len(magic) == 4 else 0
            content = file.read(4 * axes)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file: {reason_of(error)}") from error
    if magic[:2] != b"\0\0" or not axes or len(content) != 4 * axes:
        raise InputError(f"{path} does not begin as an IDX file does, but with {magic.hex(' ')}")
    if magic[2] != BYTES:
        raise InputError(
            f"{path} holds values of type 0x{magic[2]:02x}; only bytes, 0x08, are read"
        )
    return struct.unpack(f">{axes}I", content)


def _shape(path: Path, sizes: tuple[int, ...], info: TensorInfo, model: Path) -> tuple[int, ...]:
    """The shape of the rows as the model takes them; InputError when it does not."""
    for shape in (sizes, (*sizes, 1)):
        if info.accepts(UINT8, shape[1:]):
            if not shape[0]:
                raise InputError(f"{path} holds no rows")
            return shape
    message = ", one value a row, as labels are" if len(sizes) == 1 else ""
    raise InputError(f"{path} holds uint8 {list(sizes)}{message}; {model} takes {info.takes()}")
