"""Which columns of a Parquet or an Arrow schema are the model's input, and how they become rows.

One column of encoded images or of whole arrays comes before numbers in columns of their own.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from serving.errors import InputError
from serving.readers.cells import Cells, ImageCells, NumberCells, TensorCells, TextCells
from serving.readers.columns import number_columns, refuse_twice, refuse_unknown, text_column
from serving.readers.decoding import ImageDecoder, image_decoder
from serving.readers.lines import row_shape_of_texts
from serving.readers.tables import takes_numbers
from serving.tensors import TensorInfo

__all__ = ["fitting_cells"]

USUAL_NAMES = ("image", "images", "img", "bytes", "pixels", "features", "input")
MOST_SHOWN = 200


def fitting_cells(
    name: str,
    schema: Any,
    info: TensorInfo,
    model: Path,
    asked: Sequence[str],
    *,
    resize: bool,
) -> tuple[Cells, tuple[str, ...]]:
    """How the columns of the file `name` become rows, and what is to be read of them.

    `asked` are the columns to take. Raises InputError for those that are not there or do not fit
    the model, and where they leave a choice.
    """
    refuse_unknown(name, schema.names, asked)
    cells = _whole_rows(name, schema, info, model, asked, resize=resize)
    if cells is None:
        cells = _values(name, schema, info, model, asked)
    refuse_twice(name, schema.names, cells.names)
    if isinstance(cells, ImageCells) and pa.types.is_struct(schema.field(cells.names[0]).type):
        return cells, (f"{cells.names[0]}.bytes",)
    return cells, cells.names


def _values(name: str, schema: Any, info: TensorInfo, model: Path, asked: Sequence[str]) -> Cells:
    """A text or numbers."""
    row_shape = row_shape_of_texts(info)
    if row_shape is not None:
        return TextCells(names=text_column(name, schema.names, asked), row_shape=row_shape)
    if len(asked) == 1 and pa.types.is_nested(schema.field(asked[0]).type):
        raise InputError(
            f"{name}: column {asked[0]!r} holds {schema.field(asked[0]).type}; "
            f"{model} takes {info.takes()}"
        )
    if takes_numbers(info):
        names = number_columns(name, schema.names, asked, info)
        return NumberCells(names=names, dtype=np.dtype(info.dtype))
    there = ", ".join(f"{field.name} {field.type}" for field in schema)[:MOST_SHOWN]
    raise InputError(
        f"{name}: {model} takes {info.takes()}, which no record is; give such rows as .npy, or in "
        f"one column (there are: {there})"
    )


def _whole_rows(
    name: str,
    schema: Any,
    info: TensorInfo,
    model: Path,
    asked: Sequence[str],
    *,
    resize: bool,
) -> Cells | None:
    """The column that holds whole rows, or None where there is none."""
    if info.is_text or len(asked) > 1:
        return None
    decoder = _decoder(name, info, model, resize=resize)
    found = {}
    for field in schema:
        cells = _fitting(field, info, decoder)
        if cells is not None and field.name in (asked or schema.names):
            found[field.name] = cells
    return _chosen(name, found)


def _chosen(name: str, found: Mapping[str, Cells]) -> Cells | None:
    usual = [one for one in USUAL_NAMES if one in found]
    if len(found) > 1 and not usual:
        raise InputError(
            f"{name} has the columns {', '.join(found)} with rows for the model; "
            f"name one with --column"
        )
    if len(found) > 1:
        return found[usual[0]]
    return next(iter(found.values()), None)


def _decoder(name: str, info: TensorInfo, model: Path, *, resize: bool) -> ImageDecoder | None:
    try:
        return image_decoder(name, info, model, resize=resize)
    except InputError:
        return None


def _fitting(field: Any, info: TensorInfo, decoder: ImageDecoder | None) -> Cells | None:
    """How one column makes rows, or None where it does not."""
    if decoder is not None and _holds_bytes(field.type):
        return ImageCells(names=(field.name,), decoder=decoder)
    lengths = _lengths(field.type, info)
    if lengths is None:
        return None
    axes = tuple(axis for axis in info.shape[1:] if isinstance(axis, int))
    return TensorCells(
        names=(field.name,), dtype=np.dtype(info.dtype), row_shape=axes, lengths=lengths
    )


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _holds_bytes(kind.field(at).type)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _lengths(kind: Any, info: TensorInfo) -> tuple[int, ...] | None:
    """How long the lists of a type are when they make a row; () for bytes, None for no row."""
    axes = tuple(axis for axis in info.shape[1:] if isinstance(axis, int))
    dtype = np.dtype(info.dtype)
    if not axes or len(axes) < len(info.shape) - 1 or dtype.kind not in "fiu":
        return None
    if isinstance(kind, pa.BaseExtensionType):
        if isinstance(kind, pa.FixedShapeTensorType) and not _same_axes(kind, axes):
            return None
        kind = kind.storage_type
    if pa.types.is_fixed_size_binary(kind):
        return () if kind.byte_width == math.prod(axes) * dtype.itemsize else None
    return _lengths_of_lists(kind, axes)


def _lengths_of_lists(kind: Any, axes: tuple[int, ...]) -> tuple[int, ...] | None:
    told: list[int | None] = []
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or _is_fixed(kind):
        told.append(kind.list_size if _is_fixed(kind) else None)
        kind = kind.value_type
    if not told or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return None
    for lengths in ((math.prod(axes),), axes, _longer_than_one(axes)):
        pairs = list(zip(told, lengths, strict=False))
        if len(lengths) == len(told) and all(size in (None, length) for size, length in pairs):
            return lengths
    return None


def _is_fixed(kind: Any) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


def _same_axes(kind: Any, axes: tuple[int, ...]) -> bool:
    """Whether a tensor's type has the model's axes, in the same order."""
    order = kind.permutation
    in_order = order is None or list(order) == sorted(order)
    return in_order and _longer_than_one(tuple(kind.shape)) == _longer_than_one(axes)


def _longer_than_one(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in axes if axis != 1)
