"""Rows of files with named columns: one column of text, or as many numbers as the model takes.

A value that is no text or no number makes its row an item with the column and the line named.
"""

import decimal
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import InputError, nearest
from serving.readers.formats import ColumnFile, open_column_file
from serving.readers.items import Row, Unreadable, printable, text_value
from serving.readers.lines import row_shape_of_texts, text_fault
from serving.tensors import TensorInfo

__all__ = ["Table", "open_table"]

Array = npt.NDArray[Any]

TEXT_NAMES = ("text", "sentence")
MOST_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Table:
    """The records of a file, as rows of the model."""

    path: Path
    file: ColumnFile
    names: tuple[str, ...]
    """The columns that are read."""
    convert: Callable[[Sequence[str], Sequence[object]], Array]
    """The names and values of a record to a row; ValueError says what does not fit."""

    @property
    def count(self) -> int | None:
        """The number of records, where the file tells."""
        return self.file.count

    def __iter__(self) -> Iterator[Row | Unreadable]:
        name = printable(self.path)
        for index, record in enumerate(self.file.records(self.names)):
            at = f"{name}:{index}"
            if record.fault:
                yield Unreadable(at, record.place + record.fault)
                continue
            try:
                row = Row(at, self.convert(self.names, record.values))
            except ValueError as error:
                yield Unreadable(at, f"{record.place}{error}")
            else:
                yield row


def open_table(path: Path, info: TensorInfo, model: Path, asked: Sequence[str] = ()) -> Table:
    """The records of a CSV, JSON Lines or Parquet file as rows for the input `info` of `model`.

    `asked` are the columns to read. Without it a model that takes text reads the only column, or
    the one named "text" or "sentence", and one that takes numbers reads them all, in their order.
    Raises InputError for columns that are not there or too many or few, a file that cannot be read
    or holds no record, and a model that takes neither texts nor rows of numbers.
    """
    converter = _converter(info)
    if converter is None:
        raise InputError(
            f"{path}: {model} takes {info.takes()}, which no record is; give such rows as .npy"
        )
    file = open_column_file(path)
    _refuse_unknown(path, file, asked)
    if row_shape_of_texts(info) is not None:
        names = _text_column(path, file.columns, asked)
    else:
        names = _number_columns(path, file.columns, asked, info)
    twice = [name for name in names if file.columns.count(name) > 1]
    if twice:
        raise InputError(f"{path} has several columns named {twice[0]!r}")
    if next(file.records(names), None) is None:
        raise InputError(f"{path} holds no rows")
    return Table(path, file, names, converter)


def _converter(info: TensorInfo) -> Callable[[Sequence[str], Sequence[object]], Array] | None:
    row_shape = row_shape_of_texts(info)
    if row_shape is not None:
        return lambda names, values: text_value(_text(names[0], values[0]), row_shape)
    if info.is_text or len(info.shape) != 2 or np.dtype(info.dtype).kind not in "fiu":
        return None
    dtype = np.dtype(info.dtype)
    return lambda names, values: np.array(
        [_number(name, value, dtype) for name, value in zip(names, values, strict=True)], dtype
    )


def _refuse_unknown(path: Path, file: ColumnFile, asked: Sequence[str]) -> None:
    unknown = [name for name in asked if name not in file.columns]
    if unknown:
        raise InputError(f"{path} has no column {unknown[0]!r}{nearest(unknown[0], file.columns)}")


def _text_column(path: Path, there: Sequence[str], asked: Sequence[str]) -> tuple[str, ...]:
    if len(asked) > 1:
        raise InputError(f"{path}: the model takes one text, --column names {', '.join(asked)}")
    usual = [name for name in TEXT_NAMES if name in there]
    found = [*asked, *(there if len(there) == 1 else usual)]
    if not found:
        raise InputError(
            f"{path} has the columns {', '.join(there)}; name the one with the text with --column"
        )
    return (found[0],)


def _number_columns(
    path: Path, there: Sequence[str], asked: Sequence[str], info: TensorInfo
) -> tuple[str, ...]:
    if all(_is_number(name) for name in there):
        raise InputError(f"{path}: its first line is numbers; it should name the columns")
    names = tuple(asked or there)
    features = info.shape[1]
    if isinstance(features, int) and len(names) != features:
        raise InputError(
            f"{path}: the model takes {info.takes()}, and there are {len(names)} columns "
            f"({', '.join(names)}); name {features} of them with --column"
        )
    return names


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        fault = text_fault(value)
        if fault:
            raise ValueError(f"column {name!r} {fault}")
        return value
    raise ValueError(f"column {name!r} is {_shown(value)}, not text")


def _number(name: str, value: object, dtype: np.dtype[Any]) -> float | int:
    """The value as a number that the dtype can hold."""
    number = _parsed(value)
    if number is None or not math.isfinite(number):
        raise ValueError(f"column {name!r} is {_shown(value)}, not a number")
    if dtype.kind == "f":
        limit = float(np.finfo(dtype).max)
        if abs(number) > limit:
            raise ValueError(f"column {name!r} is {_shown(value)}, more than {dtype} holds")
        return number
    whole, limits = int(number), np.iinfo(dtype)
    if whole != number or not limits.min <= whole <= limits.max:
        raise ValueError(f"column {name!r} is {_shown(value)}, which is no {dtype}")
    return whole


def _parsed(value: object) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, decimal.Decimal)):
        return None
    if isinstance(value, str) and "_" in value:  # Python's own spelling of 1000 as 1_000
        return None
    try:
        number = float(value)
        # A whole number stays one: a float holds it to 53 bits only.
        is_whole = isinstance(value, int) or (isinstance(value, str) and value.strip().isdecimal())
        return int(value) if is_whole else number
    except (ValueError, OverflowError):
        return None


def _shown(value: object) -> str:
    text = "empty" if value in (None, "") else repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."
