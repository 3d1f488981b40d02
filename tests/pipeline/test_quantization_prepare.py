"""Prepared graphs still compute the same, and the noisiest layer is the one made noisy."""

import copy

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import image_net, linear_net, normal, product_net, recurrent_net, rows_for

from pipeline.exporting.folding import fold_standardisation
from pipeline.exporting.onnxmodel import constants, replace_constant
from pipeline.quantization.prepare import noisiest_layers, prepare, with_raw_input
from serving.runtime.session import open_session

OPERATORS = ("Conv", "Gemm")


def run(model: onnx.ModelProto, count: int = 16) -> dict[str, np.ndarray]:
    session = open_session(model.SerializeToString(), threads=1)
    return session.run(rows_for(model, count).inputs)


def largest_difference(one: onnx.ModelProto, other: onnx.ModelProto) -> float:
    left, right = run(one), run(other)
    assert left.keys() == right.keys()
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


def test_a_prepared_model_computes_the_same_and_has_names() -> None:
    model = recurrent_net("LSTM")
    for node in model.graph.node:
        node.name = ""
    prepared = prepare(model)
    assert largest_difference(model, prepared) < 1e-5
    assert all(node.name for node in prepared.graph.node)
    assert {entry.domain for entry in prepared.opset_import} == {""}


def test_constants_are_folded() -> None:
    model = product_net()
    doubled = helper.make_node("Add", ["w2", "w2"], ["w2.twice"], "twice")
    model.graph.node.insert(0, doubled)
    model.graph.node[-1].input[1] = "w2.twice"
    prepared = prepare(model)
    assert [node.op_type for node in prepared.graph.node] == ["Gemm", "Relu", "MatMul"]
    assert np.array_equal(
        constants(prepared)[prepared.graph.node[-1].input[1]], 2 * constants(model)["w2"]
    )


def test_the_model_itself_stays_as_it_is() -> None:
    model = image_net()
    before = model.SerializeToString(deterministic=True)
    raw = with_raw_input(prepare(model))
    assert raw is not None
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("channels", [1, 3])
def test_standardisation_is_merged_exactly_where_nothing_is_padded(channels: int) -> None:
    model = image_net(channels, padded=False)
    raw = with_raw_input(model)
    assert raw is not None
    assert largest_difference(model, raw.model) < 1e-4
    assert "Mul" not in [node.op_type for node in raw.model.graph.node]


def test_only_edges_change_where_a_convolution_pads() -> None:
    model = image_net(3, padded=True)
    raw = with_raw_input(model)
    assert raw is not None
    outputs = {}
    for name, one in (("before", model), ("after", raw.model)):
        opened = copy.deepcopy(one)
        opened.graph.output.append(onnx.ValueInfoProto(name="c1"))
        outputs[name] = run(opened)["c1"]
    changed = np.abs(outputs["before"] - outputs["after"])
    assert changed[:, :, 1:-1, 1:-1].max() < 1e-4
    assert changed.max() > 0.01, "the means of the channels differ by 40 of 255"


def test_the_zero_is_the_mean_as_a_whole_number() -> None:
    raw = with_raw_input(image_net(3))
    assert raw is not None
    assert raw.zero == 120  # of 100, 120 and 140
    assert (raw.pixels, raw.centred) == ("planes", "centred")


def test_what_export_folded_takes_raw_pixels_too() -> None:
    for model, zero, beginning in (
        (image_net(3), 120, ["Transpose", "Cast", "Sub", "Conv"]),
        (image_net(3, padded=False), 0, ["Transpose", "Cast", "Conv"]),
        (linear_net(3), 0, ["Reshape", "Cast", "Gemm"]),
    ):
        fold_standardisation(model)
        raw = with_raw_input(model)
        assert raw is not None
        assert [node.op_type for node in raw.model.graph.node][: len(beginning)] == beginning
        assert raw.zero == zero
        cast = next(node for node in raw.model.graph.node if node.op_type == "Cast")
        assert raw.pixels == cast.input[0]
        if not zero:
            assert raw.centred == cast.output[0]
            assert largest_difference(model, raw.model) == 0


def test_a_convolution_without_a_bias_gets_one() -> None:
    model = image_net(3, padded=False)
    (first,) = [node for node in model.graph.node if node.name == "first"]
    del first.input[2]
    raw = with_raw_input(model)
    assert raw is not None
    assert largest_difference(model, raw.model) < 1e-4


def test_other_beginnings_are_left_alone() -> None:
    assert with_raw_input(product_net()) is None
    assert with_raw_input(recurrent_net("GRU")) is None
    used_twice = image_net()
    used_twice.graph.node.append(helper.make_node("Identity", ["standard"], ["more"], "again"))
    assert with_raw_input(used_twice) is None
    per_pixel = image_net()
    replace_constant(per_pixel, "mean", normal(1, 3, 8, 8))
    assert with_raw_input(per_pixel) is None
    floats = image_net()
    floats.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    assert with_raw_input(floats) is None


def test_a_constant_is_replaced_or_added() -> None:
    model = product_net()
    count = len(model.graph.initializer)
    replace_constant(model, "b1", np.zeros(64, np.float32))
    assert len(model.graph.initializer) == count
    assert not constants(model)["b1"].any()
    replace_constant(model, "new", np.ones(2, np.float32))
    assert len(model.graph.initializer) == count + 1


@pytest.mark.parametrize(("weight", "layer"), [("w1", "first"), ("w2", "second"), ("w3", "last")])
def test_a_layer_with_a_coarse_weight_is_the_noisiest_layers(weight: str, layer: str) -> None:
    model = image_net()
    noisy = copy.deepcopy(model)
    for name, step in (("w1", 0.01), ("w2", 0.01), ("w3", 0.01), (weight, 0.3)):
        value = constants(model)[name]
        replace_constant(noisy, name, (np.rint(value / step) * step).astype(np.float32))
    found = noisiest_layers(model, noisy, rows_for(model, 16).inputs, OPERATORS)
    assert found[0] == layer
    assert sorted(found) == ["first", "last", "second"]


def test_a_layer_whose_tensors_are_gone_is_not_named() -> None:
    model = product_net()
    other = copy.deepcopy(model)
    gone = {"g1": "renamed", "r1": "renamed too"}  # the first layer's, and its activation's
    for node in other.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = gone.get(name, name)
    assert noisiest_layers(model, other, rows_for(model, 4).inputs, ("Gemm", "MatMul")) == ("last",)


def test_infinite_noise_is_the_worst() -> None:
    model = product_net()
    broken = copy.deepcopy(model)
    infinite = np.full_like(constants(model)["w2"], np.inf)
    replace_constant(broken, "w2", infinite)
    found = noisiest_layers(model, broken, rows_for(model, 4).inputs, ("Gemm", "MatMul"))
    assert found == ("last", "first")


def test_operators_that_are_not_asked_for_are_not_named() -> None:
    model = image_net()
    model.graph.node.append(helper.make_node("Identity", ["logits"], ["more"], "identity"))
    assert noisiest_layers(model, model, rows_for(model, 4).inputs, ("Gemm",)) == ("last",)


def test_a_layer_is_compared_behind_the_activation_that_a_quantizer_merged() -> None:
    model = product_net()
    other = copy.deepcopy(model)
    (relu,) = [node for node in other.graph.node if node.op_type == "Relu"]
    other.graph.node.remove(relu)
    other.graph.node[0].output[0] = "r1"  # not rounded, so what is below zero is noise
    assert (
        noisiest_layers(model, other, rows_for(model, 16).inputs, ("Gemm", "MatMul"))[0] == "first"
    )
