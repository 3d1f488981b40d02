"""Name the node that makes the first NaN or infinity: `first_nonfinite(model, feeds)`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from pipeline.records.nonfinite import NonFinite
from pipeline.tracing.graphs import called, makers, outputs_of, reads
from pipeline.tracing.values import Array, OnnxValues

__all__ = ["first_nonfinite"]

CHUNK = 64
"""Nodes whose values are held at once."""


@dataclass(frozen=True, slots=True)
class _State:
    """What a value holds."""

    nan: bool
    above: bool
    """Positive infinity."""
    below: bool

    @property
    def finite(self) -> bool:
        return not (self.nan or self.above or self.below)


def first_nonfinite(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> NonFinite | None:
    """The first node in graph order whose output is NaN or infinite while its inputs are finite.

    `feeds` are raw rows by input name, [rows, ...] each. A weight that is not finite counts for the
    node that reads it. Of nodes that lead to an output of the model which is not finite only; None
    when all outputs are finite. A negative infinity is what attention masks are made of, so it is
    named only where nothing else that comes before the output makes NaN or a positive infinity.

    Raises ModelError and InputError for a model that does not run on its feeds.
    """
    values = OnnxValues(model, feeds)
    bad = _bad(values, [output.name for output in model.graph.output])
    if all(state.finite for state in bad.values()):
        return None
    leading = _leading(model, [name for name, state in bad.items() if not state.finite])
    found: list[NonFinite] = []
    states: dict[str, _State] = {}
    for start in range(0, len(leading), CHUNK):
        nodes = leading[start : start + CHUNK]
        states |= _bad(values, [name for node in nodes for name in outputs_of(node)])
        for node in nodes:
            made = _made(node, states)
            if made is not None and not states[made.tensor].below:
                return made
            found += [made] if made is not None else []
    return found[0] if found else None


def _made(node: onnx.NodeProto, states: Mapping[str, _State]) -> NonFinite | None:
    """What a node makes of finite inputs that is not finite."""
    if any(not states[name].finite for name in reads(node) if name in states):
        return None
    for name in outputs_of(node):
        if name in states and not states[name].finite:
            kind: Literal["NaN", "infinity"] = "NaN" if states[name].nan else "infinity"
            return NonFinite(node=called(node), operator=node.op_type, tensor=name, kind=kind)
    return None


def _bad(values: OnnxValues, names: Sequence[str]) -> dict[str, _State]:
    """The state of each value of floats."""
    return {
        name: _State(
            bool(np.isnan(array).any()), bool(np.isposinf(array).any()), _only_below(array)
        )
        for name, array in values.fetch(names).items()
        if array.dtype.kind == "f"
    }


def _only_below(array: Array) -> bool:
    return bool(np.isneginf(array).any() and not (np.isnan(array) | np.isposinf(array)).any())


def _leading(model: onnx.ModelProto, names: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that some values depend on, in graph order."""
    made = makers(model.graph)
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in made and name not in seen:
            seen.add(name)
            waiting += reads(made[name])
    return [node for node in model.graph.node if seen & set(outputs_of(node))]
