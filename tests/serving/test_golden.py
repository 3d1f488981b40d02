"""Golden rows: those that are decided most narrowly, but by more than says nothing of a device."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from serving.bundles.golden import hardest

LABELS = ("no", "maybe", "yes")


def dynamically_quantized() -> bytes:
    """Float32 features [batch, 4] to probabilities, by the range of all rows of a batch."""
    weight = np.random.default_rng(2).integers(-50, 50, (4, 3)).astype(np.int8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["rows"], ["whole", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["whole", "weight", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "scale"], ["large"]),
        helper.make_node("Mul", ["large", "small"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    infos = [
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
    ]
    constants = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.float32(0.02), "small"),
    ]
    graph = helper.make_graph(nodes, "dynamic", *infos, constants)
    imports = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()


def test_rows_that_the_others_of_their_batch_decide_are_ties() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    golden, tie = hardest(dynamically_quantized(), rows, 16, LABELS)
    assert golden.shape == (16, 4)
    assert tie > 1e-3
