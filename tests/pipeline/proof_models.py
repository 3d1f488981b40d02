"""Small ONNX models for the tests of parity: classifiers of a few numbers, and odd ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.proof.rows import Rows
from pipeline.proof.sides import ModelSide, model_side

FEATURES, CLASSES = 6, 4


def weights(seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((FEATURES, CLASSES)).astype(np.float32)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any]]],
    constants: dict[str, np.ndarray] | None = None,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model of opset 20 of these nodes; inputs and outputs are element type and shape."""
    infos = [
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in part.items()]
        for part in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "small", infos[0], infos[1], tensors)
    opsets = [helper.make_opsetid("", 20), *[helper.make_opsetid(one, 1) for one in domains]]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def linear(
    weight: np.ndarray | None = None, bias: np.ndarray | None = None, name: str = "features"
) -> onnx.ModelProto:
    """Logits and probabilities of a row of numbers."""
    weight = weights() if weight is None else weight
    bias = np.zeros(CLASSES, np.float32) if bias is None else bias
    nodes = [
        helper.make_node("Gemm", [name, "weight", "bias"], ["logits"], name="dense/Gemm"),
        helper.make_node("Softmax", ["logits"], ["probabilities"], name="main/Softmax", axis=1),
    ]
    table = (TensorProto.FLOAT, ["batch", CLASSES])
    return model(
        nodes,
        {name: (TensorProto.FLOAT, ["batch", FEATURES])},
        {"logits": table, "probabilities": table},
        {"weight": weight, "bias": bias},
    )


def clipped() -> onnx.ModelProto:
    """`linear`, with its features clipped far above all that the data holds."""
    nodes = [
        helper.make_node("Clip", ["features", "low", "high"], ["clipped"], name="main/Clip"),
        helper.make_node("Gemm", ["clipped", "weight"], ["logits"], name="dense/Gemm"),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1, name="main/Softmax"),
    ]
    table = (TensorProto.FLOAT, ["batch", CLASSES])
    return model(
        nodes,
        {"features": (TensorProto.FLOAT, ["batch", FEATURES])},
        {"logits": table, "probabilities": table},
        {"low": np.array(-9, np.float32), "high": np.array(9, np.float32), "weight": weights()},
    )


def capped(at: float) -> onnx.ModelProto:
    """`linear`, with its logits clipped."""
    made = linear()
    made.graph.node[0].output[0] = "free"
    clip = helper.make_node("Clip", ["free", "low", "high"], ["logits"], name="main/Clip")
    made.graph.node.insert(1, clip)
    for name, value in (("low", -at), ("high", at)):
        made.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    return made


def logarithm() -> onnx.ModelProto:
    """The logarithm of each number: NaN below zero."""
    nodes = [
        helper.make_node("Identity", ["features"], ["same"], name="main/Identity"),
        helper.make_node("Log", ["same"], ["values"], name="main/Log"),
    ]
    return model(
        nodes,
        {"features": (TensorProto.FLOAT, ["batch", FEATURES])},
        {"values": (TensorProto.FLOAT, ["batch", FEATURES])},
    )


def two_inputs() -> onnx.ModelProto:
    """A sum of numbers and a table's rows, and which of the ids is odd."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["found"], name="main/Gather"),
        helper.make_node("Add", ["found", "offsets"], ["sum"], name="main/Add"),
        helper.make_node("Mod", ["ids", "two"], ["odd"], name="main/Mod"),
    ]
    return model(
        nodes,
        {
            "ids": (TensorProto.INT64, ["batch"]),
            "offsets": (TensorProto.FLOAT, ["batch", FEATURES]),
        },
        {
            "sum": (TensorProto.FLOAT, ["batch", FEATURES]),
            "odd": (TensorProto.INT64, ["batch"]),
        },
        {"table": weights().T.copy(), "two": np.array(2, np.int64)},
    )


def less_the_mean(size: float = 1) -> onnx.ModelProto:
    """Numbers less the mean of their batch: an answer that depends on the rows beside it."""
    nodes = [
        helper.make_node("ReduceMean", ["features", "axes"], ["mean"], name="main/ReduceMean"),
        helper.make_node("Sub", ["features", "mean"], ["apart"], name="main/Sub"),
        helper.make_node("Mul", ["apart", "size"], ["values"], name="main/Mul"),
    ]
    shape = (TensorProto.FLOAT, ["batch", FEATURES])
    constants = {"axes": np.array([0], np.int64), "size": np.array(size, np.float32)}
    return model(nodes, {"features": shape}, {"values": shape}, constants)


def wide(weight: np.ndarray) -> onnx.ModelProto:
    """Probabilities of as many classes as there are columns."""
    nodes = [
        helper.make_node("MatMul", ["features", "weight"], ["scores"], name="main/MatMul"),
        helper.make_node("Softmax", ["scores"], ["probabilities"], name="main/Softmax", axis=1),
    ]
    return model(
        nodes,
        {"features": (TensorProto.FLOAT, ["batch", FEATURES])},
        {"probabilities": (TensorProto.FLOAT, ["batch", weight.shape[1]])},
        {"weight": weight.astype(np.float32)},
    )


def side(made: onnx.ModelProto, name: str = "model.onnx", **options: Any) -> ModelSide:
    return model_side(name, made.SerializeToString(), **options)


def rows(count: int = 300, *, seed: int = 1, labelled: bool = True) -> Rows:
    """Random numbers, and the class that the linear model answers for most of them."""
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((count, FEATURES)).astype(np.float32)
    noisy = features @ weights() + generator.standard_normal((count, CLASSES))
    labels = noisy.argmax(axis=1).astype(np.int64)
    return Rows(name="random", inputs={"features": features}, labels=labels if labelled else None)
