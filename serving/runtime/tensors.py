"""What an input or an output of a model is: its name, dtype and shape.

Bundles keep it in their manifest, and rows are held against it before they are fed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import InputError

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """An input or an output of a model."""

    name: str
    dtype: str
    """The numpy name, for instance "uint8"; "object" for strings."""
    shape: tuple[int | str | None, ...]
    """A name or None stands for an axis of any length."""

    @property
    def is_text(self) -> bool:
        """Whether it holds strings."""
        return self.dtype == "object"

    def takes(self) -> str:
        """What rows of an input must be, for messages: "uint8 [rows, 8, 8, 1]"."""
        axes = ", ".join(str(axis) for axis in self.shape[1:])
        dtype = "string" if self.is_text else self.dtype
        return f"{dtype} [rows{', ' if axes else ''}{axes}]"

    def accepts(self, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> bool:
        """Whether rows of that dtype and shape, without the batch axis, are what it takes."""
        axes = self.shape[1:]
        return (
            (dtype.kind in "OUT" if self.is_text else str(dtype) == self.dtype)
            and len(axes) == len(row_shape)
            and all(not isinstance(a, int) or a == b for a, b in zip(axes, row_shape, strict=True))
        )

    def no_rows(self) -> Array:
        """The array of an output for no rows; an axis of any length has none."""
        axes = [axis if isinstance(axis, int) else 0 for axis in self.shape[1:]]
        return np.zeros((0, *axes), self.dtype)


def described(rows: object) -> str:
    """What rows are, for messages: "float32 [2, 3]"."""
    if isinstance(rows, np.ndarray):
        return f"{rows.dtype} {list(rows.shape)}"
    return f"a {type(rows).__name__}, not a numpy array"


def strings_of(rows: Array) -> Array:
    """The same strings as Python's, which ONNX Runtime takes whatever their length.

    Raises InputError for a value that is none.
    """
    rows = rows.astype(object)
    for index, value in enumerate(rows.flat):
        if not isinstance(value, str):
            kind = type(value).__name__
            raise InputError(f"the model takes strings, value {index} of its input is a {kind}")
    return rows
