"""Small ONNX models with seeded random weights, made without torch, and rows for them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.proof.rows import Rows

Array = np.ndarray[Any, Any]
FLOAT, UINT8, INT64 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT64
CLASSES = 5


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[int | str]]],
    outputs: Mapping[str, list[int | str]],
    weights: Mapping[str, Array],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, *described) for name, described in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def normal(seed: int, *shape: int, scale: float = 0.3) -> Array:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def image_net(channels: int = 3, planes: int = 8, *, padded: bool = True) -> onnx.ModelProto:
    """uint8 images 8×8, standardised, two convolutions and a linear layer: all a CNN has."""
    mean = np.linspace(100, 140, channels).astype(np.float32).reshape(-1, 1, 1)
    scale = np.linspace(0.01, 0.02, channels).astype(np.float32).reshape(-1, 1, 1)
    pads = [1, 1, 1, 1] if padded else [0, 0, 0, 0]
    side = 4 if padded else 3
    nodes = [
        helper.make_node("Transpose", ["images"], ["planes"], "turn", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["values"], "cast", to=FLOAT),
        helper.make_node("Sub", ["values", "mean"], ["centred"], "sub"),
        helper.make_node("Mul", ["centred", "scale"], ["standard"], "mul"),
        helper.make_node("Conv", ["standard", "w1", "b1"], ["c1"], "first", pads=pads),
        helper.make_node("Relu", ["c1"], ["r1"], "relu"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("Flatten", ["r2"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"], "last", transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "soft"),
    ]
    weights = {
        "mean": mean,
        "scale": scale,
        "w1": normal(1, planes, channels, 3, 3),
        "b1": normal(2, planes),
        "w2": normal(3, planes, planes, 3, 3),
        "b2": normal(4, planes),
        "w3": normal(5, CLASSES, planes * side * side),
        "b3": normal(6, CLASSES),
    }
    shapes: dict[str, list[int | str]] = {
        "logits": ["batch", CLASSES],
        "probabilities": ["batch", CLASSES],
    }
    return model_of(nodes, {"images": (UINT8, ["batch", 8, 8, channels])}, shapes, weights)


def linear_net(channels: int, *, bias: bool = True) -> onnx.ModelProto:
    """uint8 images 4×5, turned, standardised and flattened as ferry's export does it."""
    mean = np.linspace(100, 140, channels).astype(np.float32).reshape(-1, 1, 1)
    scale = np.linspace(0.01, 0.02, channels).astype(np.float32).reshape(-1, 1, 1)
    features = 20 * channels
    nodes = [
        helper.make_node("Transpose", ["images"], ["planes"], "turn", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["values"], "cast", to=FLOAT),
        helper.make_node("Sub", ["values", "mean"], ["centred"], "sub"),
        helper.make_node("Mul", ["centred", "scale"], ["standard"], "mul"),
        helper.make_node("Reshape", ["standard", "shape"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "w.weight", *["b"][:bias]], ["y"], "first", transB=1),
    ]
    weights = {"mean": mean, "scale": scale, "shape": np.array([-1, features])}
    weights |= {"w.weight": normal(1, 7, features), **({"b": normal(2, 7)} if bias else {})}
    inputs: dict[str, tuple[int, list[int | str]]] = {"images": (UINT8, ["batch", 4, 5, channels])}
    return model_of(nodes, inputs, {"y": ["batch", 7]}, weights)


def product_net(
    features: int = 64, width: int = 64, *, batch: int | str = "batch"
) -> onnx.ModelProto:
    """Two linear layers on features, one of them as `MatMul`."""
    nodes = [
        helper.make_node("Gemm", ["features", "w1", "b1"], ["g1"], "first", transB=1),
        helper.make_node("Relu", ["g1"], ["r1"], "relu"),
        helper.make_node("MatMul", ["r1", "w2"], ["logits"], "last"),
    ]
    weights = {
        "w1": normal(1, width, features),
        "b1": normal(2, width),
        "w2": normal(3, width, CLASSES * 4),
    }
    inputs: dict[str, tuple[int, list[int | str]]] = {"features": (FLOAT, [batch, features])}
    return model_of(nodes, inputs, {"logits": [batch, CLASSES * 4]}, weights)


def recurrent_net(operator: str, hidden: int = 32) -> onnx.ModelProto:
    """An LSTM or a GRU over 6 steps of 8 features, and a linear layer on its last state."""
    gates = {"LSTM": 4, "GRU": 3}[operator]
    states = ["", "last_state"] + ([""] if operator == "LSTM" else [])
    nodes = [
        helper.make_node("Transpose", ["steps"], ["turned"], "turn", perm=[1, 0, 2]),
        helper.make_node(
            operator, ["turned", "w", "r", "b"], states[:2], "recurrent", hidden_size=hidden
        ),
        helper.make_node("Squeeze", ["last_state", "zero"], ["state"], "squeeze"),
        helper.make_node("Gemm", ["state", "w3", "b3"], ["logits"], "last", transB=1),
    ]
    weights = {
        "w": normal(1, 1, gates * hidden, 8),
        "r": normal(2, 1, gates * hidden, hidden),
        "b": normal(3, 1, 2 * gates * hidden),
        "zero": np.zeros(1, np.int64),
        "w3": normal(4, CLASSES, hidden),
        "b3": normal(5, CLASSES),
    }
    return model_of(
        nodes, {"steps": (FLOAT, ["batch", 6, 8])}, {"logits": ["batch", CLASSES]}, weights
    )


def table_net() -> onnx.ModelProto:
    """Words looked up in a table, and their sum: a model of two inputs."""
    nodes = [
        helper.make_node("Gather", ["table", "words"], ["found"], "look"),
        helper.make_node("ReduceSum", ["found", "one"], ["sum"], "sum", keepdims=0),
        helper.make_node("Add", ["sum", "extra"], ["values"], "add"),
    ]
    weights = {"table": normal(1, 100, 16), "one": np.ones(1, np.int64)}
    inputs: dict[str, tuple[int, list[int | str]]] = {
        "words": (INT64, ["batch", 4]),
        "extra": (FLOAT, ["batch", 16]),
    }
    return model_of(nodes, inputs, {"values": ["batch", 16]}, weights)


def rows_for(model: onnx.ModelProto, count: int = 64, *, seed: int = 0) -> Rows:
    """Rows of random values for every input, without classes."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = (count, *(axis.dim_value for axis in kind.shape.dim[1:]))
        if kind.elem_type == UINT8:
            inputs[value.name] = rng.integers(0, 256, shape, np.uint8)
        elif kind.elem_type == INT64:
            inputs[value.name] = rng.integers(0, 100, shape, np.int64)
        else:
            inputs[value.name] = rng.standard_normal(shape).astype(np.float32)
    return Rows(name="random rows", inputs=inputs, labels=None)
