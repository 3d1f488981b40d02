"""Why a quantized model is no faster: what its nodes do with the time, by the runtime's profile.

A quantizer pays where integer operators follow each other. A node that stays in float between them
costs two conversions, and one that the runtime could not fuse runs on its own.
"""

import re
from collections.abc import Mapping, Sequence

from pipeline.quantization.judging import Judge
from pipeline.records.quantize import Budget, Try
from serving.measuring.feeds import feeds_of
from serving.measuring.timing import MIN_CALLS
from serving.runtime.profiling import NodeTime, node_times
from serving.runtime.settings import SessionSettings
from serving.runtime.tensors import Array

CONVERSIONS = ("Cast", "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear")
LAYOUTS = ("ReorderInput", "ReorderOutput", "Transpose")
"""What puts values in another order for a kernel."""
INTEGER = re.compile(r"QLinear|Q[A-Z]|DynamicQuantize|.*(Integer|NBits)")
"""Operators with integer kernels whose first input may be of floats."""
MOST_LINES = 5
LEAST = 0.03
"""Part of the time from which on it is told."""


def slowness(judge: Judge, one: Try | None, content: bytes, budget: Budget) -> tuple[str, ...]:
    """Why a try, whose file is `content`, is slower than it should be; () where it is not."""
    if one is None or not one.speedup:
        return ()
    size = min(one.speedup, key=lambda name: one.speedup[name].median)
    if one.speedup[size].median >= max(1.0, budget.min_speedup):
        return ()
    rows = judge.rows.slice(0, int(size))
    return why_slow(judge.fp32, content, feeds_of(judge.session.inputs, rows, int(size)))


def why_slow(fp32: bytes, variant: bytes, feeds: Mapping[str, Array]) -> tuple[str, ...]:
    """Say in a few lines, the worst first, where the time of a variant goes beside fp32's.

    Both answer one batch on one thread, some times over.
    """
    settings = SessionSettings(threads=1)
    before, after = (
        node_times(content, [feeds] * MIN_CALLS, settings=settings) for content in (fp32, variant)
    )
    whole = sum(node.us for node in after)
    kinds: dict[str, list[NodeTime]] = {}
    for node in after:
        kinds.setdefault(_kind(node), []).append(node)
    shares = {kind: sum(one.us for one in nodes) / whole for kind, nodes in kinds.items()}
    integer = shares.pop("", 0.0) * whole / max(sum(node.us for node in before), 1)
    lines = [
        f"{kind}: {100 * share:.0f} % of the time in {_named(kinds[kind])}"
        for kind, share in sorted(shares.items(), key=lambda one: -one[1])
        if share >= LEAST
    ]
    counts = (len({node.name for node in nodes}) for nodes in (before, after))
    last = "its integer operators alone take {:.2f} times as long as fp32, {} nodes for its {}"
    return (*lines[: MOST_LINES - 1], last.format(integer, *reversed(list(counts))))


def _kind(node: NodeTime) -> str:
    """What a node that is no integer operator does; "" for one that is."""
    if node.operator in CONVERSIONS:
        return f"{node.operator} on its own"
    if INTEGER.match(node.operator) or not node.dtype.startswith("float"):
        return ""
    return f"{node.operator} in {node.dtype}"


def _named(nodes: Sequence[NodeTime]) -> str:
    """How many they are, and one of them: that which takes longest."""
    names = {node.name for node in nodes}
    worst = max(nodes, key=lambda node: node.us).name
    return worst if len(names) == 1 else f"{len(names)} nodes, as {worst}"
