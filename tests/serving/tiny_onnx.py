"""Small ONNX models for tests, made with onnx.helper at an opset and IR that edge tools read."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING, UINT8 = (
    TensorProto.FLOAT,
    TensorProto.INT64,
    TensorProto.STRING,
    TensorProto.UINT8,
)


def linear(shape: list[int | str | None], dtype: int = FLOAT, columns: int = 3) -> bytes:
    """`logits = Cast(inputs) @ weight + bias` on rows of `shape`, whose last axis is a number."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((shape[-1], columns)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["inputs"], ["real"], to=FLOAT),
            helper.make_node("MatMul", ["real", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("inputs", dtype, shape)],
        [helper.make_tensor_value_info("logits", FLOAT, [*shape[:-1], columns])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.zeros(columns, np.float32), "bias"),
        ],
    )
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def recurrent(operator: str = "LSTM", features: int = 2, hidden: int = 4) -> bytes:
    """Sequences of `features` numbers to the last state of a layer, float32 [batch, hidden]."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator] * hidden
    rng = np.random.default_rng(0)
    weights = {
        "from_input": rng.standard_normal((1, gates, features)).astype(np.float32),
        "from_state": rng.standard_normal((1, gates, hidden)).astype(np.float32),
        "directions": np.array([0], np.int64),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["inputs"], ["steps"], perm=[1, 0, 2]),
            helper.make_node(
                operator, ["steps", "from_input", "from_state"], ["", "last"], hidden_size=hidden
            ),
            helper.make_node("Squeeze", ["last", "directions"], ["values"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("inputs", FLOAT, ["batch", "steps", features])],
        [helper.make_tensor_value_info("values", FLOAT, ["batch", hidden])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = [helper.make_opsetid("", 14)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
