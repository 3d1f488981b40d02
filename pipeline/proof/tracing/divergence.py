"""Name the node at which an ONNX model leaves its reference, or makes its first NaN or infinity.

The reference is ferry's own graph or any other module in PyTorch, whose values the exporter's names
find again, another ONNX model with the same names, or the operators' own definition.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx

from pipeline.network.graph import Graph
from pipeline.proof.tracing.blame import Blame, Difference, compared
from pipeline.proof.tracing.pairs import Pair, pair_values
from pipeline.proof.tracing.torch_values import TorchValues, Traced, of_graph
from pipeline.proof.tracing.values import (
    Array,
    OnnxValues,
    ReferenceValues,
    Values,
    makers,
    node_name,
    outputs_of,
    reads,
)
from pipeline.records.parity import Divergence, NonFinite
from serving.errors import ModelError

Reference = Graph | Traced | onnx.ModelProto | None

CHUNK_BYTES = 128 * 2**20
"""Of values that are held at once, on either side."""
FIRST_CHUNK, LARGEST_CHUNK = 64, 512
"""Nodes that are looked at in one run."""
NONFINITE_CHUNK = 64
"""Nodes whose values are held at once, where only the model runs."""
LARGEST_REFERENCE = 1000
"""Nodes that `onnx.reference`, which is slow, is asked to run."""


def first_divergence(
    reference: Reference,
    model: onnx.ModelProto,
    feeds: Mapping[str, Array] | Array,
    limit: float | None,
    *,
    provider: str = "cpu",
) -> Divergence | None:
    """The node that makes a difference larger than the gate `limit` allows the first output.

    `reference` is ferry's `Graph`, a `Traced` module of PyTorch, another ONNX model, or None for
    what the operators of `model` are defined to compute: then `onnx.reference` where it has them
    all, else the unoptimized session of ONNX Runtime, against which the optimized one is held.
    `feeds` is one raw row for each input of the model by its name, for instance uint8 [1, H, W, C],
    or the bare array for a model of one input. Without a `limit` all are within it. `provider` runs
    `model`; the reference runs on the CPU.

    Nodes are walked in graph order, as many at a time as keeps the values that are held within
    bounds: every value that has a counterpart is compared, so that nothing is assumed of how a
    difference spreads. Differences are relative to the largest value of a tensor, so that layers of
    different scale compare. The first value beyond `limit` names a suspect; where its own inputs
    differ as well, it and what comes before it are run one by one on the reference's values, and
    the one with the largest difference of its own is named. So is the one with the largest where
    none is beyond the limit. None when nothing differs or nothing can be compared.

    Raises ModelError and InputError for a model that does not run on its feeds.
    """
    if not isinstance(feeds, Mapping):
        feeds = {model.graph.input[0].name: feeds}
    wanted = _reference(reference, model, feeds)
    optimize = reference is None and isinstance(wanted, OnnxValues)
    found = OnnxValues(model, feeds, provider=provider, optimize=optimize)
    recurrent = wanted.recurrent if isinstance(wanted, TorchValues) else ()
    pairs = pair_values(model, wanted.names, recurrent)
    walk = _Walk(model=model, wanted=wanted, found=found, pairs=pairs)
    blame = Blame(model, pairs, walk.differences)
    suspect = walk.first_beyond(limit, blame)
    value = blame.culprit(suspect, wanted, found)
    return None if value is None else blame.divergence(value, wanted, found)


def _reference(reference: Reference, model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Values:
    if isinstance(reference, Graph):
        (row,) = feeds.values()
        return of_graph(reference, row, _opset(model))
    if isinstance(reference, Traced):
        return TorchValues(traced=reference, feeds=feeds)
    if isinstance(reference, onnx.ModelProto):
        return OnnxValues(reference, _renamed(reference, feeds))
    return _definition(model, feeds)


def _renamed(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    """The feeds by the names of this model's inputs; where these are others, in their order."""
    weights = {tensor.name for tensor in model.graph.initializer}
    names = [one.name for one in model.graph.input if one.name not in weights]
    return feeds if set(names) == set(feeds) else dict(zip(names, feeds.values(), strict=False))


def _definition(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Values:
    """What the operators are defined to compute, else what ONNX Runtime computes as written."""
    if len(model.graph.node) <= LARGEST_REFERENCE:
        values = ReferenceValues(model, feeds)
        try:
            values.fetch([output.name for output in model.graph.output])
        except ModelError:
            return OnnxValues(model, feeds)
        return values
    return OnnxValues(model, feeds)


def _opset(model: onnx.ModelProto) -> int:
    versions: dict[str, int] = {entry.domain: entry.version for entry in model.opset_import}
    return versions[""]


@dataclass(slots=True, kw_only=True)
class _Walk:
    """Both models side by side, in graph order."""

    model: onnx.ModelProto
    wanted: Values
    found: OnnxValues
    pairs: Mapping[str, Pair]
    differences: dict[str, Difference] = field(default_factory=dict)

    def first_beyond(self, limit: float | None, blame: Blame) -> str | None:
        """The first value that is further off than the limit on the first output allows."""
        allowed = np.inf if limit is None else limit / self._scale()
        start, size = 0, FIRST_CHUNK
        while start < len(self.model.graph.node):
            nodes = self.model.graph.node[start : start + size]
            names = [name for node in nodes for name in outputs_of(node) if name in self.pairs]
            there = self.wanted.fetch({self.pairs[name].wanted for name in names})
            here = self.found.fetch(names)
            for name in names:
                wanted = there.get(self.pairs[name].wanted)
                if wanted is None or name not in here:
                    continue
                self.differences[name] = compared(wanted, here[name], self.pairs[name])
                if self._is_beyond(name, allowed, blame):
                    return name
            start += len(nodes)
            size = _next_size(size, sum(array.nbytes for array in here.values()))
        return None

    def _is_beyond(self, name: str, allowed: float, blame: Blame) -> bool:
        """Whole numbers and words are right or wrong, unless what they are made of is off."""
        difference = self.differences[name]
        if difference.exact and difference.relative > 0 and not blame.before(name):
            return True
        return difference.relative > allowed

    def _scale(self) -> float:
        """The largest value of the reference's first output."""
        first = self.model.graph.output[0].name
        if first not in self.pairs:
            return 1.0
        wanted = self.wanted.fetch([self.pairs[first].wanted])[self.pairs[first].wanted]
        if wanted.dtype.kind not in "fiub":
            return 1.0
        return max(float(np.nan_to_num(np.abs(wanted.astype(np.float64))).max(initial=0)), 1e-12)


def _next_size(size: int, held: int) -> int:
    """How many nodes to look at next, of the bytes that the last ones left."""
    fitting = size * CHUNK_BYTES // max(held, 1)
    return max(1, min(fitting, 2 * size, LARGEST_CHUNK))


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
    for start in range(0, len(leading), NONFINITE_CHUNK):
        nodes = leading[start : start + NONFINITE_CHUNK]
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
            return NonFinite(node=node_name(node), operator=node.op_type, tensor=name, kind=kind)
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
