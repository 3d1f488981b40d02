"""A module that somebody else wrote: how its code is run, what it takes and what it answers.

What such code raises becomes one line that says what was being done, and what it prints goes to
stderr, for stdout carries data only.
"""

import dataclasses
import importlib
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import running
from pipeline.models.parts.graph import as_tensor
from serving.errors import (
    InputError,
    MissingInputError,
    ModelError,
    UnknownNameError,
    UsageError,
)
from serving.inputs.sources import reason_of
from serving.measuring.feeds import random_feeds
from serving.runtime.tensors import Array, TensorInfo


def load_module(path: str) -> torch.nn.Module:
    """Call the function at `path`, `package.file:function`, and return its module.

    The folder that ferry works in is importable, as it is for `python -m`. Raises UsageError for a
    path of another form or a file that is not there, UnknownNameError for a function that is not
    there, and ModelError for code that raises or returns no module.
    """
    file, colon, name = path.partition(":")
    if not colon or not file or not name or "/" in file or file.endswith(".py"):
        raise UsageError(
            f"--module must be an import path and a function, package.file:function, got {path!r}"
        )
    found = _imported(file)
    function = getattr(found, name, None)
    if not callable(function):
        known = [
            key for key in vars(found) if not key.startswith("_") and callable(vars(found)[key])
        ]
        raise UnknownNameError(f"function of {file}", name, known)
    with running(f"{path} failed"):
        made = function()
    if not isinstance(made, torch.nn.Module):
        raise ModelError(f"{path} must return a torch.nn.Module, it returned {type(made).__name__}")
    return made


def _imported(file: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    with running(f"importing {file} failed"):
        try:
            return importlib.import_module(file)
        except ModuleNotFoundError as error:
            # Another name is missing inside of the file, which is there.
            if not f"{file}.".startswith(f"{error.name}."):
                raise
            raise UsageError(
                f"no Python module named {file!r}, neither installed nor in {folder}"
            ) from error


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
AXIS = re.compile(r"(?P<name>\w+)(?:=(?P<least>\d*)\.\.(?P<most>\d*))?")
OUTPUT = "output"
"""The name of a tensor that is all that a module answers."""
HINT = "write NAME:float32[batch,3,224,224], float32[batch,3,224,224] or FILE.npy"


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeAxis:
    """An axis of any length, or of any between two."""

    name: str
    least: int | None = None
    """None, as below: the user gave no bound."""
    most: int | None = None

    @property
    def example(self) -> int:
        """The length that a module is traced with, and its rows are made up with."""
        return max(self.least or 1, min(LENGTH, self.most or LENGTH))

    def __contains__(self, size: int) -> bool:
        """Whether the axis may have that length."""
        return size >= (self.least or 1) and (self.most is None or size <= self.most)

    def __str__(self) -> str:
        """As a person writes it: "t" or "t=1..512"."""
        if self.least is None and self.most is None:
            return self.name
        return f"{self.name}={self.least or ''}..{self.most or ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input of a module."""

    name: str | None
    """None: what the module's `forward` calls it."""
    dtype: str
    axes: tuple[int | FreeAxis, ...]
    """Of one row: a number is a length."""
    rows: Array | None = None
    """Real rows, [rows, ...], where there are some."""


def parse_input(text: str) -> InputSpec:
    """Read what stands after `--input`: `pixels:float32[batch,3,224,224]` or a `.npy` file.

    The first axis is the batch; of the others a number is a length and a name an axis of any
    length, or of any in a range: `t=1..512`, `t=5..`. Raises UsageError for another form,
    UnknownNameError for a dtype that numpy, PyTorch and ONNX Runtime do not share, and
    MissingInputError or InputError for a file that cannot be used.
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
    batch = _axis(text, first)
    axes = tuple(_axis(text, axis) for axis in others)
    if isinstance(batch, FreeAxis):
        if str(batch) != batch.name:
            raise UsageError(f"the batch of {text!r} is any number of rows; {first} is a range")
        if {batch.name, BATCH} & {axis.name for axis in axes if isinstance(axis, FreeAxis)}:
            raise UsageError(f"the batch is the first axis alone; another is it too in {text!r}")
    return InputSpec(name=found["name"], dtype=found["dtype"], axes=axes)


def agreed(specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """The same inputs, with one range for all axes of one name; UsageError where they have two."""
    known: dict[str, FreeAxis] = {}
    for axis in (axis for spec in specs for axis in spec.axes if isinstance(axis, FreeAxis)):
        before = known.get(axis.name)
        ranges = {str(one) for one in (before, axis) if one is not None} - {axis.name}
        if len(ranges) > 1:
            raise UsageError(f"an axis has one range, got {before} and {axis}")
        known[axis.name] = axis if before is None or str(before) == axis.name else before
    return tuple(
        replace(
            spec,
            axes=tuple(one if isinstance(one, int) else known[one.name] for one in spec.axes),
        )
        for spec in specs
    )


def example(spec: InputSpec) -> Array:
    """The two rows that a module is traced with, [2, ...]."""
    return random_rows([spec], EXAMPLE_ROWS, seed=0)[0]


def random_rows(
    specs: Sequence[InputSpec], count: int, *, seed: int, sizes: Mapping[str, int] | None = None
) -> list[Array]:
    """Rows for each input, [count, ...], as `serving.measuring.feeds.random_feeds` draws them.

    Those of a file are taken over again instead. `sizes` are the lengths of free axes by name,
    where they are not those of the example.
    """
    given = sizes or {}
    infos = []
    for index, spec in enumerate(specs):
        axes = (
            axis if isinstance(axis, int) else given.get(axis.name, axis.example)
            for axis in spec.axes
        )
        infos.append(TensorInfo(name=str(index), dtype=spec.dtype, shape=(count, *axes)))
    drawn = random_feeds(infos, count, seed=seed).values()
    for rows in drawn:
        if rows.ndim > 1 and rows.dtype.kind in "bi":
            rows[..., 0] = 1  # a mask that hides all of a row would be answered by chance
    return [
        rows if spec.rows is None else spec.rows[np.arange(count) % len(spec.rows)]
        for spec, rows in zip(specs, drawn, strict=True)
    ]


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


def _axis(text: str, axis: str) -> int | FreeAxis:
    if axis.isdecimal() and int(axis) > 0:
        return int(axis)
    found = AXIS.fullmatch(axis)
    if not found or not found["name"].isidentifier():
        raise UsageError(
            f"an axis of {text!r} must be a name or a number of 1 or more, or a name with a range, "
            f"t=1..512, got {axis!r}; {HINT}"
        )
    least, most = (int(bound) if bound else None for bound in (found["least"], found["most"]))
    if least == 0 or (most is not None and (least or 1) >= most):
        raise UsageError(f"a range goes from 1 or more to more than that, got {axis!r} in {text!r}")
    return FreeAxis(name=found["name"], least=least, most=most)


class FlatModule(torch.nn.Module):
    """A module that answers named tensors alone."""

    def __init__(self, module: torch.nn.Module, specs: Sequence[InputSpec]) -> None:
        """Put the module to evaluation and ask it the examples of `specs` once.

        Inputs whose names are all parameters of `forward` are handed over by them, others by
        position. Raises InputError for inputs that it has not, and ModelError when it refuses them
        or answers no rows.
        """
        super().__init__()
        with running("the module cannot be set to evaluation"):
            module.eval()
        self.module = module
        self.inputs, self._by_name = _bound(module, specs)
        self.outputs: tuple[str, ...] = ()
        feeds = dict(zip(self.inputs, map(example, specs), strict=True))
        before, after = self._probed(feeds), self.answer(feeds)
        self.outputs = tuple(before)
        if not all(_alike(one, after[name]) for name, one in before.items()):
            raise ModelError(
                "the module answers the same rows otherwise the second time: does it keep a state, "
                "or draw random numbers, as a dropout that is always on does?"
            )
        # A second number of rows: many a module takes one alone.
        more = {name: np.concatenate([rows, rows[:1]]) for name, rows in feeds.items()}
        if tuple(self._probed(more)) != self.outputs:
            raise ModelError("the module answers other outputs from batch to batch")
        for name in set(self.inputs) & set(self.outputs):
            raise InputError(
                f"the module has an input and an output called {name!r}, and in ONNX a name stands "
                f"for one thing; call its inputs otherwise, for instance {name}_in:float32[batch,3]"
            )

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors that the module answers, in the order of `outputs`."""
        return tuple(tensor for _, tensor in flatten(self._called(tensors)))

    def answer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The module's answers to rows by the name of the input; each [rows, ...] by its name."""
        # Copies, for a module may write into what it is given.
        tensors = [as_tensor(feeds[name].copy()) for name in self.inputs]
        shapes = ", ".join(f"{name} {list(feeds[name].shape)}" for name in self.inputs)
        with running(f"the module refuses {shapes}"), torch.no_grad():
            named = list(flatten(self._called(tensors)))
            answers = {name: _array(name, one) for name, one in named}
        if len(answers) < len(named):
            twice, _ = Counter(name for name, _ in named).most_common(1)[0]
            raise ModelError(f"the module answers two tensors called {twice!r}")
        return answers

    def _called(self, tensors: Sequence[Tensor]) -> Any:
        if self._by_name:
            return self.module(**dict(zip(self.inputs, tensors, strict=True)))
        return self.module(*tensors)

    def _probed(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The answers to an example, if they are one entry a row."""
        answers = self.answer(feeds)
        rows = len(next(iter(feeds.values())))
        if not answers:
            raise ModelError("the module answers no tensor")
        for name, array in answers.items():
            if not array.ndim or len(array) != rows:
                raise ModelError(
                    f"the module's output {name} has shape {list(array.shape)} for {rows} rows; "
                    f"its first axis must be the rows"
                )
        return answers


def flatten(answer: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of what a module answers, named by where it stands: `hidden_states.0`.

    Dataclasses, mappings (as the ModelOutput of transformers), tuples and lists are taken apart.
    What is no tensor is left out.
    """
    if isinstance(answer, Tensor):
        yield name or OUTPUT, answer
    for key, value in _parts(answer):
        above = name or (OUTPUT if key.isdecimal() else "")
        yield from flatten(value, f"{above}.{key}" if above else key)


def _parts(answer: Any) -> list[tuple[str, Any]]:
    """What a container holds, by key, field or number."""
    if isinstance(answer, Mapping):
        return [(str(key), value) for key, value in answer.items()]
    if dataclasses.is_dataclass(answer):
        return [(one.name, getattr(answer, one.name)) for one in dataclasses.fields(answer)]
    if isinstance(answer, tuple) and hasattr(answer, "_fields"):
        return list(zip(answer._fields, answer, strict=True))
    if isinstance(answer, list | tuple):
        return [(str(index), value) for index, value in enumerate(answer)]
    return []


def _bound(module: torch.nn.Module, specs: Sequence[InputSpec]) -> tuple[tuple[str, ...], bool]:
    """The names of the inputs, and whether `forward` takes them by these names."""
    parameters = inspect.signature(module.forward).parameters.values()
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    kinds = {one.kind for one in parameters}
    known = [one.name for one in parameters if one.kind in plain]
    if {inspect.Parameter.VAR_KEYWORD} == kinds - {*plain}:  # it takes any name
        known += [spec.name for spec in specs if spec.name and spec.name not in known]
    names = tuple(
        spec.name or (known[index] if index < len(known) else f"input_{index}")
        for index, spec in enumerate(specs)
    )
    if len(set(names)) != len(names):
        raise InputError(f"two inputs are called alike: {', '.join(names)}")
    strange = [name for name in names if name not in known]
    if strange and len(strange) < len(names):
        raise InputError(
            f"the module has no input {strange[0]!r}; its forward takes {', '.join(known)}"
        )
    return names, not strange


def _alike(left: Array, right: Array) -> bool:
    """Whether two answers are the same but for a rounding."""
    return left.shape == right.shape and np.allclose(
        left, right, rtol=1e-3, atol=1e-6, equal_nan=True
    )


def _array(name: str, tensor: Tensor) -> Array:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in (*DTYPES, "uint16", "uint32", "uint64"):
        raise ModelError(
            f"the module's output {name} is {dtype}, which cannot be compared; cast it"
        )
    if tensor.layout is not torch.strided:
        raise ModelError(f"the module's output {name} is sparse; return it dense")
    return tensor.detach().cpu().contiguous().numpy()
