"""What answers raw rows and can be compared: trained weights, a module of PyTorch, an ONNX model.

A side keeps its inputs and outputs as they are: any number of them, of any dtype.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from pipeline.exporting.signatures import FlatModule
from pipeline.network.graph import Graph
from pipeline.proof.differences import largest_difference
from pipeline.proof.tracing.torch_values import TorchValues, Traced
from serving.errors import InputError, ModelError
from serving.measuring.feeds import fixed_batch
from serving.runtime.session import Session, open_session
from serving.runtime.settings import Level
from serving.runtime.tensors import TensorInfo, answer_in_batches, as_fed

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """What every side has."""

    name: str
    """As a person calls it."""
    inputs: tuple[TensorInfo, ...]
    """What it takes; the first axis of each is the rows."""
    outputs: tuple[TensorInfo, ...]
    """What it answers, in order; all are arrays."""
    sha256: str
    """Of its file, or of its weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSide(_Side):
    """An experiment's trained weights, answered by PyTorch on the CPU."""

    graph: Graph

    def answer(self, feeds: Mapping[str, Array], batch_size: int) -> dict[str, Array]:
        """As every `Side`; raises InputError for rows that PyTorch refuses."""
        return answer_in_batches(self._call, feeds, batch_size, name=self.name)

    def _call(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        rows = feeds[self.inputs[0].name]
        try:
            outputs = self.graph.answer(rows, max(1, len(rows)))
        except (RuntimeError, IndexError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"PyTorch refused its input: {reason}") from error
        named = zip(self.graph.head.outputs, outputs, strict=True)
        return {name: output.numpy() for name, output in named}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSide(_Side):
    """A module of anybody's, answered by PyTorch on the CPU, with what torch's exporter traced."""

    flat: FlatModule
    traced: Traced

    def answer(self, feeds: Mapping[str, Array], batch_size: int) -> dict[str, Array]:
        """As every `Side`; raises ModelError for rows that the module refuses."""
        return answer_in_batches(self.flat.answer, feeds, batch_size, name=self.name)

    def off_the_trace(self, feeds: Mapping[str, Array], limit: float) -> str | None:
        """In words, where the trace computes something else than the module; None if nowhere."""
        traced = TorchValues(traced=self.traced, feeds=feeds).fetch(self.flat.outputs)
        for name, array in self.flat.answer(feeds).items():
            apart = largest_difference(array, traced[name])
            if apart > limit:
                return (
                    f"torch's exporter traced another computation than the module's: the two "
                    f"differ by {apart:.1e} at {name} before anything is made ONNX of"
                )
        return None

    def rounding(self, feeds: Mapping[str, Array]) -> float | None:
        """How far the module's answers are from those it gives in float64.

        That much of a difference is PyTorch's own, and no exporter's. None for a module that does
        not run in float64.
        """
        exact = {
            name: one.astype(np.float64) if one.dtype.kind == "f" else one
            for name, one in feeds.items()
        }
        wide = copy.deepcopy(self.flat).double()
        try:
            answers = wide.answer(exact)
        except ModelError:
            return None
        apart = (
            largest_difference(one, answers[name])
            for name, one in self.flat.answer(feeds).items()
            if one.dtype.kind == "f"
        )
        return max(apart, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSide(_Side):
    """An ONNX model on one provider of ONNX Runtime."""

    session: Session
    content: bytes
    """The very bytes that run."""

    def answer(self, feeds: Mapping[str, Array], batch_size: int) -> dict[str, Array]:
        """As every `Side`; a model of one fixed batch size is fed that, filled up."""
        fixed = fixed_batch(self.inputs)
        return answer_in_batches(self._call, feeds, batch_size, name=self.name, fixed=fixed)

    def model(self) -> onnx.ModelProto:
        """The model itself, for those that look inside."""
        return onnx.load_from_string(self.content)

    def at(self, level: Level) -> "ModelSide":
        """The same model with another amount of optimization."""
        return model_side(self.name, self.content, self.session.provider, level)

    def _call(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        known = {info.name for info in self.outputs}
        found = self.session.run({name: as_fed(rows) for name, rows in feeds.items()})
        return {name: array for name, array in found.items() if name in known}


Side = WeightsSide | ModuleSide | ModelSide
"""One of two models that are compared.

`answer` takes raw rows by the name of the input, [rows, ...] each, and returns each output by name,
[rows, ...], answered in batches of the size that is asked for. No rows at all are one empty batch.
It raises InputError for what the side does not take and ModelError for an output that is not one
entry a row.
"""


def model_side(name: str, content: bytes, provider: str = "cpu", level: Level = "all") -> ModelSide:
    """A side of an ONNX file's bytes.

    Raises ModelError for a model that cannot be run or has no rows to be asked, and ProviderError.
    """
    session = open_session(content, provider=provider, optimize=level)
    for info in session.inputs:
        if not info.shape:
            raise ModelError(f"{name}: input {info.name} has no batch axis")
    if not session.inputs:
        raise ModelError(f"{name} has no inputs, so there is nothing to compare it on")
    return ModelSide(
        name=name,
        inputs=session.inputs,
        outputs=tuple(info for info in session.outputs if info.is_array),
        sha256=session.sha256,
        session=session,
        content=content,
    )


def check_alike(reference: Side, other: Side) -> None:
    """Refuse two sides that do not take the same rows, or do not answer the same outputs.

    An axis of any length is like every other, and so are floats of any precision that are
    answered. Raises InputError that names what differs.
    """
    for what, left, right in (
        ("takes", reference.inputs, other.inputs),
        ("answers", reference.outputs, other.outputs),
    ):
        names = {info.name: info for info in right}
        same = len(left) == len(right) and all(
            info.name in names and _alike(info, names[info.name], answered=what == "answers")
            for info in left
        )
        if not same:
            raise InputError(
                f"{reference.name} {what} {_describe(left)}, {other.name} {what} "
                f"{_describe(right)}: they cannot be compared"
            )


def _alike(left: TensorInfo, right: TensorInfo, *, answered: bool) -> bool:
    floats = answered and "float" in left.dtype and "float" in right.dtype
    # An unknown rank is given as no shape at all.
    unknown = answered and not (left.shape and right.shape)
    return (floats or left.dtype == right.dtype) and (
        unknown
        or (
            len(left.shape) == len(right.shape)
            and all(
                not (isinstance(a, int) and isinstance(b, int)) or a == b
                for a, b in zip(left.shape[1:], right.shape[1:], strict=True)
            )
        )
    )


def _describe(infos: Sequence[TensorInfo]) -> str:
    return ", ".join(f"{info.name} {info.takes()}" for info in infos) or "nothing"
