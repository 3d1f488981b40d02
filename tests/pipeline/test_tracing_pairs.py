"""Which value of a reference stands for which of a model's."""

import numpy as np
import onnx
import pytest
from small_onnx import FLOAT, model, node

from pipeline.proof.tracing.pairs import Pair, Steps, pair_values, product_of

ROW = {"x": (FLOAT, ["n", 4])}
ANSWER = {"y": (FLOAT, ["n", 4])}


def wanted(pairs: dict[str, Pair]) -> dict[str, str]:
    return {name: pair.wanted for name, pair in pairs.items()}


def test_values_are_found_by_their_names() -> None:
    made = model([node("Relu", "x", "a"), node("Neg", "a", "y")], ROW, ANSWER)
    assert wanted(pair_values(made, ["a", "other"])) == {"a": "a"}


def test_a_name_that_a_weight_has_is_numbered() -> None:
    made = model([node("Relu", "x", "mean_1"), node("Neg", "mean_1", "y")], ROW, ANSWER)
    assert wanted(pair_values(made, ["mean"])) == {}
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "mean"))
    assert wanted(pair_values(made, ["mean"])) == {"mean_1": "mean"}
    assert wanted(pair_values(made, ["mean", "mean_1"])) == {"mean_1": "mean_1"}


def test_a_cast_stands_for_what_it_casts_in_both_directions() -> None:
    nodes = [
        node("Relu", "x", "a"),
        node("Cast", "a", "half", to=onnx.TensorProto.FLOAT16),
        node("Neg", "half", "b"),
        node("Cast", "b", "y", to=FLOAT),
    ]
    assert wanted(pair_values(model(nodes, ROW, ANSWER), ["a", "y"])) == {
        "a": "a",
        "half": "a",
        "b": "y",
        "y": "y",
    }


def test_a_cast_to_whole_numbers_stands_for_nothing() -> None:
    nodes = [node("Relu", "x", "a"), node("Cast", "a", "y", to=onnx.TensorProto.INT64)]
    assert wanted(pair_values(model(nodes, ROW, ANSWER), ["a"])) == {"a": "a"}


def quantized() -> onnx.ModelProto:
    nodes = [
        node("Relu", "x", "a"),
        node("QuantizeLinear", "a scale zero", "a_numbers"),
        node("DequantizeLinear", "a_numbers scale zero", "a_back"),
        node("DequantizeLinear", "w_numbers scale zero", "w_DequantizeLinear_Output"),
        node("Mul", "a_back w_DequantizeLinear_Output", "y"),
    ]
    weights = {
        "scale": np.float32(0.5),
        "zero": np.uint8(10),
        "w_numbers": np.array([12, 8, 10, 11], np.uint8),
    }
    return model(nodes, ROW, ANSWER, weights)


def test_behind_a_quantizer_the_value_that_goes_on_is_the_dequantized_one() -> None:
    pairs = pair_values(quantized(), ["a", "w", "y"])
    assert wanted(pairs) == {
        "a": "a",
        "a_numbers": "a",
        "a_back": "a",
        "w_DequantizeLinear_Output": "w",
        "y": "y",
    }
    assert pairs["a"].clipped, "its quantizer may do the clipping of a ReLU"
    assert not pairs["a_back"].clipped
    steps = pairs["a_numbers"].steps
    assert steps is not None
    assert steps.values(np.array([10, 12], np.uint8)).tolist() == [0, 1]


def test_beside_another_quantized_model_numbers_are_compared_as_they_are() -> None:
    made = quantized()
    names = {name for one in made.graph.node for name in one.output}
    pairs = pair_values(made, names)
    assert wanted(pairs) == {name: name for name in names}
    assert pairs["a_numbers"].steps is None
    assert not pairs["a"].clipped


@pytest.mark.parametrize(("axis", "expected"), [(0, [[2, 4], [3, 6]]), (1, [[2, 6], [2, 6]])])
def test_steps_may_differ_from_channel_to_channel(axis: int, expected: list[list[int]]) -> None:
    steps = Steps(np.array([2.0, 3.0]), np.array([0, 0]), axis)
    assert steps.values(np.array([[1, 2], [1, 2]])).tolist() == expected


def recurrent(layers: int) -> onnx.ModelProto:
    nodes = [node("LSTM", f"x{at} w r", f"x{at + 1}", hidden_size=2) for at in range(layers)]
    return model(nodes, {"x0": (FLOAT, [3, "n", 2])}, {f"x{layers}": (FLOAT, [3, 1, "n", 2])})


def test_recurrent_operators_are_found_by_their_order() -> None:
    pairs = pair_values(recurrent(3), [], [("lstm.states", 2), ("lstm_1.states", 1)])
    assert wanted(pairs) == {"x2": "lstm.states", "x3": "lstm_1.states"}
    assert pair_values(recurrent(2), [], [("lstm.states", 1)]) == {}, "of another number"


def test_the_product_of_a_linear_layer_that_is_two_nodes() -> None:
    nodes = [node("MatMul", "x w", "product"), node("Add", "product b", "linear")]
    made = model(nodes, ROW, ANSWER)
    names = ["linear", product_of("linear")]
    assert wanted(pair_values(made, names)) == {
        "linear": "linear",
        "product": product_of("linear"),
    }
    assert wanted(pair_values(made, ["linear"])) == {"linear": "linear"}
