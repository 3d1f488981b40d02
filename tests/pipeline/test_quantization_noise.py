"""The noisiest layer is the one that was made noisy."""

import math

import numpy as np
import pytest
from onnx import helper
from small_models import image_net, product_net, rows_for

from pipeline.quantization.prepare import constants, copied, decibels, noisiest, replace_constant

OPERATORS = ("Conv", "Gemm")


def test_decibels() -> None:
    wanted = np.array([3.0, 4.0])
    assert decibels(wanted, wanted * 1.1) == pytest.approx(20)
    assert decibels(wanted, wanted) > 200
    assert decibels(wanted, np.array([3.0, math.nan])) < -200
    assert decibels(np.zeros(2), np.ones(2)) < 0


@pytest.mark.parametrize(("weight", "layer"), [("w1", "first"), ("w2", "second"), ("w3", "last")])
def test_a_layer_with_a_coarse_weight_is_the_noisiest(weight: str, layer: str) -> None:
    model = image_net()
    noisy = copied(model)
    for name, step in (("w1", 0.01), ("w2", 0.01), ("w3", 0.01), (weight, 0.3)):
        value = constants(model)[name]
        replace_constant(noisy, name, (np.rint(value / step) * step).astype(np.float32))
    found = noisiest(model, noisy, rows_for(model, 16).inputs, OPERATORS)
    assert found[0] == layer
    assert sorted(found) == ["first", "last", "second"]


def test_a_layer_whose_tensors_are_gone_is_not_named() -> None:
    model = product_net()
    other = copied(model)
    gone = {"g1": "renamed", "r1": "renamed too"}  # the first layer's, and its activation's
    for node in other.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = gone.get(name, name)
    assert noisiest(model, other, rows_for(model, 4).inputs, ("Gemm", "MatMul")) == ("last",)


def test_infinite_noise_is_the_worst() -> None:
    model = product_net()
    broken = copied(model)
    infinite = np.full_like(constants(model)["w2"], np.inf)
    replace_constant(broken, "w2", infinite)
    found = noisiest(model, broken, rows_for(model, 4).inputs, ("Gemm", "MatMul"))
    assert found == ("last", "first")


def test_operators_that_are_not_asked_for_are_not_named() -> None:
    model = image_net()
    model.graph.node.append(helper.make_node("Identity", ["logits"], ["more"], "identity"))
    assert noisiest(model, model, rows_for(model, 4).inputs, ("Gemm",)) == ("last",)


def test_a_layer_is_compared_behind_the_activation_that_a_quantizer_merged() -> None:
    model = product_net()
    other = copied(model)
    (relu,) = [node for node in other.graph.node if node.op_type == "Relu"]
    other.graph.node.remove(relu)
    other.graph.node[0].output[0] = "r1"  # not rounded, so what is below zero is noise
    assert noisiest(model, other, rows_for(model, 16).inputs, ("Gemm", "MatMul"))[0] == "first"
