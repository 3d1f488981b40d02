"""Columns of Arrow as rows of a model: encoded images, whole arrays, numbers or texts.

What lies in memory as the model takes it is not copied. A cell that is empty, or holds too much,
too little or what is no number, makes its row one that cannot be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serving.readers.decoding import ImageDecoder, tried
from serving.readers.items import Batch, batch_of
from serving.readers.lines import text_batch
from serving.readers.numeric import converted, number
from serving.readers.tables import text_of

__all__ = ["Cells", "ImageCells", "NumberCells", "TensorCells", "TextCells", "plain", "raw"]

Array = npt.NDArray[Any]
Column = Any
"""A `pyarrow.Array`; pyarrow has no types."""


class Cells(Protocol):
    """How columns become rows. It can be sent to other processes."""

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are read."""

    @property
    def slow(self) -> bool:
        """Whether decoding takes long."""

    def batch(self, ids: Sequence[str], columns: Sequence[Column]) -> Batch:
        """The rows of some arrays of equal length, one of each name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCells:
    """Encoded images: bytes, or a struct that has them as `bytes`, as Hugging Face writes them."""

    names: tuple[str, ...]
    decoder: ImageDecoder
    slow: bool = True

    def batch(self, ids: Sequence[str], columns: Sequence[Column]) -> Batch:
        """The decoded images."""
        (column,) = columns
        if pa.types.is_struct(column.type):
            column = pc.struct_field(column, "bytes")
        return self.decoder.batch(ids, [tried(self._image, cell) for cell in column.to_pylist()])

    def _image(self, content: bytes | None) -> Array:
        if content is None:
            raise ValueError(f"column {self.names[0]!r} holds no bytes")
        return self.decoder.decode(content)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorCells:
    """Whole rows: the bytes of their values, or lists of them, one in the other or all in one."""

    names: tuple[str, ...]
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    lengths: tuple[int, ...]
    """Of the lists, from the outermost on; none for bytes."""
    slow: bool = False

    def batch(self, ids: Sequence[str], columns: Sequence[Column]) -> Batch:
        """The rows, a view of the column where all of it is as it should be."""
        (column,) = columns
        try:
            return Batch(ids=ids, rows=self._rows(column))
        except ValueError:  # some row is at fault
            found = [tried(self._rows, column.slice(index, 1)) for index in range(len(column))]
            rows = [one if isinstance(one, str) else one[0] for one in found]
            return batch_of(ids, rows, np.empty((0, *self.row_shape), self.dtype))

    def _rows(self, column: Column) -> Array:
        """All rows; ValueError with what is wrong with the first that is at fault."""
        count = len(column)
        if column.null_count:
            raise ValueError(f"column {self.names[0]!r} is empty")
        if not self.lengths:
            _, content = column.buffers()
            first = column.offset * column.type.byte_width
            size = count * column.type.byte_width
            values = np.frombuffer(memoryview(content)[first : first + size], self.dtype)
        else:
            values = self._values(column)
        return np.require(values.reshape(count, *self.row_shape), requirements=["C", "A"])

    def _values(self, column: Column) -> Array:
        """The values in all lists."""
        for length in self.lengths:
            found = pc.list_value_length(column)
            if len(column) and pc.min_max(found).as_py() != {"min": length, "max": length}:
                wrong = next(one for one in found.to_pylist() if one != length)
                raise ValueError(
                    f"column {self.names[0]!r} has {wrong} values where the model takes {length}"
                )
            column = column.flatten()
            if column.null_count:
                raise ValueError(f"column {self.names[0]!r} holds an empty value")
        values = column.to_numpy()
        rows, good = converted(values, self.dtype)
        if not good.all():
            number(self.names[0], values[~good][0].item(), self.dtype)
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberCells:
    """Numbers, each in a column of its own."""

    names: tuple[str, ...]
    dtype: np.dtype[Any]
    slow: bool = False

    def batch(self, ids: Sequence[str], columns: Sequence[Column]) -> Batch:
        """The rows, of the columns side by side."""
        rows = np.zeros((len(ids), len(columns)), self.dtype)
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
            rows, fits = converted(values, self.dtype)
            return rows, fits & there
        found = [_number_or_none(name, cell, self.dtype) for cell in column.to_pylist()]
        fits = np.array([one is not None for one in found], bool)
        return np.array([one or 0 for one in found], self.dtype), fits

    def _fault(self, columns: Sequence[Column], row: int) -> str:
        """Why a row is none, by the first column that says so."""
        for name, column in zip(self.names, columns, strict=True):
            try:
                number(name, column[row].as_py(), self.dtype)
            except ValueError as error:
                return str(error)
        return "it holds what is no number"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCells:
    """Texts."""

    names: tuple[str, ...]
    row_shape: tuple[int, ...]
    slow: bool = False

    def batch(self, ids: Sequence[str], columns: Sequence[Column]) -> Batch:
        """The texts."""
        texts, faults = [], {}
        for index, cell in enumerate(_texts(columns[0])):
            try:
                texts.append(text_of(self.names[0], cell))
            except ValueError as error:
                texts.append("")
                faults[index] = str(error)
        return text_batch(ids, texts, faults, self.row_shape)


def plain(column: Column) -> Column:
    """The same values without an extension's or a dictionary's type."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def raw(column: Column) -> Column:
    """A column of texts as their bytes, of which nobody knows whether they are UTF-8."""
    kinds = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    return column.view(kinds[column.type]) if column.type in kinds else column


def _texts(column: Column) -> list[object]:
    """The values; bytes of a text that are not UTF-8 stay as lone surrogates."""
    found = list(raw(column).to_pylist())
    if raw(column).type == column.type:
        return found
    return [
        content.decode("utf-8", "surrogateescape") if isinstance(content, bytes) else content
        for content in found
    ]


def _number_or_none(name: str, value: object, dtype: np.dtype[Any]) -> float | int | None:
    try:
        return number(name, value, dtype)
    except ValueError:
        return None
