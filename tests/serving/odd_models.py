"""ONNX models that are awkward to feed."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

__all__ = ["of_two_inputs", "reshaping_to_two_rows"]


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
