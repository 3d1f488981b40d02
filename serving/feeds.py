"""Make up inputs for a model by the names, dtypes and shapes that it declares.

Timing needs no real rows: ONNX Runtime's kernels take as long for one value as for another.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import InputError
from serving.session import TensorInfo

__all__ = ["fixed_batch", "random_feeds"]

Array = npt.NDArray[Any]


def random_feeds(
    inputs: Sequence[TensorInfo], batch_size: int, *, seed: int = 1
) -> dict[str, Array]:
    """Draw values for each input, by name, as arrays of the declared dtype and shape.

    uint8 takes all its values, floats a normal distribution, and other integers 0 or 1, which any
    table of embeddings can look up. Raises InputError for an input of strings.
    """
    rng = np.random.default_rng(seed)
    return {info.name: _random(info, batch_size, rng) for info in inputs}


def fixed_batch(inputs: Sequence[TensorInfo]) -> int | None:
    """The batch size that the inputs prescribe, or None where any will do.

    Raises InputError when an axis other than the batch, axis 0, may have any length.
    """
    for info in inputs:
        for axis, size in enumerate(info.shape):
            if axis and not isinstance(size, int):
                raise InputError(
                    f"axis {axis} ({size or 'unnamed'}) of input {info.name!r} may have any "
                    f"length; only the batch, axis 0, may be free for timing"
                )
    leading = [info.shape[0] for info in inputs if info.shape]
    fixed = [size for size in leading if isinstance(size, int)]
    return fixed[0] if fixed and len(fixed) == len(leading) else None


def _random(info: TensorInfo, batch_size: int, rng: np.random.Generator) -> Array:
    shape = [size if isinstance(size, int) else batch_size for size in info.shape]
    if info.dtype == "object":
        raise InputError(f"input {info.name!r} takes text; random text says nothing about speed")
    dtype = np.dtype(info.dtype)
    if dtype == np.uint8:
        return rng.integers(0, 256, shape, dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)
