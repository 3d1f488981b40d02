"""The columns of a table: which of them are the model's input, and their values as it takes them.

`--column` names the columns. Without it there must be no choice, or a column with a usual name.
A value is never clipped, cut or guessed: one that the model's dtype cannot hold is refused.
"""

import decimal
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import InputError, nearest
from serving.inputs.text import text_fault
from serving.runtime.tensors import Array, TensorInfo

TEXT_NAMES = ("text", "sentence")
MOST_SHOWN = 40


def takes_numbers(info: TensorInfo) -> bool:
    """Whether a row of the input is some numbers, one after the other."""
    return not info.is_text and len(info.shape) == 2 and np.dtype(info.dtype).kind in "fiu"


def refuse_unknown(name: str, there: Sequence[str], asked: Sequence[str]) -> None:
    """Raise InputError for the first column asked for that the file `name` has not."""
    unknown = [column for column in asked if column not in there]
    if unknown:
        raise InputError(f"{name} has no column {unknown[0]!r}{nearest(unknown[0], there)}")


def refuse_twice(name: str, there: Sequence[str], taken: Sequence[str]) -> None:
    """Raise InputError for a column to be read whose name the file gives to several."""
    twice = [column for column in taken if there.count(column) > 1]
    if twice:
        raise InputError(f"{name} has several columns named {twice[0]!r}")


def text_column(name: str, there: Sequence[str], asked: Sequence[str]) -> tuple[str, ...]:
    """The one column with the text of the file `name`; InputError when that cannot be told."""
    if len(asked) > 1:
        raise InputError(f"{name}: the model takes one text, --column names {', '.join(asked)}")
    usual = [column for column in TEXT_NAMES if column in there]
    found = [*asked, *(there if len(there) == 1 else usual)]
    if not found:
        raise InputError(
            f"{name} has the columns {', '.join(there)}; name the one with the text with --column"
        )
    return (found[0],)


def number_columns(
    name: str, there: Sequence[str], asked: Sequence[str], info: TensorInfo
) -> tuple[str, ...]:
    """The columns with the features of the file `name`; InputError for too many or few."""
    if all(_parsed(column) is not None for column in there):
        raise InputError(f"{name}: its first line is numbers; it should name the columns")
    names = tuple(asked or there)
    features = info.shape[1]
    if isinstance(features, int) and len(names) != features:
        raise InputError(
            f"{name}: the model takes {info.takes()}, and there are {len(names)} columns "
            f"({', '.join(names)}); name {features} of them with --column"
        )
    return names


def text_of(name: str, value: object) -> str:
    """The value of the column `name` as a text; ValueError for what is none."""
    if isinstance(value, str):
        fault = text_fault(value)
        if fault:
            raise ValueError(f"column {name!r} {fault}")
        return value
    raise ValueError(f"column {name!r} is {shown(value)}, not text")


def number(name: str, value: object, dtype: np.dtype[Any]) -> float | int:
    """The value as a number of the dtype; ValueError, with column and value, where it is none."""
    found = _parsed(value)
    if found is None or not math.isfinite(found):
        raise ValueError(f"column {name!r} is {shown(value)}, not a number")
    if dtype.kind == "f":
        limit = float(np.finfo(dtype).max)
        if abs(found) > limit:
            raise ValueError(f"column {name!r} is {shown(value)}, more than {dtype} holds")
        return found
    whole, limits = int(found), np.iinfo(dtype)
    if whole != found or not limits.min <= whole <= limits.max:
        raise ValueError(f"column {name!r} is {shown(value)}, which is no {dtype}")
    return whole


def number_rows(records: Sequence[Sequence[object]], dtype: np.dtype[Any]) -> Array | None:
    """The numbers of records, [records, values]; None where a value needs `number` for itself."""
    values = list(itertools.chain.from_iterable(records))
    kinds = set(map(type, values))
    # Python itself would take 1_000 for a number.
    plain = kinds <= {int, float} or (kinds == {str} and "_" not in "".join(map(str, values)))
    if not plain:
        return None
    try:
        found = _all_numbers(values, dtype)
    except (ValueError, OverflowError):
        return None
    rows, good = convert(found, dtype)
    return rows.reshape(len(records), -1) if good.all() else None


def convert(values: Array, dtype: np.dtype[Any]) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Integers or floats as `dtype`, and which of them `number` would take."""
    if dtype.kind == "f":
        if values.dtype == dtype:
            return values, np.isfinite(values)
        # By way of float64, as Python's own numbers go.
        wide = values.astype(np.float64)
        with np.errstate(all="ignore"):
            return wide.astype(dtype), np.abs(wide) <= float(np.finfo(dtype).max)
    limits = np.iinfo(dtype)
    if values.dtype.kind == "f":
        wide = values.astype(np.float64)
        # The limit itself may not be a float64; the power of two above it is.
        within = (wide >= float(limits.min)) & (wide < float(limits.max + 1))
        good = within & (wide == np.trunc(wide))
        return np.where(good, wide, 0).astype(dtype), good
    if values.dtype == dtype:
        return values, np.ones(values.shape, bool)
    return values.astype(dtype), (values >= limits.min) & (values <= limits.max)


def shown(value: object) -> str:
    """A value as it stands in a message."""
    text = "empty" if value in (None, "") else repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."


def _all_numbers(values: list[Any], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f":
        return np.fromiter(map(float, values), np.float64, len(values))
    if any(type(value) is float for value in values):
        raise ValueError("a float is looked at by itself")
    return np.fromiter(map(int, values), dtype, len(values))


def _parsed(value: object) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, decimal.Decimal)):
        return None
    if isinstance(value, str) and "_" in value:  # Python's own spelling of 1000 as 1_000
        return None
    try:
        found = float(value)
        return int(value) if _is_whole(value) else found
    except (ValueError, OverflowError):
        return None


def _is_whole(value: object) -> bool:
    """Whether it is written as a whole number, which a float holds to 53 bits only."""
    if isinstance(value, str):
        return value.strip().removeprefix("-").removeprefix("+").isdecimal()
    return isinstance(value, int)
