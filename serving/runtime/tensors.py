"""What a model takes and gives, by name, dtype and shape; and how rows are answered in batches.

Bundles keep a `TensorInfo` of each input and output in their manifest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import InputError, ModelError
from serving.runtime.cores import ordered_map

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
"""Arrays by the name of the input or output."""

PROBABILITIES, LOGITS = "probabilities", "logits"
"""The outputs of a classifier, as `ferry export` names them."""
NO_TENSORS = ("seq(", "map(", "optional(", "sparse_tensor(")
"""How the types begin of outputs that are no arrays, as some converters add them."""
FLOATS = ("float32", "float16", "float64")


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

    @property
    def is_array(self) -> bool:
        """Whether it is an array; a sequence or a map is none."""
        return not self.dtype.startswith(NO_TENSORS)

    @property
    def lacks_numpy(self) -> bool:
        """Whether it is an array of a type that numpy has not, for instance bfloat16."""
        return self.dtype.startswith("tensor(")

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

    def is_like(self, other: "TensorInfo") -> bool:
        """Whether both may declare the same tensor: an axis of any length is like every other.

        So is an unknown rank, which is given as no shape at all.
        """
        return (self.name, self.dtype) == (other.name, other.dtype) and (
            not (self.shape and other.shape)
            or (
                len(self.shape) == len(other.shape)
                and all(
                    a == b or not (isinstance(a, int) and isinstance(b, int))
                    for a, b in zip(self.shape, other.shape, strict=True)
                )
            )
        )

    def no_rows(self) -> Array:
        """The array of an output for no rows; an axis of any length has none."""
        axes = [axis if isinstance(axis, int) else 0 for axis in self.shape[1:]]
        return np.zeros((0, *axes), self.dtype)


def infos_of(arrays: Arrays) -> list[TensorInfo]:
    """What arrays are, by name: answers that are there say more of their shapes than a model."""
    return [
        TensorInfo(name=name, dtype=str(array.dtype), shape=array.shape)
        for name, array in arrays.items()
    ]


def answer_in_batches(
    call: Callable[[Arrays], Arrays],
    feeds: Arrays,
    batch_size: int,
    *,
    name: str,
    fixed: int | None = None,
    parallel: int = 1,
) -> dict[str, Array]:
    """Answer rows batch by batch; returns each output by its name, [rows, ...].

    `call` answers one batch. `feeds` are the rows of each input, [rows, ...]; without any rows
    there is one empty batch. A model that takes one batch size alone gives it as `fixed`: its last
    batch is filled up with the last row, and the answers to those are dropped. `parallel` batches
    run at a time. `name` is the model's, for messages.

    Raises InputError for no rows where the batch size is fixed, and ModelError for an output whose
    first axis is not the rows, or whose other axes change from batch to batch.
    """
    rows, size = _count(feeds), fixed or batch_size
    if fixed and not rows:
        raise InputError(f"{name} takes batches of {fixed} and no others")

    def answered(start: int) -> dict[str, Array]:
        batch = {key: array[start : start + size] for key, array in feeds.items()}
        found = call(_filled(name, batch, fixed) if fixed else batch)
        refuse_other_rows(name, found, fixed or _count(batch))
        return {key: array[: _count(batch)] for key, array in found.items()}

    starts = range(0, max(rows, 1), size)
    # A single batch needs no thread of its own.
    parts = list(ordered_map(answered, starts, parallel=max(1, min(parallel, len(starts)))))
    return {key: _joined(name, key, [part[key] for part in parts]) for key in parts[0]}


def refuse_other_rows(name: str, outputs: Arrays, rows: int) -> None:
    """Raise ModelError for an output whose first axis is not the rows; `name` is the model's."""
    for key, array in outputs.items():
        if not array.ndim or len(array) != rows:
            raise ModelError(
                f"{name}: output {key} has shape {list(array.shape)} for {rows} rows; its first "
                f"axis must be the rows"
            )


def is_table(output: TensorInfo | Array) -> bool:
    """Whether an output can hold the scores of classes: floats [rows, classes], two or more."""
    floats = str(output.dtype) in FLOATS
    return floats and len(output.shape) == 2 and output.shape[1] not in (0, 1)


def described(rows: object) -> str:
    """What rows are, for messages: "float32 [2, 3]"."""
    if isinstance(rows, np.ndarray):
        return f"{rows.dtype} {list(rows.shape)}"
    return f"a {type(rows).__name__}, not a numpy array"


def strings_of(rows: Array) -> Array:
    """The same strings as Python's, which may have any length; InputError for what is no string."""
    rows = rows.astype(object)
    for index, value in enumerate(rows.flat):
        if not isinstance(value, str):
            kind = type(value).__name__
            raise InputError(f"the model takes strings, value {index} of its input is a {kind}")
    return rows


def as_fed(rows: Array) -> Array:
    """Rows as ONNX Runtime takes them: contiguous, and texts as Python's own."""
    return rows.astype(object) if rows.dtype.kind == "U" else np.asarray(rows, order="C")


def _count(feeds: Arrays) -> int:
    return len(next(iter(feeds.values())))


def _filled(name: str, batch: Arrays, size: int) -> dict[str, Array]:
    missing = size - _count(batch)
    if not missing:
        return dict(batch)
    try:
        return {
            key: np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
            for key, rows in batch.items()
        }
    except (MemoryError, ValueError) as error:  # numpy raises one or the other, by the size
        raise ModelError(f"{name} takes batches of {size:,} rows: no memory for these") from error


def _joined(name: str, output: str, parts: list[Array]) -> Array:
    try:
        return np.concatenate(parts)
    except ValueError as error:
        raise ModelError(
            f"{name}: output {output} has another shape from batch to batch"
        ) from error
