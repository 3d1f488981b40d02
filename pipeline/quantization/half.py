"""Half precision: a model's weights and arithmetic, but for the units of a regression's targets.

Those may lie beyond what half precision holds, and int8 leaves them in float as well.
"""

from collections.abc import Iterator, Sequence

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from pipeline.exporting import onnxmodel

UNITS = ("head.std", "head.mean")
"""The constants that give a regression the units of its targets."""


def to_fp16(model: onnx.ModelProto, float_layers: Sequence[str] = ()) -> onnx.ModelProto:
    """Weights and arithmetic in half precision; inputs and outputs keep their types."""
    body = onnxmodel.with_constant_weights(model)
    units = _taken_off(body)
    with onnxmodel.quiet():
        half: onnx.ModelProto = convert_float_to_float16(
            body, keep_io_types=True, node_block_list=list(float_layers)
        )
    # The tool leaves them at the end, and a node must stand behind what it reads.
    casts = [node for node in half.graph.node if node.name.startswith("graph_input_cast")]
    for node in reversed(casts):
        half.graph.node.remove(node)
        half.graph.node.insert(0, node)
    if units.node:
        del half.graph.output[:]
        half.graph.MergeFrom(units)
    return half


def _taken_off(model: onnx.ModelProto) -> onnx.GraphProto:
    """Take the units of targets off the end of a graph; returns what gives it them again.

    The tool would hand on a half between two nodes that it leaves in float.
    """
    units, graph = onnx.GraphProto(), model.graph
    last = set(units_of_targets(model))
    units.node.extend(node for node in graph.node if node.name in last)
    if not units.node:
        return units
    units.output.extend(graph.output)
    units.initializer.extend(one for one in graph.initializer if one.name in UNITS)
    inner = next(name for name in units.node[0].input if name not in UNITS)
    graph.output[0].name = inner
    for parts, gone in ((graph.node, units.node), (graph.initializer, units.initializer)):
        for part in gone:
            parts.remove(part)
    return units


def units_of_targets(model: onnx.ModelProto) -> Iterator[str]:
    """The names of the nodes that give a regression its units, in which a half may overflow."""
    for node in model.graph.node:
        if set(UNITS) & {*node.input}:
            yield node.name
