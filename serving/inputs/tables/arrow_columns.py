"""The columns of a Parquet or an Arrow file as rows: encoded images, whole arrays, numbers, texts.

One column of images or arrays is taken before numbers in columns of their own. What lies in memory
as the model takes it is not copied. A value that is empty, of another length or no number makes its
row one that cannot be read.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serving.errors import InputError
from serving.inputs.decoding import ImageDecoder, image_decoder, image_shape
from serving.inputs.sources import Batch, ReadTarget, batch_of, value_or_reason
from serving.inputs.tables.columns import (
    Numbers,
    longer_than_one,
    number_columns,
    refuse_twice,
    refuse_unknown,
    row_shapes,
    takes_numbers,
    text_column,
    text_of,
    whole_rows_column,
)
from serving.inputs.text import decode_line, row_shape_of_texts, text_batch
from serving.runtime.tensors import Array, TensorInfo

Column = Any
"""A `pyarrow.Array`; pyarrow has no types."""

MOST_SHOWN = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageColumn:
    """Encoded images: bytes, or a struct that has them as `bytes`, as Hugging Face writes them."""

    names: tuple[str, ...]
    decoder: ImageDecoder

    def batch(self, ids: Sequence[str], columns: Sequence[Column]) -> Batch:
        """The decoded images."""
        (column,) = columns
        if pa.types.is_struct(column.type):
            column = pc.struct_field(column, "bytes")
        return self.decoder.batch(
            ids, [value_or_reason(self._image, cell) for cell in column.to_pylist()]
        )

    def _image(self, content: bytes | None) -> Array:
        if content is None:
            raise ValueError(f"column {self.names[0]!r} holds no bytes")
        return self.decoder.decode(content)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorColumn:
    """Whole rows: the bytes of their values, or lists of them, one in the other or all in one."""

    names: tuple[str, ...]
    numbers: Numbers
    row_shape: tuple[int, ...]
    lengths: tuple[int, ...]
    """Of the lists, from the outermost on; none for bytes."""

    def batch(self, ids: Sequence[str], columns: Sequence[Column]) -> Batch:
        """The rows, a view of the column where all of it is as it should be."""
        (column,) = columns
        try:
            return Batch(ids=ids, rows=self._rows(column))
        except ValueError:  # some row is at fault
            found = [
                value_or_reason(self._rows, column.slice(index, 1)) for index in range(len(column))
            ]
            rows = [one if isinstance(one, str) else one[0] for one in found]
            return batch_of(ids, rows, np.empty((0, *self.row_shape), self.numbers.dtype))

    def _rows(self, column: Column) -> Array:
        """All rows; ValueError with what is wrong with the first that is at fault."""
        count = len(column)
        if column.null_count:
            raise ValueError(f"column {self.names[0]!r} is empty")
        if not self.lengths:
            _, content = column.buffers()
            first = column.offset * column.type.byte_width
            size = count * column.type.byte_width
            values = np.frombuffer(memoryview(content)[first : first + size], self.numbers.dtype)
        else:
            values = self._flat(column)
        values = self._converted(values)
        return np.require(values.reshape(count, *self.row_shape), requirements=["C", "A"])

    def _flat(self, column: Column) -> Array:
        """The values in all lists."""
        for length in self.lengths:
            found = pc.list_value_length(column)
            if len(column) and pc.min_max(found).as_py() != {"min": length, "max": length}:
                wrong = next(one for one in found.to_pylist() if one != length)
                raise ValueError(
                    f"column {self.names[0]!r} has {wrong} values where the model takes {length}"
                )
            column = column.flatten()
            if column.null_count and (pa.types.is_nested(column.type) or not self.numbers.missing):
                hint = self.numbers.nan_hint
                raise ValueError(f"column {self.names[0]!r} holds an empty value{hint}")
        values: Array = column.to_numpy(zero_copy_only=not column.null_count)  # NaN for null
        return values

    def _converted(self, values: Array) -> Array:
        if self.numbers.fit(values):
            return values
        rows, good = self.numbers.convert(values)
        if not good.all():
            self.numbers.one(self.names[0], values[~good][0].item())
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberColumns:
    """Numbers, each in a column of its own."""

    names: tuple[str, ...]
    numbers: Numbers

    def batch(self, ids: Sequence[str], columns: Sequence[Column]) -> Batch:
        """The rows, of the columns side by side."""
        rows = np.zeros((len(ids), len(columns)), self.numbers.dtype)
        good = np.ones(len(ids), bool)
        for index, (name, column) in enumerate(zip(self.names, columns, strict=True)):
            values, fits = self._numbers(name, column)
            rows[:, index] = values
            good &= fits
        if good.all():
            return Batch(ids=ids, rows=rows)
        faults = {int(row): self._fault(columns, int(row)) for row in np.flatnonzero(~good)}
        return Batch(ids=ids, rows=rows[good], faults=faults)

    def _numbers(self, name: str, column: Column) -> tuple[Array, npt.NDArray[np.bool_]]:
        """The values of a column, and which of them are numbers that the model takes."""
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            there = column.is_valid().to_numpy(zero_copy_only=False)
            values = (column.fill_null(0) if column.null_count else column).to_numpy()
            rows, fits = self.numbers.convert(values)
            if self.numbers.missing:
                return np.where(there, rows, self.numbers.dtype.type(np.nan)), fits
            return rows, fits & there
        read = functools.partial(self.numbers.one, name)
        found = [value_or_reason(read, cell) for cell in column.to_pylist()]
        fits = np.array([not isinstance(one, str) for one in found], bool)
        return np.array(
            [0 if isinstance(one, str) else one for one in found], self.numbers.dtype
        ), fits

    def _fault(self, columns: Sequence[Column], row: int) -> str:
        """Why a row is none, by the first column that says so."""
        for name, column in zip(self.names, columns, strict=True):
            try:
                self.numbers.one(name, column[row].as_py())
            except ValueError as error:
                return str(error)
        return "it holds what is no number"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextColumn:
    """Texts."""

    names: tuple[str, ...]
    row_shape: tuple[int, ...]

    def batch(self, ids: Sequence[str], columns: Sequence[Column]) -> Batch:
        """The texts."""
        read = functools.partial(text_of, self.names[0], nul=True)
        return text_batch(ids, _texts(columns[0]), read, self.row_shape)


ColumnReader = ImageColumn | TensorColumn | NumberColumns | TextColumn
"""How columns become rows. It can be sent to other processes."""


def choose_columns(
    name: str, schema: Any, target: ReadTarget
) -> tuple[ColumnReader, tuple[str, ...]]:
    """How the columns of the file `name` become rows, and what is to be read of them.

    Raises InputError for columns that are not there, do not fit the model, or leave a choice.
    """
    refuse_unknown(name, schema.names, target.options.columns)
    reader = _whole_rows(name, schema, target) or _values(name, schema, target)
    refuse_twice(name, schema.names, reader.names)
    if isinstance(reader, ImageColumn) and pa.types.is_struct(schema.field(reader.names[0]).type):
        return reader, (f"{reader.names[0]}.bytes",)
    return reader, reader.names


def _values(name: str, schema: Any, target: ReadTarget) -> ColumnReader:
    """A text or numbers."""
    info, asked = target.input, target.options.columns
    row_shape = row_shape_of_texts(info)
    if row_shape is not None:
        return TextColumn(names=text_column(name, schema.names, target), row_shape=row_shape)
    if len(asked) == 1 and pa.types.is_nested(schema.field(asked[0]).type):
        kind = schema.field(asked[0]).type
        raise InputError(f"{name}: column {asked[0]!r} holds {kind}; {target.takes()}")
    if takes_numbers(info):
        names = number_columns(name, schema.names, target)
        return NumberColumns(names=names, numbers=Numbers.of(target))
    there = ", ".join(f"{field.name} {field.type}" for field in schema)[:MOST_SHOWN]
    raise InputError(
        f"{name}: {target.takes()}, which no record is; give such rows as .npy, or in "
        f"one column (there are: {there})"
    )


def _whole_rows(name: str, schema: Any, target: ReadTarget) -> ColumnReader | None:
    """The column that holds whole rows, or None where there is none."""
    asked = target.options.columns
    if target.input.is_text or len(asked) > 1:
        return None
    fields = [field for field in schema if field.name in (asked or schema.names)]
    readers = {field.name: _fitting(name, field, target) for field in fields}
    found = {column: reader for column, reader in readers.items() if reader is not None}
    column = whole_rows_column(name, list(found))
    return None if column is None else found[column]


def _fitting(name: str, field: Any, target: ReadTarget) -> ColumnReader | None:
    """How one column makes rows, or None where it does not."""
    info, names = target.input, (field.name,)
    if image_shape(info) is not None and _holds_bytes(field.type):
        return ImageColumn(names=names, decoder=image_decoder(name, target))
    lengths = _lengths(field.type, info)
    if lengths is None:
        return None
    axes = tuple(axis for axis in info.shape[1:] if isinstance(axis, int))
    return TensorColumn(names=names, numbers=Numbers.of(target), row_shape=axes, lengths=lengths)


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _holds_bytes(kind.field(at).type)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _lengths(kind: Any, info: TensorInfo) -> tuple[int, ...] | None:
    """How long the lists of a type are when they make a row; () for bytes, None for no row."""
    shapes = row_shapes(info)
    if not shapes:
        return None
    axes = shapes[1]
    if isinstance(kind, pa.BaseExtensionType):
        if isinstance(kind, pa.FixedShapeTensorType) and not _same_axes(kind, axes):
            return None
        kind = kind.storage_type
    if pa.types.is_fixed_size_binary(kind):
        return () if kind.byte_width == math.prod(axes) * np.dtype(info.dtype).itemsize else None
    return _lengths_of_lists(kind, shapes)


def _lengths_of_lists(kind: Any, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    sizes: list[int | None] = []
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or _is_fixed(kind):
        sizes.append(kind.list_size if _is_fixed(kind) else None)
        kind = kind.value_type
    if not sizes or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return None
    for lengths in shapes:
        pairs = list(zip(sizes, lengths, strict=False))
        if len(lengths) == len(sizes) and all(size in (None, length) for size, length in pairs):
            return lengths
    return None


def _is_fixed(kind: Any) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


def _same_axes(kind: Any, axes: tuple[int, ...]) -> bool:
    """Whether a tensor's type has the model's axes, in the same order."""
    order = kind.permutation
    in_order = order is None or list(order) == sorted(order)
    return in_order and longer_than_one(tuple(kind.shape)) == longer_than_one(axes)


# Values


def without_extension(column: Column) -> Column:
    """The same values without an extension's or a dictionary's type."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def as_bytes(column: Column) -> Column:
    """A column of texts as their bytes, of which nobody knows whether they are UTF-8."""
    kinds = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    return column.view(kinds[column.type]) if column.type in kinds else column


def _texts(column: Column) -> list[object]:
    """The values; bytes of a text that are not UTF-8 stay as lone surrogates."""
    found = list(as_bytes(column).to_pylist())
    if as_bytes(column).type == column.type:
        return found
    return [decode_line(content) if isinstance(content, bytes) else content for content in found]
