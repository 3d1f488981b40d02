"""Rows of `.npy` and `.npz` files, mapped into memory where that can be.

Nothing is ever unpickled.
"""

import contextlib
import math
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from serving.errors import InputError
from serving.inputs.items import Source, reason_of
from serving.inputs.packed import READING_ERRORS, MappedRows, PackedRows
from serving.inputs.streams import opened
from serving.runtime.tensors import TensorInfo

Array = npt.NDArray[Any]
Header = tuple[tuple[int, ...], bool, np.dtype[Any]]
"""Shape, whether the first axis is the fastest, and dtype."""

ARRAY_NAMES = ("images", "features", "text", "input", "inputs")
LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Of a member of a zip archive: its signature, and the lengths of its name and its extra field."""


def open_array(path: Path, info: TensorInfo, model: Path, name: str | None = None) -> Array:
    """The rows of a `.npy`, or of the array `name` of a `.npz`, for the input `info` of `model`.

    Raises InputError for what is no such file, and for rows of another dtype or shape, or none.
    """
    rows = _load_npy(path) if path.suffix.lower() == ".npy" else _load_npz(path, name)
    _check(str(path), rows.dtype, rows.shape, info, model)
    return rows


def open_array_rows(path: Path, info: TensorInfo, model: Path, name: str | None = None) -> Source:
    """The same rows, as an input whose memory does not grow with the file.

    Raises what `open_array` raises. What is damaged within an array of a `.npz` shows when it is
    read.
    """
    if path.suffix.lower() == ".npz":
        return _open_npz(path, info, model, name)
    rows = open_array(path, info, model)
    if not isinstance(rows, np.memmap):
        raise InputError(f"{path} cannot be mapped into memory")
    return MappedRows(
        path=str(path),
        dtype=rows.dtype,
        shape=rows.shape,
        offset=rows.offset,
        in_columns=not rows.flags.c_contiguous,
    )


def open_array_stream(info: TensorInfo, model: Path) -> PackedRows:
    """The rows of a `.npy` that comes from stdin; its header is read.

    Raises InputError for what is none, and for rows of another dtype or shape, or none.
    """
    with opened(None) as stream, _readable("stdin", ".npy"):
        stream.keep()
        shape, in_columns, dtype = _header(stream)
    _check("stdin", dtype, shape, info, model)
    return PackedRows(
        path=None, dtype=dtype, shape=shape, head=stream.kept(), in_columns=in_columns
    )


def _check(
    name: str, dtype: np.dtype[Any], shape: tuple[int, ...], info: TensorInfo, model: Path
) -> None:
    if not shape or not info.accepts(dtype, shape[1:]):
        raise InputError(f"{name} holds {dtype} {list(shape)}; {model} takes {info.takes()}")
    if not shape[0]:
        raise InputError(f"{name} holds no rows")


def _load_npy(path: Path) -> Array:
    with _readable(path, ".npy"):
        # Mapped, not read: a file larger than the memory is fine. It never unpickles.
        return np.lib.format.open_memmap(path, mode="r")


def _load_npz(path: Path, name: str | None) -> Array:
    # np.load would take a .npy by this name as well, and hand out an array.
    with (
        _readable(path, ".npz"),
        path.open("rb") as file,
        np.lib.npyio.NpzFile(file, allow_pickle=False) as archive,
    ):
        member: Array = archive[_member(path, archive.files, name)]
        return member


def _open_npz(path: Path, info: TensorInfo, model: Path, name: str | None) -> Source:
    with _readable(path, ".npz"), path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = {one.filename.removesuffix(".npy"): one for one in archive.infolist()}
        entry = members[_member(path, list(members), name)]
        with archive.open(entry) as member:
            shape, in_columns, dtype = _header(member)
            offset = member.tell()
        _check(str(path), dtype, shape, info, model)
        if entry.file_size - offset < math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the array {entry.filename} is cut short")
        at = _place_of_stored(file, entry)
    if at is not None:
        return MappedRows(
            path=str(path), dtype=dtype, shape=shape, offset=at + offset, in_columns=in_columns
        )
    return PackedRows(
        path=str(path),
        member=entry.filename,
        dtype=dtype,
        shape=shape,
        offset=offset,
        in_columns=in_columns,
    )


def _header(file: Any) -> Header:
    """What the first bytes of a `.npy` tell; ValueError where they tell nothing good."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_2_0
    if version == (1, 0):
        read = np.lib.format.read_array_header_1_0
    shape, in_columns, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never loaded")
    if any(axis < 0 for axis in shape):
        raise ValueError(f"its shape is {list(shape)}")
    # An array of one axis lies in both orders.
    return shape, in_columns and len(shape) > 1, dtype


def _place_of_stored(file: IO[bytes], entry: zipfile.ZipInfo) -> int | None:
    """Where in the archive a member lies, None for one that is compressed or encrypted."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        return None
    file.seek(entry.header_offset)
    signature, name_bytes, extra_bytes = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    start: int = file.tell() + name_bytes + extra_bytes
    if signature != b"PK\3\4" or start + entry.file_size > file.seek(0, 2):
        raise zipfile.BadZipFile(f"{entry.filename} does not lie where the archive says")
    return start


@contextlib.contextmanager
def _readable(path: Path | str, suffix: str) -> Iterator[None]:
    """Tell what a library raises on a broken file."""
    try:
        yield
    except READING_ERRORS as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is not a {suffix} file that can be read: {reason_of(error)}"
        ) from error


def _member(path: Path, names: Sequence[str], wanted: str | None) -> str:
    """The array of a `.npz` to take: the one asked for, one of the usual names, the only one."""
    there = ", ".join(names) or "none"
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
