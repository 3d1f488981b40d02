"""Which node makes a difference: the one that is off when it is given the reference's own inputs.

A node may be further off than all before it and do nothing wrong but enlarge what it was given; and
a quantized model is a little off everywhere. So a suspect and what comes before it are run by
themselves, on values of the reference.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
import onnx

from pipeline.proof.tracing.pairs import Pair
from pipeline.proof.tracing.values import (
    MOVES,
    Array,
    OnnxValues,
    Values,
    fed,
    makers,
    node_name,
    outputs_of,
    reads,
    submodel,
)
from pipeline.records.parity import Divergence
from serving.errors import InputError, ModelError

NUMBERS = "fiub"
TINY = 1e-12
"""A tensor whose largest value is below this one is not divided by it."""


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
    worst = _largest(right, other)
    scale = float(np.abs(right[np.isfinite(right)]).max(initial=TINY))
    return Difference(worst, worst / scale, exact)


def _largest(right: Array, other: Array) -> float:
    """The largest absolute difference; infinite where only one of both is a finite number."""
    same = (right == other) | (np.isnan(right) & np.isnan(other))
    with np.errstate(invalid="ignore"):  # infinity less infinity, where both are the same
        off = np.abs(right - other)
    off = np.where(same, 0.0, np.nan_to_num(off, nan=inf, posinf=inf))
    return float(off.max(initial=0.0))


ENOUGH = 0.01
"""A node whose inputs are off by less than this part of its output is to blame without a trial."""
TRIALS = 16
"""Nodes that are run by themselves: those that enlarge what they are given most."""
ROUNDING = 1e-7
"""Of float32: a relative difference below it enlarges nothing."""
SORTED_ALIKE = 1e-3
"""Values of two tensors, in order of size, that are closer than this are the same ones moved."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """A part of the graph that is run by itself."""

    value: str
    """What it makes."""
    nodes: Sequence[onnx.NodeProto]
    read: Set[str]
    given: Sequence[str]
    """Those of the values it reads that the reference has."""


class Blame:
    """The graph of a model, with what is known of the differences of its values."""

    def __init__(
        self,
        model: onnx.ModelProto,
        pairs: Mapping[str, Pair],
        differences: Mapping[str, Difference],
    ) -> None:
        """`differences` may grow afterwards."""
        self.model = model
        self.pairs = pairs
        self.differences = differences
        self._makers = makers(model.graph)
        self._order = {name: at for at, name in enumerate(self._makers)}

    def before(self, value: str) -> float | None:
        """The largest relative difference of what a value is made of; None where none is known."""
        known = [self.differences[name].relative for name in self._sources(value)]
        return max(known, default=None)

    def culprit(self, suspect: str | None, wanted: Values, found: OnnxValues) -> str | None:
        """The value whose own node makes the largest difference, of the suspect and all before it.

        Without a suspect, of all values that differ; None when none does.
        """
        if suspect is not None:
            off = self.differences[suspect].relative
            if not isfinite(off) or (self.before(suspect) or 0.0) <= ENOUGH * off:
                return suspect
        near = self._enlarging(suspect)
        own = self._own(near, wanted, found)
        return max(near, key=lambda value: own[value], default=suspect)

    def divergence(self, value: str, wanted: Values, found: OnnxValues) -> Divergence:
        """The finding about the node that makes `value`."""
        node = self._node(value, wanted, found)
        difference, before = self.differences[value], self.before(value)
        finite = isfinite(difference.relative)
        return Divergence(
            node=node_name(node),
            operator=node.op_type,
            tensor=value,
            max_abs_diff=difference.absolute if finite else None,
            relative_diff=difference.relative if finite else None,
            input_relative_diff=before if before is not None and isfinite(before) else None,
            reference=wanted.describe,
        )

    def _enlarging(self, suspect: str | None) -> list[str]:
        """The values at or before the suspect whose nodes enlarge differences most."""
        near = set(self.differences) if suspect is None else self._upstream(suspect)
        off = [value for value in near if self.differences[value].relative > 0]

        def gain(value: str) -> tuple[float, int]:
            before = self.before(value) or 0.0
            return self.differences[value].relative / (before + ROUNDING), -self._order[value]

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
        return {name for name in read if name in self.differences}

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
                waiting += [
                    name
                    for name in reads(node)
                    if name in self._makers and not self._stops(name, numbers=numbers)
                ]
        return [found[at] for at in sorted(found)]

    def _stops(self, name: str, *, numbers: bool) -> bool:
        return name in self.differences and (numbers or self.pairs[name].steps is None)

    def _own(self, values: Sequence[str], wanted: Values, found: OnnxValues) -> dict[str, float]:
        """How far each value is off when its node is given the reference's values.

        What lies between a value and the nearest compared ones is run with it; 0 where that cannot
        be.
        """
        trials = [self._trial(value) for value in values]
        names = {name for trial in trials for name in (*trial.given, trial.value)}
        here = found.fetch(names)
        there = wanted.fetch({self.pairs[name].wanted for name in names})
        right = {name: there[self.pairs[name].wanted] for name in names}
        own = {}
        for trial in trials:
            feeds = {name: right[name].astype(here[name].dtype) for name in trial.given}
            feeds |= {name: found.feeds[name] for name in trial.read & found.feeds.keys()}
            alone = self._alone(trial, feeds, found)
            pair = self.pairs[trial.value]
            off = 0.0 if alone is None else compared(right[trial.value], alone, pair).relative
            own[trial.value] = off
        return own

    def _trial(self, value: str) -> _Trial:
        nodes = self._segment(value, numbers=False)
        made = {name for node in nodes for name in outputs_of(node)}
        read = {name for node in nodes for name in reads(node)} - made
        return _Trial(value, nodes, read, [name for name in read if name in self.differences])

    def _alone(self, trial: _Trial, feeds: Mapping[str, Array], found: OnnxValues) -> Array | None:
        types = {name: _element_type(array) for name, array in feeds.items()}
        part = submodel(self.model, trial.nodes, list(feeds), [trial.value], types)
        try:
            return OnnxValues(part, feeds, **found.options).fetch([trial.value])[trial.value]
        except (InputError, ModelError):
            return None

    def _node(self, value: str, wanted: Values, found: OnnxValues) -> onnx.NodeProto:
        """The node to name for a value: where it only moves others, what computes them.

        Of several nodes without a counterpart none can be told from the others but by this: where
        the right values stand in wrong places, it is the one that moves.
        """
        nodes = self._segment(value)
        computing = _computing(nodes)
        if nodes[-1].op_type not in MOVES or not computing:
            return nodes[-1]
        there = wanted.fetch([self.pairs[value].wanted]).get(self.pairs[value].wanted)
        here = found.fetch([value]).get(value)
        moved = there is not None and here is not None and _same_sorted(there, here)
        return nodes[-1] if moved else computing[-1]


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
    if there.size != here.size or there.dtype.kind not in "fiub" or here.dtype.kind not in "fiub":
        return False
    one, other = (np.sort(array.astype(np.float64), axis=None) for array in (there, here))
    return bool(np.allclose(one, other, rtol=0, atol=SORTED_ALIKE * np.abs(one).max(initial=0)))


def _element_type(array: Array) -> int:
    kind: int = onnx.helper.np_dtype_to_tensor_dtype(fed(array).dtype)
    return kind
