"""Give any module one plain form: tensors in by position, a tuple of named tensors out.

Answers that are dataclasses, mappings (as the ModelOutput of transformers), tuples or lists are
taken apart, and each tensor is named by where it stood: `logits`, `hidden_states.0`.
"""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import InputError, ModelError
from pipeline.foreign.specs import InputSpec, example
from pipeline.foreign.users_code import running

__all__ = ["FlatModule", "flatten"]

Array = npt.NDArray[Any]
OUTPUT = "output"
"""The name of a tensor that is all that a module answers."""


class FlatModule(torch.nn.Module):
    """A module that answers named tensors alone."""

    def __init__(self, module: torch.nn.Module, specs: Sequence[InputSpec]) -> None:
        """Put the module to evaluation and ask it the examples of `specs` once.

        Inputs whose names are all parameters of `forward` are handed over by them, others by
        position. Raises InputError for inputs that it has not, and ModelError when it refuses them
        or answers no rows.
        """
        super().__init__()
        self.module = module.eval()
        self.inputs, self._by_name = _bound(module, specs)
        self.outputs: tuple[str, ...] = ()
        feeds = dict(zip(self.inputs, map(example, specs), strict=True))
        self.outputs = tuple(self._probed(feeds))
        # A second number of rows: many a module takes one alone.
        more = {name: np.concatenate([rows, rows[:1]]) for name, rows in feeds.items()}
        if tuple(self._probed(more)) != self.outputs:
            raise ModelError("the module answers other outputs from batch to batch")

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors that the module answers, in the order of `outputs`."""
        return tuple(tensor for _, tensor in flatten(self._called(tensors)))

    def answer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The module's answers to rows by the name of the input; each [rows, ...] by its name."""
        tensors = [_tensor(feeds[name]) for name in self.inputs]
        shapes = ", ".join(f"{name} {list(feeds[name].shape)}" for name in self.inputs)
        with running(f"the module refuses {shapes}"), torch.no_grad():
            return {name: _array(name, one) for name, one in flatten(self._called(tensors))}

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
    """Every tensor of what a module answers, with its name; what is no tensor is left out."""
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
    known = [one.name for one in parameters if one.kind in plain]
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


def _tensor(rows: Array) -> Tensor:
    return torch.from_numpy(np.require(rows, requirements=["C", "W"]))


def _array(name: str, tensor: Tensor) -> Array:
    if tensor.dtype is torch.bfloat16:
        raise ModelError(f"the module's output {name} is bfloat16, which numpy has not; cast it")
    array: Array = tensor.detach().cpu().contiguous().numpy()
    return array
