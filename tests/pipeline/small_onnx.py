"""ONNX models of a few nodes, written by hand, for what no export of ferry makes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
Infos = Mapping[str, tuple[int, Sequence[int | str | None] | None]]


def node(operator: str, read: str, made: str, **attributes: Any) -> onnx.NodeProto:
    """A node that is called as its operator and what it makes; "a b" are two names."""
    name = attributes.pop("name", f"{operator}/{made}")
    return helper.make_node(operator, read.split(), made.split(), name=name, **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Infos,
    outputs: Infos,
    weights: Mapping[str, Any] | None = None,
    domains: Mapping[str, int] | None = None,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """A model at opset 18; inputs and outputs are (element type, shape) by name."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, *info) for name, info in inputs.items()],
        [helper.make_tensor_value_info(name, *info) for name, info in outputs.items()],
        [
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in (weights or {}).items()
        ],
    )
    imports = {"": 18, **(domains or {})}
    opsets = [helper.make_opsetid(domain, version) for domain, version in imports.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def chain(length: int, width: int = 4) -> onnx.ModelProto:
    """`x` through as many pairs of a product and a tanh, each with its own weight."""
    generator = np.random.default_rng(0)
    nodes, weights, last = [], {}, "x"
    for at in range(length):
        weights[f"w{at}"] = generator.normal(size=(width, width)).astype(np.float32)
        nodes += [node("MatMul", f"{last} w{at}", f"p{at}"), node("Tanh", f"p{at}", f"t{at}")]
        last = f"t{at}"
    nodes.append(node("Identity", last, "y"))
    return model(nodes, {"x": (FLOAT, ["n", width])}, {"y": (FLOAT, ["n", width])}, weights)


def copied(original: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(original)
    return copy


def changed(original: onnx.ModelProto, weight: str, by: float) -> onnx.ModelProto:
    """A copy in which a weight is larger by that much."""
    copy = copied(original)
    (tensor,) = [one for one in copy.graph.initializer if one.name == weight]
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((value + by).astype(value.dtype), weight))
    return copy
