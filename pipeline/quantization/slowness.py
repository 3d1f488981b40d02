"""Why a quantized model is no faster: what its nodes do with the time, by the runtime's profile.

A quantizer pays where integer operators follow each other. A node that stays in float between them
costs two conversions, and one that the runtime could not fuse runs on its own.
"""

import re
import statistics
from collections.abc import Mapping, Sequence

from pipeline.quantization.judging import Judge
from pipeline.records.quantize import Budget, Try
from serving.measuring.feeds import feeds_of
from serving.measuring.timing import MIN_CALLS
from serving.runtime.profiling import NodeTime, node_times
from serving.runtime.settings import SessionSettings
from serving.runtime.tensors import Array

CONVERSIONS = ("Cast", "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear")
INTEGER = re.compile(r"QLinear|Q[A-Z]|DynamicQuantize|.*(Integer|NBits)")
"""Operators with integer kernels whose first input may be of floats."""
MOST_LINES = 5
LEAST = 0.03
"""Part of the time from which on it is told."""


def slowness(judge: Judge, one: Try | None, content: bytes, budget: Budget) -> tuple[str, ...]:
    """Why a try, whose file is `content`, is slower than asked; () where it is not."""
    if one is None or not one.speedup:
        return ()
    size = min(one.speedup, key=lambda name: one.speedup[name].low)
    if one.speedup[size].low >= budget.min_speedup:
        return ()
    rows = judge.rows.slice(0, int(size))
    feeds = judge.session.whole(feeds_of(judge.session.inputs, rows, int(size)))
    return why_slow(judge.fp32, content, feeds)


def why_slow(fp32: bytes, variant: bytes, feeds: Mapping[str, Array]) -> tuple[str, ...]:
    """Say in a few lines, the worst first, where the time of a variant goes beside fp32's.

    Both answer one batch on one thread, some times over; of each node the median counts.
    """
    before, after = (_medians(content, feeds) for content in (fp32, variant))
    # The profile counts whole microseconds, so that all of a tiny model may be 0.
    whole, wanted = (max(1.0, sum(times.values())) for times in (after, before))
    kinds: dict[str, list[NodeTime]] = {}
    for node in after:
        kinds.setdefault(_kind(node), []).append(node)
    integer = sum(after[node] for node in kinds.pop("", []))
    times = {kind: sum(after[node] for node in nodes) for kind, nodes in kinds.items()}
    lines = [
        f"{kind}: {100 * us / whole:.0f} % of the time in {_named(kinds[kind])}"
        for kind, us in sorted(times.items(), key=lambda one: -one[1])
        if us >= LEAST * whole
    ]
    counts = f"{len(after)} nodes run where fp32 has {len(before)}"
    if integer >= LEAST * whole:
        counts += (
            f"; those of integers alone take {integer / wanted:.2f} times as long as all of fp32's"
        )
    return (*lines[: MOST_LINES - 1], counts)


def _medians(content: bytes, feeds: Mapping[str, Array]) -> dict[NodeTime, float]:
    """The nodes of a model, and the microseconds that each takes."""
    calls: dict[str, list[NodeTime]] = {}
    for one in node_times(content, [feeds] * MIN_CALLS, settings=SessionSettings(threads=1)):
        calls.setdefault(one.name, []).append(one)
    return {same[0]: statistics.median(one.us for one in same) for same in calls.values()}


def _kind(node: NodeTime) -> str:
    """What a node that is no integer operator does; "" for one that is."""
    if node.operator in CONVERSIONS:
        return f"{node.operator} on its own"
    if INTEGER.match(node.operator) or not node.dtype.startswith("float"):
        return ""
    return f"{node.operator} in float"


def _named(nodes: Sequence[NodeTime]) -> str:
    """The name of one, or how many they are and one of them."""
    return nodes[0].name if len(nodes) == 1 else f"{len(nodes)} nodes, such as {nodes[0].name}"
