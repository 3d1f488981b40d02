"""ONNX models that are awkward to feed."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = [
    "endless_for_white",
    "filling_memory",
    "of_two_inputs",
    "reshaping_to_two_rows",
    "taking_many_rows",
    "trapping_at_minus_one",
    "without_rows",
]
REAL, WHOLE = TensorProto.FLOAT, TensorProto.INT64


def _model(
    nodes: list[onnx.NodeProto], shape: list[int | str], **constants: "np.ndarray[Any, Any]"
) -> bytes:
    """A graph from floats to floats, both of that shape."""
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("rows", REAL, shape)],
        [helper.make_tensor_value_info("outputs", REAL, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


def trapping_at_minus_one() -> bytes:
    """The least whole number over each row's: of -1 that has no answer, and the processor traps."""
    nodes = [
        helper.make_node("Cast", ["rows"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Div", ["least", "whole"], ["divided"]),
        helper.make_node("Cast", ["divided"], ["outputs"], to=REAL),
    ]
    return _model(nodes, ["batch", 1], least=np.array([-(2**31)], np.int32))


def without_rows() -> bytes:
    """A recurrent layer over rows of which the graph itself has dropped all."""
    nodes = [
        helper.make_node("Unsqueeze", ["rows", "last"], ["sequence"]),
        helper.make_node("Slice", ["sequence", "first", "first", "middle"], ["empty"]),
        helper.make_node("LSTM", ["empty", "W", "R"], ["", "state"], hidden_size=1),
        helper.make_node("ReduceSum", ["state"], ["sum"], keepdims=0),
        helper.make_node("Add", ["rows", "sum"], ["outputs"]),
    ]
    weights = np.zeros((1, 4, 1), np.float32)
    places = {name: np.array([at]) for at, name in enumerate(("first", "middle", "last"))}
    return _model(nodes, ["batch", 1], W=weights, R=weights, **places)


def taking_many_rows() -> bytes:
    """A model of one batch size, 2^40."""
    return _model([helper.make_node("Relu", ["rows"], ["outputs"])], [2**40, 1])


def filling_memory() -> bytes:
    """A table of zeros, 4 GB for each row."""
    nodes = [
        helper.make_node("Shape", ["rows"], ["shape"]),
        helper.make_node("Mul", ["shape", "many"], ["large"]),
        helper.make_node("ConstantOfShape", ["large"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Add", ["rows", "sum"], ["outputs"]),
    ]
    return _model(nodes, ["batch", 1], many=np.array([1, 10**9], np.int64))


def of_two_inputs() -> bytes:
    """Words of any length and one number a row, added."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["words", "other"], ["sums"])],
        "two-inputs",
        [
            helper.make_tensor_value_info("words", TensorProto.FLOAT, ["batch", "length"]),
            helper.make_tensor_value_info("other", TensorProto.FLOAT, ["batch", 1]),
        ],
        [helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["batch", "length"])],
    )
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def reshaping_to_two_rows() -> bytes:
    """A model that declares a free batch and reshapes to two rows inside."""
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["inputs", "shape"], ["outputs"])],
        "two-rows",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(np.array([2, 4], np.int64), "shape")],
    )
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def endless_for_white() -> bytes:
    """Images of the tiny classifier to their sums; a batch with a white pixel takes for ever."""
    real, whole = REAL, WHOLE
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Identity", ["before"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", whole, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", real, None),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", real, None),
        ],
    )
    nodes = [
        helper.make_node("Cast", ["images"], ["values"], to=real),
        helper.make_node("ReduceMax", ["values"], ["most"], keepdims=0),
        helper.make_node("Equal", ["most", "white"], ["is_white"]),
        helper.make_node("Where", ["is_white", "many", "once"], ["turns"]),
        helper.make_node("Loop", ["turns", "", "values"], ["same"], body=body),
        helper.make_node("ReduceSum", ["same", "axes"], ["sums"], keepdims=0),
    ]
    constants = {
        "white": np.float32(255),
        "many": np.int64(2**62),
        "once": np.int64(1),
        "axes": np.array([1, 2, 3], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "endless",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 4, 5, 1])],
        [helper.make_tensor_value_info("sums", real, ["batch"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
