"""What a module takes, as a person writes it: `pixels:float32[batch,3,224,224]`, or a `.npy` file.

The first axis is the batch and any number of rows fits it, whatever stands there. Of the others a
number is a length and a name an axis of any length.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError, MissingInputError, UnknownNameError, UsageError
from serving.feeds import random_feeds
from serving.readers.items import reason_of
from serving.tensors import TensorInfo

__all__ = ["BATCH", "DTYPES", "InputSpec", "example", "parse_input", "random_rows"]

Array = npt.NDArray[Any]

BATCH = "batch"
DTYPES = (
    *("float32", "float64", "float16", "uint8"),
    *("int8", "int16", "int32", "int64", "bool"),
)
"""The dtypes that numpy, PyTorch and ONNX Runtime share."""
LENGTH = 8
"""Of an axis of any length, where rows are made up."""
EXAMPLE_ROWS = 2
"""A batch of one would be taken for a constant."""
FORM = re.compile(r"(?:(?P<name>[A-Za-z_]\w*):)?(?P<dtype>\w+)\[(?P<axes>[^\[\]]*)\]")
FILE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*):)?(?P<file>.+\.npy)")
HINT = "write NAME:float32[batch,3,224,224], float32[batch,3,224,224] or FILE.npy"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input of a module."""

    name: str | None
    """None: what the module's `forward` calls it."""
    dtype: str
    axes: tuple[int | str, ...]
    """Of one row: a number, or a name for an axis of any length."""
    rows: Array | None = None
    """Real rows, [rows, ...], where there are some."""


def parse_input(text: str) -> InputSpec:
    """Read what stands after `--input`.

    Raises UsageError for another form, UnknownNameError for a dtype that numpy, PyTorch and ONNX
    Runtime do not share, and MissingInputError or InputError for a file that cannot be used.
    """
    if found := FILE.fullmatch(text):
        return _of_file(found["name"], Path(found["file"]))
    found = FORM.fullmatch(text.replace(" ", ""))
    if not found:
        raise UsageError(f"cannot read the input {text!r}; {HINT}")
    if found["dtype"] not in DTYPES:
        raise UnknownNameError("dtype", found["dtype"], DTYPES)
    first, *others = found["axes"].split(",")
    if not first:
        raise UsageError(f"the input {text!r} has no batch axis; {HINT}")
    _axis(text, first)
    axes = tuple(_axis(text, axis) for axis in others)
    return InputSpec(name=found["name"], dtype=found["dtype"], axes=axes)


def example(spec: InputSpec) -> Array:
    """The two rows that a module is traced with, [2, ...]."""
    if spec.rows is None:
        return random_rows([spec], EXAMPLE_ROWS, seed=0)[0]
    rows = np.array(spec.rows[:EXAMPLE_ROWS])
    return rows if len(rows) == EXAMPLE_ROWS else np.concatenate([rows, rows])


def random_rows(specs: Sequence[InputSpec], count: int, *, seed: int) -> list[Array]:
    """Rows for each input, [count, ...], as `serving.feeds.random_feeds` draws them."""
    infos = [
        TensorInfo(name=str(index), dtype=spec.dtype, shape=(count, *lengths(spec)))
        for index, spec in enumerate(specs)
    ]
    return list(random_feeds(infos, count, seed=seed).values())


def lengths(spec: InputSpec) -> tuple[int, ...]:
    """The axes of a row that is made up."""
    return tuple(axis if isinstance(axis, int) else LENGTH for axis in spec.axes)


def _of_file(name: str | None, path: Path) -> InputSpec:
    if not path.exists():
        raise MissingInputError(f"{path} is not there; it should hold rows for an input")
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(
            f"{path} is not a .npy file that can be read: {reason_of(error)}"
        ) from error
    if rows.dtype.name not in DTYPES:
        raise InputError(f"{path} holds {rows.dtype}; a module takes one of {', '.join(DTYPES)}")
    if not rows.ndim or not len(rows):
        raise InputError(f"{path} holds no rows")
    return InputSpec(name=name, dtype=rows.dtype.name, axes=rows.shape[1:], rows=rows)


def _axis(text: str, axis: str) -> int | str:
    if axis.isidentifier():
        return axis
    if axis.isdecimal() and int(axis) > 0:
        return int(axis)
    raise UsageError(
        f"an axis of {text!r} must be a name or a number of 1 or more, got {axis!r}; {HINT}"
    )
