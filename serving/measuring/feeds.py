"""What a model is fed for timing: inputs made up by what it declares, or real rows of a file.

Numbers need not be real: ONNX Runtime's kernels take as long for one value as for another. Texts
must be, as their words decide how long the model takes.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from serving.errors import InputError, MissingInputError
from serving.files import refuse_special
from serving.inputs.arrays import open_array
from serving.inputs.names import ARRAY_SUFFIXES
from serving.inputs.sources import InputRow, ReadOptions, ReadTarget, each_row
from serving.inputs.text import open_lines
from serving.runtime.tensors import Array, TensorInfo


def random_feeds(
    inputs: Sequence[TensorInfo], batch_size: int, *, seed: int = 1
) -> dict[str, Array]:
    """Draw values for each input, by name, as arrays of the declared dtype and shape.

    uint8 takes all its values, floats a normal distribution, and other integers 0 or 1, which any
    table of embeddings can look up. Raises InputError for an input of strings.
    """
    rng = np.random.default_rng(seed)
    return {info.name: _random(info, batch_size, rng) for info in inputs}


def read_rows(path: Path, inputs: Sequence[TensorInfo], model: Path, most: int) -> dict[str, Array]:
    """The first rows of a `.npy`, `.npz` or `.txt` file, `most` at most, by the input's name.

    A model of several inputs takes a `.npz` with an array of each one's name. Raises InputError for
    another file, and for one without rows that the model takes.
    """
    if not path.exists():
        raise MissingInputError(f"{path} is not there")
    refuse_special(path)
    if len(inputs) == 1:
        return {inputs[0].name: _read(path, inputs[0], model, most)}
    if path.suffix.lower() != ".npz":
        names = ", ".join(info.name for info in inputs)
        raise InputError(
            f"{model} has the inputs {names}; give its rows as a .npz with an array of each name"
        )
    targets = [ReadTarget(info, model, ReadOptions(array=info.name)) for info in inputs]
    return {target.input.name: open_array(path, target)[:most] for target in targets}


def feeds_of(
    inputs: Sequence[TensorInfo], rows: Mapping[str, Array], batch_size: int
) -> dict[str, Array]:
    """A batch of `rows` for each input, over again to fill it; a made-up one without rows."""
    if not rows:
        return random_feeds(inputs, batch_size)
    feeds = {}
    for info in inputs:
        batch = np.resize(rows[info.name], (batch_size, *rows[info.name].shape[1:]))
        feeds[info.name] = batch.astype(object) if info.is_text else batch
    return feeds


def refuse_free_axes(inputs: Sequence[TensorInfo]) -> None:
    """Raise InputError when an axis other than the batch, axis 0, may have any length."""
    for info in inputs:
        for axis, size in enumerate(info.shape):
            if axis and not isinstance(size, int):
                raise InputError(
                    f"axis {axis} ({size or 'unnamed'}) of input {info.name!r} may have any "
                    f"length; name a file of real rows with --data"
                )


def fixed_batch(inputs: Sequence[TensorInfo]) -> int | None:
    """The batch size that the inputs prescribe, or None where any will do."""
    leading = [info.shape[0] for info in inputs if info.shape]
    fixed = [size for size in leading if isinstance(size, int)]
    return fixed[0] if fixed and len(fixed) == len(leading) else None


def _read(path: Path, info: TensorInfo, model: Path, most: int) -> Array:
    target, suffix = ReadTarget(info, model), path.suffix.lower()
    if suffix in ARRAY_SUFFIXES:
        return np.array(open_array(path, target)[:most])
    if suffix != ".txt":
        known = ", ".join((*ARRAY_SUFFIXES, ".txt"))
        raise InputError(f"{path}: unknown suffix {suffix!r}; rows for timing are {known}")
    rows: list[Array] = []
    for item in itertools.islice(each_row(open_lines(path, target)), most):
        if not isinstance(item, InputRow):
            raise InputError(f"{item.id}: {item.reason}")
        rows.append(item.value)
    return np.stack(rows)


def _random(info: TensorInfo, batch_size: int, rng: np.random.Generator) -> Array:
    shape = [size if isinstance(size, int) else batch_size for size in info.shape]
    if info.is_text:
        raise InputError(
            f"input {info.name!r} takes text, and random text says nothing about speed; "
            f"name a file of real rows with --data"
        )
    if info.lacks_numpy:
        raise InputError(f"input {info.name!r} is a {info.dtype}, which numpy has no type for")
    dtype = np.dtype(info.dtype)
    if dtype == np.uint8:
        return rng.integers(0, 256, shape, dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)
