"""Rows of IDX files, the format of MNIST, plain or compressed by gzip.

Big-endian: two zero bytes, the type of the values (8 for bytes), the number of axes, the length of
each axis as uint32, then the values. Y. LeCun, http://yann.lecun.com/exdb/mnist/
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from serving.errors import InputError
from serving.readers.items import Source, reason_of
from serving.readers.rows import MappedRows, PackedRows, row_bytes
from serving.tensors import TensorInfo

__all__ = ["open_idx"]

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
    told = ", one value a row, as labels are" if len(sizes) == 1 else ""
    raise InputError(f"{path} holds uint8 {list(sizes)}{told}; {model} takes {info.takes()}")
