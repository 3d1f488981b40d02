"""Inputs that are the same for all rows: a sampling rate, or the state before the first step.

    open_session(model, shared={"sr": "16000", "state": "0"})

A session is then asked for the other inputs alone. A value is a number, a text or a list of them,
as JSON. One number fills its input, whose free axis has as many entries as there are rows.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serving.errors import InputError
from serving.runtime.tensors import Array, TensorInfo

HINT = "--shared NAME=VALUE gives an input one value for all rows"
"""The cure where an input is none of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedInput:
    """An input, and what it is fed whatever the rows are.

    Bundles keep it in their manifest, for their runner.
    """

    info: TensorInfo
    value: str
    """A number, a text or a list of them, as JSON."""
    rows_axis: int | None
    """The axis that has as many entries as there are rows, or None."""

    def array(self, rows: int) -> Array:
        """The array that goes with so many rows."""
        values = np.array(_parsed(self.value), self.info.dtype)
        axes = [rows if at == self.rows_axis else axis for at, axis in enumerate(self.info.shape)]
        # Of a list that has all axes, one that is free and has not the rows is as long as it is.
        lengths = values.shape if values.ndim == len(axes) else (0,) * len(axes)
        shape = [
            a if isinstance(a, int) else length for a, length in zip(axes, lengths, strict=True)
        ]
        return np.array(np.broadcast_to(values, shape), order="C")

    def continues(self, output: TensorInfo) -> bool:
        """Whether an output may be what the input is fed next: a state, with the rows elsewhere."""
        return (
            self.rows_axis not in (None, 0)
            and (output.dtype, len(output.shape)) == (self.info.dtype, len(self.info.shape))
            and all(
                a == b or not (isinstance(a, int) and isinstance(b, int))
                for a, b in zip(self.info.shape, output.shape, strict=True)
            )
        )


def shared_inputs(
    inputs: Sequence[TensorInfo], given: Mapping[str, str], model: str
) -> tuple[SharedInput, ...]:
    """The inputs that `given` names, with the values as text; `model` is its name, for messages.

    Raises InputError for a name that is none of the inputs, for all of them at once, and for a
    value that does not fit.
    """
    named = {info.name: info for info in inputs}
    for name in given:
        if name not in named:
            raise InputError(f"{model} has no input {name!r} to share; it has {', '.join(named)}")
    if given and len(given) == len(named):
        raise InputError(f"{model} has no other inputs than the shared ones: one must be the rows")
    batch = {info.shape[0] for info in inputs if info.shape and info.name not in given}
    shared = tuple(_shared(named[name], value, batch) for name, value in given.items())
    for one in shared:
        _check(one, model)
    return shared


def _shared(info: TensorInfo, value: str, batch: set[int | str | None]) -> SharedInput:
    """An input whose axis of rows is the first that is as theirs is, or else the only free one."""
    free = [at for at, axis in enumerate(info.shape) if not isinstance(axis, int)]
    alike = [at for at, axis in enumerate(info.shape) if axis in batch - {None}]
    axis = alike[0] if alike else free[0] if len(free) == 1 else None
    return SharedInput(info=info, value=value, rows_axis=axis)


def _check(one: SharedInput, model: str) -> None:
    """Refuse a value that does not fit its input, whatever is wrong with it."""
    what = "string" if one.info.is_text else one.info.dtype
    axes = ", ".join(str(axis) for axis in one.info.shape)
    message = f"{model}: the shared value {one.value!r} does not fit its input {one.info.name!r}"
    try:
        array, values = one.array(1), np.array(_parsed(one.value))
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{message}, {what} [{axes}]: {error}") from error
    if not array.size:
        raise InputError(f"{message}, {what} [{axes}]: give a list with all axes")
    if not (np.broadcast_to(values, array.shape) == array).all() and array.dtype.kind in "iu":
        raise InputError(f"{message}, {what} [{axes}]: it is no whole number")


def _parsed(value: str) -> object:
    """What a text says as JSON; a text that says nothing is itself."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
