"""Name the node at which an ONNX model leaves its reference.

A node may be further off than all before it and do nothing wrong but enlarge what it was given; and
a quantized model is a little off everywhere. So a suspect and what comes before it are run by
themselves, on values of the reference.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
import onnx

from pipeline.models.parts.graph import Graph
from pipeline.proof.differences import largest_difference
from pipeline.proof.tracing.pairs import Pair, pair_values
from pipeline.proof.tracing.torch_values import TorchValues, Traced, of_graph
from pipeline.proof.tracing.values import (
    MOVES,
    OnnxValues,
    makers,
    node_name,
    outputs_of,
    reads,
    submodel,
)
from pipeline.records.parity import Divergence
from serving.errors import InputError, ModelError
from serving.runtime.tensors import Array

Reference = Graph | Traced | onnx.ModelProto

CHUNK_BYTES = 128 * 2**20
"""Of values that are held at once, on either side."""
FIRST_CHUNK, LARGEST_CHUNK = 64, 512
"""Nodes that are looked at in one run."""
NUMBERS = "fiub"
TINY = 1e-12
"""A tensor whose largest value is below this one is not divided by it."""
ENOUGH = 0.01
"""A node whose inputs are off by less than this part of its output is to blame without a trial."""
TRIALS = 16
"""Nodes that are run by themselves: those that enlarge what they are given most."""
ROUNDING = 1e-7
"""Of float32: a relative difference below it enlarges nothing."""
SORTED_ALIKE = 1e-3
"""Values of two tensors, in order of size, that are closer than this are the same ones moved."""


def first_divergence(
    reference: Reference,
    model: onnx.ModelProto,
    feeds: Mapping[str, Array],
    limit: float | None,
    *,
    provider: str = "cpu",
) -> Divergence | None:
    """The node that makes a difference larger than the gate `limit` allows the first output.

    `reference` is ferry's `Graph`, a `Traced` module of PyTorch or another ONNX model. `feeds` is
    one raw row for each input of the model by its name, for instance uint8 [1, H, W, C]. Without a
    `limit` all are within it. `provider` runs `model`; the reference runs on the CPU.

    Nodes are walked in graph order, as many at a time as keeps the values that are held within
    bounds: every value that has a counterpart is compared, so that nothing is assumed of how a
    difference spreads. Differences are relative to the largest value of a tensor, so that layers of
    different scale compare. The first value beyond `limit` names a suspect; where its own inputs
    differ as well, it and what comes before it are run one by one on the reference's values, and
    the one with the largest difference of its own is named. So is the one with the largest where
    none is beyond the limit. None when nothing differs or nothing can be compared.

    Raises ModelError and InputError for a model that does not run on its feeds.
    """
    blame = _Blame(model, _values(reference, model, feeds), OnnxValues(model, feeds, provider))
    culprit = blame.culprit(blame.first_beyond(limit))
    return None if culprit is None else blame.divergence(culprit)


def _values(
    reference: Reference, model: onnx.ModelProto, feeds: Mapping[str, Array]
) -> TorchValues | OnnxValues:
    if isinstance(reference, Graph):
        (row,) = feeds.values()
        (opset,) = [one.version for one in model.opset_import if not one.domain]
        return of_graph(reference, row, opset)
    if isinstance(reference, Traced):
        return TorchValues(traced=reference, feeds=feeds)
    weights = {tensor.name for tensor in reference.graph.initializer}
    names = [one.name for one in reference.graph.input if one.name not in weights]
    # Where its inputs have other names, they are meant in their order.
    same = set(names) == set(feeds)
    return OnnxValues(reference, feeds if same else dict(zip(names, feeds.values(), strict=False)))


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two arrays that should be the same."""

    absolute: float
    """The largest; infinite where no number tells it: other shapes, other words, or NaN."""
    relative: float
    """Over the largest value of the reference."""
    exact: bool
    """Whether both hold whole numbers, truths or words, which are right or wrong."""


def compared(wanted: Array, found: Array, pair: Pair) -> Difference:
    """How far `found` is from what the reference has in its place.

    A quantizer's numbers are taken for the values they stand for. NaN and infinities that stand in
    both are no difference.
    """
    exact = wanted.dtype.kind != "f" and found.dtype.kind != "f"
    if wanted.shape != found.shape:
        return Difference(inf, inf, exact)
    if wanted.dtype.kind not in NUMBERS or found.dtype.kind not in NUMBERS:
        same = np.array_equal(wanted.astype(str), found.astype(str))
        return Difference(0.0, 0.0, exact) if same else Difference(inf, inf, exact)
    right = wanted.astype(np.float64)
    other = pair.steps.values(found) if pair.steps else found.astype(np.float64)
    if pair.clipped and right.size:
        other = other.clip(np.nanmin(right), np.nanmax(right))
    worst = largest_difference(right, other)
    scale = float(np.abs(right[np.isfinite(right)]).max(initial=TINY))
    return Difference(worst, worst / scale, exact)


class _Blame:
    """Both models side by side, with what is known so far of the differences of their values."""

    def __init__(
        self, model: onnx.ModelProto, wanted: TorchValues | OnnxValues, found: OnnxValues
    ) -> None:
        recurrent = wanted.recurrent if isinstance(wanted, TorchValues) else ()
        self._model = model
        self._wanted, self._found = wanted, found
        self._pairs = pair_values(model, wanted.names, recurrent)
        self._differences: dict[str, Difference] = {}
        self._makers = makers(model.graph)
        self._order = {name: at for at, name in enumerate(self._makers)}

    def first_beyond(self, limit: float | None) -> str | None:
        """The first value that is further off than the limit on the first output allows."""
        allowed = inf if limit is None else limit / self._scale()
        start, size = 0, FIRST_CHUNK
        while start < len(self._model.graph.node):
            nodes = self._model.graph.node[start : start + size]
            names = [name for node in nodes for name in outputs_of(node) if name in self._pairs]
            there, here = self._right(names), self._found.fetch(names)
            for name in names:
                if name not in there or name not in here:
                    continue
                self._differences[name] = compared(there[name], here[name], self._pairs[name])
                if self._is_beyond(name, allowed):
                    return name
            start += len(nodes)
            held = sum(array.nbytes for array in here.values())
            size = max(1, min(size * CHUNK_BYTES // max(held, 1), 2 * size, LARGEST_CHUNK))
        return None

    def culprit(self, suspect: str | None) -> str | None:
        """The value whose own node makes the largest difference, of the suspect and all before it.

        Without a suspect, of all values that differ; None when none does.
        """
        if suspect is not None:
            off = self._differences[suspect].relative
            if not isfinite(off) or (self._before(suspect) or 0.0) <= ENOUGH * off:
                return suspect
        near = self._enlarging(suspect)
        own = self._own(near)
        return max(near, key=lambda value: own[value], default=suspect)

    def divergence(self, value: str) -> Divergence:
        """The finding about the node that makes `value`."""
        node = self._node(value)
        difference, before = self._differences[value], self._before(value)
        finite = isfinite(difference.relative)
        return Divergence(
            node=node_name(node),
            operator=node.op_type,
            tensor=value,
            max_abs_diff=difference.absolute if finite else None,
            relative_diff=difference.relative if finite else None,
            input_relative_diff=before if before is not None and isfinite(before) else None,
            reference=self._wanted.describe,
        )

    def _right(self, names: Collection[str]) -> dict[str, Array]:
        """What the reference has in the place of some values, where it has anything."""
        there = self._wanted.fetch({self._pairs[name].wanted for name in names})
        return {
            name: there[self._pairs[name].wanted]
            for name in names
            if self._pairs[name].wanted in there
        }

    def _is_beyond(self, name: str, allowed: float) -> bool:
        """Whole numbers and words are right or wrong, unless what they are made of is off."""
        difference = self._differences[name]
        if difference.exact and difference.relative > 0 and not self._before(name):
            return True
        return difference.relative > allowed

    def _scale(self) -> float:
        """The largest value of the reference's first output."""
        first = self._model.graph.output[0].name
        wanted = self._right([first])[first] if first in self._pairs else np.ones(1)
        if wanted.dtype.kind not in NUMBERS:
            return 1.0
        return max(float(np.nan_to_num(np.abs(wanted.astype(np.float64))).max(initial=0)), TINY)

    def _before(self, value: str) -> float | None:
        """The largest relative difference of what a value is made of; None where none is known."""
        known = [self._differences[name].relative for name in self._sources(value)]
        return max(known, default=None)

    def _enlarging(self, suspect: str | None) -> list[str]:
        """The values at or before the suspect whose nodes enlarge differences most."""
        near = set(self._differences) if suspect is None else self._upstream(suspect)
        off = [value for value in near if self._differences[value].relative > 0]

        def gain(value: str) -> tuple[float, int]:
            before = self._before(value) or 0.0
            return self._differences[value].relative / (before + ROUNDING), -self._order[value]

        return sorted(off, key=gain, reverse=True)[:TRIALS]

    def _upstream(self, value: str) -> set[str]:
        """The compared values that a value depends on, itself included."""
        seen, waiting = {value}, [value]
        while waiting:
            new = self._sources(waiting.pop()) - seen
            seen |= new
            waiting += new
        return seen

    def _sources(self, value: str) -> set[str]:
        """The nearest compared values that a value is made of."""
        read = {name for node in self._segment(value) for name in reads(node)}
        return {name for name in read if name in self._differences}

    def _segment(self, value: str, *, numbers: bool = True) -> list[onnx.NodeProto]:
        """The nodes between a value and the nearest compared ones before it, in graph order.

        Without `numbers` a quantizer's whole numbers are none to stop at.
        """
        found: dict[int, onnx.NodeProto] = {}
        waiting = [value]
        while waiting:
            node = self._makers[waiting.pop()]
            at = self._order[outputs_of(node)[0]]
            if at not in found:
                found[at] = node
                for name in reads(node):
                    known = name in self._differences
                    stops = known and (numbers or not self._pairs[name].steps)
                    if name in self._makers and not stops:
                        waiting.append(name)
        return [found[at] for at in sorted(found)]

    def _own(self, values: Sequence[str]) -> dict[str, float]:
        """How far each value is off when its node is given the reference's values.

        What lies between a value and the nearest compared ones is run with it; 0 where that cannot
        be.
        """
        parts = {value: self._segment(value, numbers=False) for value in values}
        read = {value: _read_from_outside(nodes) for value, nodes in parts.items()}
        known = set().union(*read.values()) & self._differences.keys()
        here, right = self._found.fetch(known), self._right({*known, *values})
        given = {name: right[name].astype(here[name].dtype) for name in known}
        given |= self._found.feeds
        own = {}
        for value, nodes in parts.items():
            feeds = {name: given[name] for name in read[value] & given.keys()}
            try:
                part = submodel(self._model, nodes, feeds, value)
                alone = OnnxValues(part, feeds, self._found.provider).fetch([value])[value]
            except (InputError, ModelError):
                own[value] = 0.0
            else:
                own[value] = compared(right[value], alone, self._pairs[value]).relative
        return own

    def _node(self, value: str) -> onnx.NodeProto:
        """The node to name for a value: where it only moves others, what computes them.

        Of several nodes without a counterpart none can be told from the others but by this: where
        the right values stand in wrong places, it is the one that moves.
        """
        nodes = self._segment(value)
        computing = _computing(nodes)
        if nodes[-1].op_type not in MOVES or not computing:
            return nodes[-1]
        there, here = self._right([value]), self._found.fetch([value])
        moved = value in there and value in here and _same_sorted(there[value], here[value])
        return nodes[-1] if moved else computing[-1]


def _read_from_outside(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """What some nodes read and do not make themselves."""
    made = {name for node in nodes for name in outputs_of(node)}
    return {name for node in nodes for name in reads(node)} - made


def _computing(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Those that make new values of values; arithmetic on shapes is none of it."""
    shapes: set[str] = set()
    made = {name for node in nodes for name in outputs_of(node)}
    found = []
    for node in nodes:
        read = set(reads(node))
        if node.op_type in ("Shape", "Size") or (read & shapes and read & made <= shapes):
            shapes |= set(outputs_of(node))
        elif node.op_type not in MOVES and node.op_type != "Constant":
            found.append(node)
    return found


def _same_sorted(there: Array, here: Array) -> bool:
    """Whether both hold the same numbers, in whatever places."""
    if there.size != here.size or not {there.dtype.kind, here.dtype.kind} <= set(NUMBERS):
        return False
    one, other = (np.sort(array.astype(np.float64), axis=None) for array in (there, here))
    return bool(np.allclose(one, other, rtol=0, atol=SORTED_ALIKE * np.abs(one).max(initial=0)))
