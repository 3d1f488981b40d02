"""The columns of a table: which of them are the model's input, and their values as it takes them.

`--column` names the columns. Without it there must be no choice, or a column with a usual name.
A value is never clipped, cut or guessed: one that the model's dtype cannot hold is refused. So is
one that is missing, unless `--missing nan` says that the model takes NaN.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import InputError, listed, nearest
from serving.inputs.sources import ReadTarget
from serving.inputs.text import row_shape_of_texts, text_fault
from serving.runtime.tensors import Array, TensorInfo

TEXT_NAMES = ("text", "sentence")
USUAL_NAMES = ("image", "images", "img", "bytes", "pixels", "features", "input")
"""Of columns with whole rows."""
MOST_SHOWN = 40
MISSING = ("", "nan", "-nan", "na", "<na>", "n/a", "null", "none")
"""What stands for no value in a text, in small letters."""
SWAPPED = str.maketrans(".,", ",.")
WITH_COMMA = re.compile(r"\s*[-+]?\d*,\d+\s*")
INDEX = re.compile(r"__index_level_\d+__")
"""What pandas calls the index in Parquet; in CSV it is the first column, and has no name."""
NO_NAMES = ("", "Unnamed: 0")


def takes_numbers(info: TensorInfo) -> bool:
    """Whether a row of the input is some numbers, one after the other."""
    return len(info.shape) == 2 and of_numbers(info)


def of_numbers(info: TensorInfo) -> bool:
    """Whether the values of the input are integers or floats that numpy has."""
    return not info.is_text and not info.lacks_numpy and np.dtype(info.dtype).kind in "fiu"


def row_shapes(info: TensorInfo) -> tuple[tuple[int, ...], ...]:
    """The shapes in which lists may hold a row of the model; none where its axes are open."""
    axes = tuple(axis for axis in info.shape[1:] if isinstance(axis, int))
    if not axes or len(axes) < len(info.shape) - 1 or not of_numbers(info):
        return ()
    return (math.prod(axes),), axes, longer_than_one(axes)


def longer_than_one(axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes but for those of one value."""
    return tuple(axis for axis in axes if axis != 1)


def whole_rows_column(name: str, found: Sequence[str]) -> str | None:
    """Which of the columns of `name` that hold whole rows is read; InputError for a choice."""
    usual = [one for one in USUAL_NAMES if one in found]
    if len(found) > 1 and not usual:
        raise InputError(
            f"{name} has the columns {listed(found)} with rows for the model; "
            f"name one with --column"
        )
    return next(iter([*usual, *found]), None)


def refuse_unknown(name: str, there: Sequence[str], asked: Sequence[str]) -> None:
    """Raise InputError for the first column asked for that the file `name` has not."""
    unknown = [column for column in asked if column not in there]
    if unknown:
        raise InputError(f"{name} has no column {unknown[0]!r}{nearest(unknown[0], there)}")


def refuse_twice(name: str, there: Sequence[str], taken: Sequence[str]) -> None:
    """Raise InputError for a column to be read whose name the file gives to several."""
    counts = Counter(there)
    twice = [column for column in taken if counts[column] > 1]
    if twice:
        raise InputError(f"{name} has several columns named {twice[0]!r}")


def chosen_columns(
    name: str, there: tuple[str, ...], target: ReadTarget, decimal: str = "."
) -> tuple[str, ...]:
    """The columns of records that are read: one with texts, or those with the features.

    Raises InputError where they do not fit the model, or it takes neither.
    """
    if row_shape_of_texts(target.input) is None and not takes_numbers(target.input):
        raise InputError(
            f"{name}: {target.takes()}, which no record is; give such rows as .npy, or as lists "
            f"in a column of .jsonl or .parquet"
        )
    refuse_unknown(name, there, target.options.columns)
    if target.input.is_text:
        return text_column(name, there, target)
    return number_columns(name, there, target, decimal)


def text_column(name: str, there: Sequence[str], target: ReadTarget) -> tuple[str, ...]:
    """The one column with the text of the file `name`; InputError when that cannot be told."""
    asked = target.options.columns
    if len(asked) > 1:
        raise InputError(f"{name}: the model takes one text, --column names {listed(asked)}")
    usual = [column for column in TEXT_NAMES if column in there]
    features = [] if asked or usual else _without_index(name, there, target)
    found = [*asked, *usual, *(features if len(features) == 1 else ())]
    if not found:
        raise InputError(
            f"{name} has the columns {listed(there)}; name the one with the text with --column"
        )
    return (found[0],)


def number_columns(
    name: str, there: Sequence[str], target: ReadTarget, decimal: str = "."
) -> tuple[str, ...]:
    """The columns with the features of the file `name`; InputError for too many or few.

    They are those that --column names, or the model, in that order.
    """
    if all(_parsed(_pointed(column, decimal)) is not None for column in there):
        raise InputError(f"{name}: its first line is numbers; it should name the columns")
    if target.features and not target.options.columns:
        _refuse_lacking(name, there, target)
        return target.features
    names = tuple(target.options.columns or _without_index(name, there, target))
    features = target.input.shape[1]
    if isinstance(features, int) and len(names) != features:
        raise InputError(
            f"{name}: the model takes {target.input.takes()}, and there are {len(names)} columns "
            f"({listed(names)}); name {features} of them with --column"
        )
    return names


def _refuse_lacking(name: str, there: Sequence[str], target: ReadTarget) -> None:
    """Raise InputError for a file without a column that the model names."""
    known = set(there)
    lacking = [column for column in target.features if column not in known]
    if lacking:
        raise InputError(
            f"{name} has no column {lacking[0]!r}, which the model takes (--column names others, "
            f"in its order){nearest(lacking[0], there)}"
        )


def _without_index(name: str, there: Sequence[str], target: ReadTarget) -> Sequence[str]:
    """The columns but for the index of pandas, which is no feature."""
    found = [column for column in there if INDEX.fullmatch(column)]
    if len(there) > 1 and there[0] in NO_NAMES:
        found.append(there[0])
    for column in found:
        target.say(name, f"{column!r} is the index of pandas and not read; --column names columns")
    return [column for column in there if column not in found]


def text_of(name: str, value: object, *, nul: bool) -> str:
    """The value of the column `name` as a text, maybe with a NUL; ValueError for what is none."""
    if isinstance(value, str):
        fault = text_fault(value, nul=nul)
        if fault:
            raise ValueError(f"column {name!r} {fault}")
        return value
    raise ValueError(f"column {name!r} is {shown(value)}, not text")


@dataclass(frozen=True, slots=True)
class Numbers:
    """How values of a table or an array become the numbers that a model takes."""

    dtype: np.dtype[Any]
    missing: bool = False
    """Whether an empty value, or one that is no number by its own word, is read as NaN."""
    decimal: str = "."
    """What stands before the decimals of a number that is a text: a point or a comma."""

    @classmethod
    def of(cls, target: ReadTarget, decimal: str = ".") -> "Numbers":
        """Those of the model's input."""
        return cls(np.dtype(target.input.dtype), target.options.missing == "nan", decimal)

    @property
    def nan_hint(self) -> str:
        """What the reason of a row says that lacks a value."""
        return "; --missing nan reads it as NaN" if self.dtype.kind == "f" else ""

    def one(self, name: str | None, value: object) -> float | int:
        """The value as a number; ValueError, with its column and value, where it is none."""
        what = "a value" if name is None else f"column {name!r}"
        if self.missing and is_missing(value):
            return math.nan
        found = _parsed(_pointed(value, self.decimal))
        if found is None or not math.isfinite(found):
            hint = self.nan_hint if is_missing(value) else ""
            if isinstance(value, str) and self.decimal == "." and WITH_COMMA.fullmatch(value):
                hint = "; --decimal , reads it in CSV"
            raise ValueError(f"{what} is {shown(value)}, not a number{hint}")
        if self.dtype.kind == "f":
            limit = float(np.finfo(self.dtype).max)
            if abs(found) > limit:
                raise ValueError(f"{what} is {shown(value)}, more than {self.dtype} holds")
            return found
        whole, limits = int(found), np.iinfo(self.dtype)
        if whole != found or not limits.min <= whole <= limits.max:
            raise ValueError(f"{what} is {shown(value)}, which is no {self.dtype}")
        return whole

    def records(self, records: Sequence[Sequence[object]]) -> Array | None:
        """The numbers of records, [records, values]; None where a value needs `one` for itself."""
        values = list(itertools.chain.from_iterable(records))
        if self.missing:
            values = [_as_nan(value) for value in values]
        if self.decimal != ".":
            values = [_pointed(value, self.decimal) for value in values]
        kinds = set(map(type, values))
        # Python itself would take 1_000 for a number.
        plain = kinds <= {int, float} or (kinds == {str} and "_" not in "".join(map(str, values)))
        if not plain:
            return None
        try:
            found = _all_numbers(values, self.dtype)
        except (ValueError, OverflowError):
            return None
        rows, good = self.convert(found)
        return rows.reshape(len(records), -1) if good.all() else None

    def fit(self, values: Array) -> bool:
        """Whether an array needs no more than a look: of the dtype, and all finite."""
        if values.dtype != self.dtype or self.dtype.kind != "f":
            return values.dtype == self.dtype
        with np.errstate(all="ignore"):  # one that is not finite, or too many large ones
            return bool(np.isfinite(values.sum()))

    def convert(self, values: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Integers or floats as the dtype, and which of them `one` would take."""
        dtype = self.dtype
        if dtype.kind == "f":
            wide = values
            if values.dtype != dtype:
                # By way of float64, as Python's own numbers go.
                wide = values.astype(np.float64)
                with np.errstate(all="ignore"):
                    values = wide.astype(dtype)
            good = np.abs(wide) <= float(np.finfo(dtype).max)
            return values, good | np.isnan(wide) if self.missing else good
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


def is_missing(value: object) -> bool:
    """Whether a value stands for none: empty, NaN, or a word that says so."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def shown(value: object) -> str:
    """A value as it stands in a message."""
    text = "empty" if value in (None, "") else repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."


def _pointed(value: object, decimal: str) -> object:
    """A text with the point and the comma as Python has them."""
    return value.translate(SWAPPED) if decimal == "," and isinstance(value, str) else value


def _as_nan(value: object) -> object:
    if not is_missing(value):
        return value
    return "nan" if isinstance(value, str) else math.nan


def _all_numbers(values: list[Any], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f":
        return np.fromiter(map(float, values), np.float64, len(values))
    if any(type(value) is float for value in values):
        raise ValueError("a float is looked at by itself")
    return np.fromiter(map(int, values), dtype, len(values))


def _parsed(value: Any) -> float | int | None:
    # Of a decimal, which Arrow has, the module need not be there.
    known = isinstance(value, (str, int, float)) or type(value).__name__ == "Decimal"
    if isinstance(value, bool) or not known:
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
