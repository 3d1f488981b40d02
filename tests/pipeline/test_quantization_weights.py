"""Weights alone in whole numbers: smaller files, close answers, and the operators that fit."""

import numpy as np
import onnx
import pytest
from small_models import image_net, product_net, recurrent_net, rows_for, table_net

from pipeline.quantization.prepare import constants, prepare
from pipeline.quantization.weights import weight_only
from serving.runtime.session import open_session


def answers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    session = open_session(model.SerializeToString(), threads=1)
    return session.run(rows_for(model, 32).inputs)


def error(model: onnx.ModelProto, bits: int) -> float:
    """The mean difference of the first output, as a part of its mean size."""
    left, right = answers(model), answers(weight_only(prepare(model), bits))
    name = next(iter(left))
    return float(np.abs(left[name] - right[name]).mean() / np.abs(left[name]).mean())


MODELS = {
    "matrices": product_net(),
    "images": image_net(),
    "LSTM": recurrent_net("LSTM"),
    "GRU": recurrent_net("GRU"),
    "table": table_net(),
}


@pytest.mark.parametrize("name", MODELS)
def test_eight_bits_are_close(name: str) -> None:
    assert 0 < error(MODELS[name], 8) < 0.03


def test_four_bits_are_further_off_and_smaller() -> None:
    model = product_net()
    assert error(model, 8) < error(model, 4) < 0.3
    sizes = [len(weight_only(model, bits).SerializeToString()) for bits in (8, 4)]
    assert sizes[1] < 0.7 * sizes[0]
    assert sizes[0] < 0.4 * len(model.SerializeToString())


def test_matrices_become_one_operator_whether_they_were_gemm_or_matmul() -> None:
    made = weight_only(product_net(), 4)
    kinds = [(node.op_type, node.domain) for node in made.graph.node]
    assert kinds.count(("MatMulNBits", "com.microsoft")) == 2
    assert "Gemm" not in [kind for kind, _ in kinds]
    assert {1, 4} >= {
        attribute.i
        for node in made.graph.node
        for attribute in node.attribute
        if attribute.name == "bits"
    } - {0}


@pytest.mark.parametrize(("attribute", "value"), [("alpha", 0.5), ("beta", 2.0)])
def test_a_gemm_that_does_more_than_a_product_stays(attribute: str, value: float) -> None:
    model = product_net()
    model.graph.node[0].attribute.append(onnx.helper.make_attribute(attribute, value))
    made = weight_only(model, 8)
    assert made.graph.node[0].op_type == "Gemm"
    assert np.allclose(answers(model)["logits"], answers(made)["logits"], atol=0.2)


@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
def test_recurrent_weights_are_stored_in_bytes_with_a_scale_per_gate_and_unit(
    operator: str,
) -> None:
    made = weight_only(recurrent_net(operator), 8)
    known = constants(made)
    assert known["w.whole"].dtype == np.int8
    assert known["w.scale"].shape == (known["w.whole"].shape[1],)
    assert "w" not in known
    assert np.abs(known["r.whole"]).max() == 127


def test_a_table_is_looked_up_before_it_is_made_float() -> None:
    made = weight_only(table_net(), 8)
    kinds = [node.op_type for node in made.graph.node]
    assert kinds[:2] == ["Gather", "DequantizeLinear"]
    assert constants(made)["table.whole"].dtype == np.int8


def test_small_weights_and_weights_that_are_computed_stay() -> None:
    small = weight_only(product_net(features=4, width=8), 8)
    assert [node.op_type for node in small.graph.node] == ["Gemm", "Relu", "MatMul"]
    computed = product_net()
    computed.graph.node.insert(0, onnx.helper.make_node("Neg", ["w2"], ["w2.computed"], "neg"))
    computed.graph.node[-1].input[1] = "w2.computed"
    assert weight_only(computed, 8).graph.node[-1].op_type == "MatMul"


def test_the_same_model_gives_the_same_bytes() -> None:
    first, second = (
        weight_only(image_net(), 4).SerializeToString(deterministic=True) for _ in range(2)
    )
    assert first == second
