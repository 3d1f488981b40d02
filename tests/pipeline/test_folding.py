"""The first layer takes raw rows: the same answers by fewer nodes, and where that may not be."""

import copy

import numpy as np
import onnx
import pytest
from onnx import helper
from small_models import FLOAT, image_net, linear_net, model_of, normal, rows_for

from pipeline.exporting.folding import fold_standardisation
from pipeline.exporting.onnxmodel import constants, replace_constant
from serving.runtime.session import open_session

Array = np.ndarray


def table_net(mean: Array, scale: Array) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Sub", ["rows", "mean"], ["centred"], "sub"),
        helper.make_node("Mul", ["centred", "scale"], ["standard"], "mul"),
        helper.make_node("Gemm", ["standard", "w", "b"], ["y"], "first", transB=1),
    ]
    weights = {"mean": mean.astype(np.float32), "scale": scale.astype(np.float32)}
    weights |= {"w": normal(1, 3, len(mean)), "b": normal(2, 3)}
    inputs: dict[str, tuple[int, list[int | str]]] = {"rows": (FLOAT, ["batch", len(mean)])}
    return model_of(nodes, inputs, {"y": ["batch", 3]}, weights)


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    made = copy.deepcopy(model)
    fold_standardisation(made)
    onnx.checker.check_model(made, full_check=True)
    return made


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def apart(one: onnx.ModelProto, other: onnx.ModelProto) -> float:
    rows = rows_for(one, 16).inputs
    left, right = (
        open_session(model.SerializeToString(), threads=1).run(rows) for model in (one, other)
    )
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_linear_layer_takes_pixels_as_they_come(channels: int, bias: bool) -> None:
    model = linear_net(channels, bias=bias)
    made = folded(model)
    assert operators(made) == ["Reshape", "Cast", "Gemm"]
    assert apart(model, made) < 5e-5
    assert list(constants(made)) == ["shape", "w.weight", "b" if bias else "w.bias"]


def test_a_convolution_without_padding_takes_pixels() -> None:
    model = image_net(3, padded=False)
    made = folded(model)
    assert operators(made)[:3] == ["Transpose", "Cast", "Conv"]
    assert apart(model, made) < 5e-5


def test_the_zeros_of_padding_stay_means() -> None:
    model = image_net(3, padded=True)
    made = folded(model)
    assert operators(made)[:4] == ["Transpose", "Cast", "Sub", "Conv"]
    assert apart(model, made) < 5e-5
    replace_constant(model, "mean", np.zeros((3, 1, 1), np.float32))
    made = folded(model)
    assert operators(made)[:3] == ["Transpose", "Cast", "Conv"], "zero is the mean here"
    assert apart(model, made) < 5e-5


def test_padding_by_another_name_is_padding() -> None:
    model = image_net(3, padded=True)
    (first,) = [node for node in model.graph.node if node.name == "first"]
    (pads,) = first.attribute
    pads.CopyFrom(helper.make_attribute("auto_pad", "SAME_UPPER"))
    assert operators(folded(model))[2:4] == ["Sub", "Conv"]


def test_features_of_like_size_are_folded() -> None:
    model = table_net(np.array([0.5, -1.0]), np.array([1.0, 3.0]))
    made = folded(model)
    assert operators(made) == ["Gemm"]
    assert apart(model, made) < 5e-5


@pytest.mark.parametrize(
    ("mean", "scale"),
    [([2000.0, 2000.0], [0.2, 0.2]), ([0.0, 0.0], [1.0, 1000.0])],
    ids=["years", "metres and kilometres"],
)
def test_where_raw_values_would_round_worse_all_stays(
    mean: list[float], scale: list[float]
) -> None:
    model = table_net(np.array(mean), np.array(scale))
    assert folded(model) == model


def of_more_readers(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["standard"], ["more"], "again"))


def answered(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("standard", FLOAT, None))


def of_a_shared_weight(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["w1"], ["more"], "again"))


def of_groups(model: onnx.ModelProto) -> None:
    (first,) = [node for node in model.graph.node if node.name == "first"]
    first.attribute.append(helper.make_attribute("group", 3))


@pytest.mark.parametrize("change", [of_more_readers, answered, of_a_shared_weight, of_groups])
def test_what_others_read_and_other_layers_stay(change: object) -> None:
    model = image_net(3)
    change(model)  # type: ignore[operator]
    made = copy.deepcopy(model)
    fold_standardisation(made)
    assert made == model
