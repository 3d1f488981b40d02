"""ONNX models that are awkward to feed."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

__all__ = ["endless_for_white", "of_two_inputs", "reshaping_to_two_rows"]


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
    real, whole = TensorProto.FLOAT, TensorProto.INT64
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
