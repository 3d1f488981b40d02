"""Read the graph of an ONNX model: what a node reads and makes, and a part of it as a model."""

from collections.abc import Iterator, Mapping, Sequence

import onnx

__all__ = ["MOVES", "called", "makers", "outputs_of", "reads", "submodel", "users"]

MOVES = frozenset(
    (
        "Cast",
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "Range",
        "Reshape",
        "Shape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    )
)
"""Operators that give values another place and leave them as they are."""


def called(node: onnx.NodeProto) -> str:
    """The node's name; where it has none, what it makes."""
    return node.name or f"{node.op_type} of {', '.join(outputs_of(node))}"


def outputs_of(node: onnx.NodeProto) -> list[str]:
    """The names of what a node makes, without those that it leaves out."""
    return [name for name in node.output if name]


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node reads, with those that its subgraphs take from outside."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            own = {one.name for one in (*graph.input, *graph.initializer)}
            own |= {name for inner in graph.node for name in inner.output}
            within = [name for inner in graph.node for name in reads(inner)]
            within += [output.name for output in graph.output]
            yield from (name for name in within if name not in own)


def makers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node that makes each value."""
    return {name: node for node in graph.node for name in outputs_of(node)}


def users(graph: onnx.GraphProto) -> Mapping[str, list[onnx.NodeProto]]:
    """The nodes that read each value."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in set(reads(node)):
            found.setdefault(name, []).append(node)
    return found


def submodel(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[str],
    outputs: Sequence[str],
    types: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """Some nodes of a model, in graph order, as a model of their own.

    `inputs` are fed, of any shape; `types` are their element types, without which only
    `onnx.reference` can run it. Weights come along.
    """
    read = {name for node in nodes for name in reads(node)} | set(outputs)
    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = "part"
    part.graph.node.extend(nodes)
    for name in inputs:
        value = part.graph.input.add(name=name)
        value.type.tensor_type.elem_type = (types or {}).get(name, onnx.TensorProto.UNDEFINED)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    part.graph.initializer.extend(
        one for one in model.graph.initializer if one.name in read and one.name not in inputs
    )
    return part
