"""Recipes applied to small models: of the form that was promised, close, and the same bytes."""

import copy

import numpy as np
import onnx
import pytest
from onnx import helper
from small_models import (
    image_net,
    linear_net,
    model_of,
    normal,
    product_net,
    recurrent_net,
    rows_for,
    table_net,
)

from pipeline.exporting import onnxmodel
from pipeline.exporting.folding import fold_standardisation
from pipeline.exporting.onnxmodel import constants, replace_constant
from pipeline.proof.rows import Rows
from pipeline.quantization.apply import Quantizer, weight_only
from pipeline.quantization.half import to_fp16
from pipeline.quantization.prepare import prepare
from pipeline.quantization.recipes import parse
from serving.errors import ModelError
from serving.runtime.session import Session, open_session

IMAGES = image_net()
UINT8, INT8 = onnx.TensorProto.UINT8, onnx.TensorProto.INT8


@pytest.fixture(scope="module")
def images() -> Quantizer:
    return Quantizer(IMAGES, rows_for(IMAGES, 64))


def session_of(model: onnx.ModelProto) -> Session:
    return open_session(model.SerializeToString(), threads=1)


def quantized_types(model: onnx.ModelProto) -> tuple[set[int], set[int]]:
    """Of activations and of convolutions' weights."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    activations = {
        tensors[node.input[2]].data_type
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    weights = {
        tensors[node.input[0]].data_type
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in tensors
        and len(tensors[node.input[0]].dims) > 1
    }
    return activations, weights


def test_types_are_those_of_the_name(images: Quantizer) -> None:
    assert quantized_types(images.apply(parse("static-u8s8"))) == ({UINT8}, {INT8})
    assert quantized_types(images.apply(parse("static-s8s8"))) == ({INT8}, {INT8})
    assert quantized_types(images.apply(parse("static-u8u8"))) == ({UINT8}, {UINT8})


def test_scales_are_per_channel_or_one(images: Quantizer) -> None:
    for name, shape in (("static-u8s8", (8,)), ("static-u8s8-tensor", ())):
        known = constants(images.apply(parse(name)))
        assert known["w1_scale"].shape == shape


def older(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same file, of an older opset; its operators are the same there."""
    model.opset_import[0].version = 11
    return model


def test_scales_per_channel_in_a_file_of_an_older_opset(images: Quantizer) -> None:
    """There is no `axis` of DequantizeLinear before opset 13: the file is converted."""
    model = older(image_net())
    made = Quantizer(model, images.calibration).apply(parse("static-u8s8-reduced"))
    assert made.opset_import[0].version == 13
    rows = images.calibration.inputs
    wanted, found = (session_of(one).run(rows)["logits"] for one in (model, made))
    assert 0 < np.abs(wanted - found).max() < 0.1 * np.abs(wanted).max()


def test_an_older_opset_that_cannot_be_converted_is_named() -> None:
    """Hardmax means another thing since opset 13, which onnx does not mind."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Hardmax", ["c"], ["y"], "hard", axis=1),
    ]
    weights = {"w": normal(0, 8, 3, 3, 3)}
    floats = {"x": (onnx.TensorProto.FLOAT, ["n", 3, 8, 8])}
    model = older(model_of(nodes, floats, {"y": ["n", 8, 6, 6]}, weights))
    quantizer = Quantizer(model, rows_for(model, 16))
    for recipe in ("static-u8s8", "weights-int8"):
        with pytest.raises(ModelError, match=r"opset 13, .* from 11: another answer; export it a"):
            quantizer.apply(parse(recipe))
    assert session_of(quantizer.apply(parse("static-u8s8-tensor")))


@pytest.mark.parametrize(
    "name",
    [
        *("static-u8s8", "static-u8s8-raw", "static-u8s8-entropy", "static-u8s8-percentile"),
        *("static-s8s8-tensor-few", "weights-int8", "dynamic", "half"),
    ],
)
def test_every_recipe_is_close_and_keeps_inputs_and_outputs(images: Quantizer, name: str) -> None:
    made, whole = session_of(images.apply(parse(name))), session_of(IMAGES)
    rows = rows_for(IMAGES, 100, seed=3).inputs
    assert (made.inputs, made.outputs) == (whole.inputs, whole.outputs)
    found, wanted = made.run(rows)["logits"], whole.run(rows)["logits"]
    assert 0 < np.abs(found - wanted).mean() < 0.1 * np.abs(wanted).mean()


@pytest.mark.parametrize(
    "name", ["static-u8s8-raw", "static-u8s8-percentile", "half", "dynamic", "weights-int4"]
)
def test_the_same_inputs_give_the_same_bytes(name: str) -> None:
    contents = [
        Quantizer(image_net(), rows_for(IMAGES, 64))
        .apply(parse(name))
        .SerializeToString(deterministic=True)
        for _ in range(2)
    ]
    assert contents[0] == contents[1]


def test_raw_rows_meet_no_quantizer(images: Quantizer) -> None:
    made = images.apply(parse("static-u8s8-raw"))
    makers = {name: node for node in made.graph.node for name in node.output}
    (first,) = [node for node in made.graph.node if node.name == "first"]
    dequantizer = makers[first.input[0]]
    assert dequantizer.op_type == "DequantizeLinear"
    assert dequantizer.input[0] == "planes"
    known = constants(made)
    assert known[dequantizer.input[1]] == 1
    assert known[dequantizer.input[2]] == 120
    assert not {"Cast", "Sub", "Mul"} & {node.op_type for node in made.graph.node}


def dark(model: onnx.ModelProto, count: int = 64) -> Rows:
    """Rows whose pixels are 16 at most, as those of `digits`."""
    rows = rows_for(model, count).inputs["images"] % 17
    return Rows(name="dark rows", inputs={"images": rows}, labels=None)


@pytest.mark.parametrize("name", ["static-u8s8-raw", "static-s8s8-raw", "static-u8u8-raw"])
def test_integer_kernels_of_raw_rows_answer_as_the_graph_says(name: str) -> None:
    """A bias is counted in steps of the pixels', which calibration would take for smaller ones."""
    model = linear_net(1)
    fold_standardisation(model)
    rows = dark(model)
    made = Quantizer(model, rows).apply(parse(name)).SerializeToString()
    plain, fast = (
        open_session(made, threads=1, optimize=level).run(rows.inputs)["y"]
        for level in ("none", "all")
    )
    wanted = session_of(model).run(rows.inputs)["y"]
    assert np.abs(plain - fast).max() < 1e-4
    assert np.abs(wanted - fast).max() < 0.1 * np.abs(wanted).max()


def first_layer_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """What comes behind it is cut off."""
    fold_standardisation(model)
    nodes = list(model.graph.node)
    last = next(at for at, node in enumerate(nodes) if node.op_type in ("Conv", "Gemm"))
    del model.graph.node[last + 1 :], model.graph.output[:]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(nodes[last].output[0]))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return model


@pytest.mark.parametrize(
    "name", ["static-u8s8-reduced", "static-u8s8-raw-reduced", "static-s8s8-tensor-reduced"]
)
@pytest.mark.parametrize("net", [image_net(3, padded=False), linear_net(3)], ids=["conv", "gemm"])
def test_rounded_weights_do_not_shift_raw_rows(net: onnx.ModelProto, name: str) -> None:
    model = first_layer_of(copy.deepcopy(net))
    shape = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    bright = np.random.default_rng(1).integers(180, 256, (64, *shape), np.uint8)
    rows = Rows(name="bright rows", inputs={"images": bright}, labels=None)
    made = Quantizer(model, rows).apply(parse(name))
    (wanted,), (found,) = (session_of(one).run(rows.inputs).values() for one in (model, made))
    shift = (found - wanted).mean(axis=(0, *range(2, wanted.ndim)))
    assert np.abs(shift).max() < 0.002 * wanted.std()


def test_layers_in_float_stay_in_float(images: Quantizer) -> None:
    recipe = parse("static-u8s8-float1")
    layers = images.float_layers(recipe)
    assert len(layers) == 1
    made = images.apply(recipe, layers)
    makers = {name: node for node in made.graph.node for name in node.output}
    (layer,) = [node for node in made.graph.node if node.name == layers[0]]
    assert layer.input[1] not in makers, "its weight is a constant"
    others = [n for n in made.graph.node if n.op_type == "Conv" and n.name != layers[0]]
    assert all(makers[node.input[1]].op_type == "DequantizeLinear" for node in others)


def test_layers_in_float_bring_the_answers_nearer() -> None:
    model = image_net()
    outlier = constants(model)["w2"].copy()
    outlier[:, 0, 0, 0] *= 60  # one weight that spoils the scale of its whole channel
    for tensor in model.graph.initializer:
        if tensor.name == "w2":
            tensor.CopyFrom(onnx.numpy_helper.from_array(outlier, "w2"))
    source = Quantizer(model, rows_for(model, 64))
    rows = rows_for(model, 100, seed=3).inputs
    wanted = session_of(model).run(rows)["logits"]

    def error(name: str) -> float:
        recipe = parse(name)
        made = source.apply(recipe, source.float_layers(recipe))
        return float(np.abs(session_of(made).run(rows)["logits"] - wanted).mean())

    assert source.float_layers(parse("static-u8s8-float1")) == ("second",)
    assert error("static-u8s8-float1") < 0.7 * error("static-u8s8")


def test_the_first_layer_in_float_takes_no_raw_rows(images: Quantizer) -> None:
    made = images.apply(parse("static-u8s8-raw"), ["first"])
    rows = rows_for(IMAGES, 20).inputs
    assert np.isfinite(session_of(made).run(rows)["logits"]).all()


def test_no_recipe_without_float_layers_measures_noise(images: Quantizer) -> None:
    assert images.float_layers(parse("static-u8s8")) == ()
    assert len(images.float_layers(parse("half-float2"))) == 2


def test_an_lstm_is_quantized_at_each_call_and_a_gru_is_not() -> None:
    for operator, made_of in (("LSTM", "DynamicQuantizeLSTM"), ("GRU", "GRU")):
        model = recurrent_net(operator)
        made = Quantizer(model, rows_for(model, 8)).apply(parse("dynamic"))
        assert made_of in [node.op_type for node in made.graph.node]
        assert session_of(made).proof.share == 1


def test_a_convolution_is_not_quantized_at_each_call(images: Quantizer) -> None:
    operators = {node.op_type for node in images.apply(parse("dynamic")).graph.node}
    assert "ConvInteger" not in operators
    assert "MatMulInteger" in operators


def test_half_precision_halves_the_weights() -> None:
    half = to_fp16(IMAGES)
    assert {array.dtype for array in constants(half).values()} == {np.dtype(np.float16)}
    kept = to_fp16(IMAGES, ["last"])
    types = {name: array.dtype for name, array in constants(kept).items()}
    assert types["w3"] == np.float32
    assert types["w1"] == np.float16


def test_a_variant_says_what_it_is_and_keeps_what_it_said() -> None:
    model = image_net()
    model.producer_name, model.producer_version = "somebody", "1.2"
    model.metadata_props.add(key="author", value="somebody")
    model.metadata_props.add(key="ferry.variant", value="fp32")
    made = Quantizer(model, rows_for(model, 8)).apply(parse("static-u8s8-few"))
    assert onnxmodel.metadata(made) == {
        "author": "somebody",
        "ferry.variant": "int8",
        "ferry.recipe": "static-u8s8-few",
        "ferry.needs": "vnni",
    }
    assert (made.producer_name, made.producer_version) == ("somebody", "1.2")
    assert (made.graph.name, made.ir_version) == (model.graph.name, 10)
    assert {entry.domain for entry in made.opset_import} == {""}


def test_zero_points_of_zero_are_dropped_before_convolutions_alone(images: Quantizer) -> None:
    made = images.apply(parse("static-u8s8"))
    inputs = {
        node.output[0]: len(node.input)
        for node in made.graph.node
        if node.op_type == "DequantizeLinear"
    }
    layers = {node.name: node for node in made.graph.node if node.op_type in ("Conv", "Gemm")}
    assert inputs[layers["second"].input[1]] == 2
    assert inputs[layers["last"].input[1]] == 3
    used = {name for node in made.graph.node for name in node.input}
    assert {tensor.name for tensor in made.graph.initializer} <= used


def test_few_rows_are_an_eighth_of_them() -> None:
    model = product_net()
    rows = rows_for(model, 64)
    spoilt = {name: array.copy() for name, array in rows.inputs.items()}
    spoilt["features"][8:] *= 100  # behind the first eighth
    source = Quantizer(model, Rows(name="x", inputs=spoilt, labels=None))
    few, all_rows = (
        constants(source.apply(parse(name)))["features_scale"]
        for name in ("static-u8s8-few", "static-u8s8")
    )
    assert all_rows > 20 * few


def test_a_fixed_batch_is_calibrated_in_batches_of_that_size() -> None:
    model = product_net(batch=4)
    made = Quantizer(model, rows_for(model, 11), 4).apply(parse("static-u8s8"))
    rows = rows_for(model, 4).inputs
    assert session_of(made).run(rows)["logits"].shape == (4, 20)


# Weights alone


def answers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return session_of(model).run(rows_for(model, 32).inputs)


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
    with pytest.raises(ModelError, match="no weights of 256 values or more"):
        weight_only(product_net(features=4, width=8), 8)
    computed = product_net()
    computed.graph.node.insert(0, onnx.helper.make_node("Neg", ["w2"], ["w2.computed"], "neg"))
    computed.graph.node[-1].input[1] = "w2.computed"
    assert weight_only(computed, 8).graph.node[-1].op_type == "MatMul"


@pytest.mark.parametrize("operator", ["Clip", "LeakyRelu", "Sigmoid", "Mul"])
def test_what_has_an_integer_kernel_takes_and_makes_integers(operator: str) -> None:
    """Or a network of mobile size would be made floats of and rounded behind each layer."""
    model = image_net()
    (relu,) = [node for node in model.graph.node if node.name == "relu"]
    relu.op_type = operator
    if operator == "Clip":
        relu.input.extend(["least", "most"])
        replace_constant(model, "least", np.array(0, np.float32))
        replace_constant(model, "most", np.array(6, np.float32))
    elif operator == "Mul":
        relu.input.append("c1")
    made = Quantizer(model, rows_for(model, 16)).apply(parse("static-u8s8-reduced"))
    for node in made.graph.node:
        if node.name == "relu":
            before = {one.op_type for one in made.graph.node if one.output[0] in node.input}
            behind = {one.op_type for one in made.graph.node if node.output[0] in one.input}
            assert (before, behind) == ({"DequantizeLinear"}, {"QuantizeLinear"})


def test_a_product_with_a_constant_is_not_rounded() -> None:
    made = Quantizer(IMAGES, rows_for(IMAGES, 16)).apply(parse("static-u8s8-reduced"))
    (scaling,) = [node for node in made.graph.node if node.op_type == "Mul"]
    (before,) = [node for node in made.graph.node if node.output[0] == scaling.input[0]]
    assert before.op_type == "Sub"
