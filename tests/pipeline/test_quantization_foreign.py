"""What files of other makers have that ours have not, quantized: names, axes, inputs, biases."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from small_models import FLOAT, image_net, model_of, normal, product_net, recurrent_net, rows_for
from tries import generous

from pipeline.exporting.onnxmodel import Names, drop_unused_domains
from pipeline.proof.rows import Rows
from pipeline.quantization.apply import Quantizer, weight_only
from pipeline.quantization.judging import Judge
from pipeline.quantization.prepare import constants, modernised, prepare, with_raw_input
from pipeline.quantization.recipes import parse
from pipeline.records.quantize import Budget, QuantizeReport
from pipeline.stages.quantize import quantize_file
from serving.errors import ModelError
from serving.runtime.session import open_session

BUDGET = Budget(accuracy_loss=100, error_increase=1000, min_speedup=0.001)


def answers(model: onnx.ModelProto, rows: Rows) -> dict[str, np.ndarray]:
    return open_session(model.SerializeToString(), threads=1).run(rows.inputs)


def off(model: onnx.ModelProto, other: onnx.ModelProto, rows: Rows) -> float:
    left, right = answers(model, rows), answers(other, rows)
    assert left.keys() == right.keys()
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


def quantized(model: onnx.ModelProto, folder: Path, recipe: str, rows: Rows) -> QuantizeReport:
    onnx.save(model, folder / "net.onnx")
    np.savez(folder / "rows.npz", **rows.inputs)
    return quantize_file(
        folder / "net.onnx",
        str(folder / "rows.npz"),
        folder / "out",
        config=generous(recipes=(recipe,)),
        variants=("int8", "fp16"),
        min_snr_db={},
    )


def weights_as_inputs(model: onnx.ModelProto, ir_version: int) -> onnx.ModelProto:
    """As every file of IR version 3 has them."""
    made = copy.deepcopy(model)
    made.ir_version = ir_version
    for tensor in made.graph.initializer:
        kind = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        made.graph.input.append(kind)
    return made


def without_axis_names(model: onnx.ModelProto) -> onnx.ModelProto:
    made = copy.deepcopy(model)
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
    return made


def without_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    made = copy.deepcopy(model)
    for value in made.graph.output:
        value.type.tensor_type.ClearField("shape")
    return made


@pytest.mark.parametrize("recipe", ["static-u8s8-reduced-raw", "weights-int8"])
@pytest.mark.parametrize(
    "change",
    [
        lambda model: weights_as_inputs(model, 3),
        lambda model: weights_as_inputs(model, 10),
        without_axis_names,
        without_shapes,
    ],
)
def test_ends_are_as_they_were(
    change: Callable[[onnx.ModelProto], onnx.ModelProto], recipe: str, tmp_path: Path
) -> None:
    report = quantized(change(image_net()), tmp_path, recipe, rows_for(image_net(), 24))
    assert report.skipped == {}
    for variant in ("int8", "fp16"):
        made = open_session(tmp_path / "out" / f"net.{variant}.onnx")
        assert [info.name for info in made.inputs] == ["images"]


# Names


def unnamed(build: Callable[[], onnx.ModelProto], taken: str) -> onnx.ModelProto:
    """Without names of nodes, but for that of the second."""
    model = build()
    for at, node in enumerate(model.graph.node):
        node.name = taken if at == 1 else ""
    return model


def renamed(build: Callable[[], onnx.ModelProto], old: str, new: str) -> onnx.ModelProto:
    """With another name of a value."""
    model = build()
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    return model


def gru() -> onnx.ModelProto:
    return recurrent_net("GRU")


@pytest.mark.parametrize(
    ("build", "model", "recipe"),
    [
        (product_net, unnamed(product_net, "Gemm.0"), "static-u8s8"),
        (product_net, renamed(product_net, "r1", "Gemm.0"), "static-u8s8"),
        (product_net, renamed(product_net, "r1", "w1.matrix"), "weights-int8"),
        (product_net, renamed(product_net, "r1", "g1.product"), "weights-int8"),
        (gru, renamed(gru, "turned", "w.whole"), "weights-int8"),
        (gru, renamed(gru, "turned", "w.float"), "weights-int8"),
        (image_net, renamed(image_net, "r1", "mean.rounded"), "static-u8s8-raw"),
    ],
)
def test_names_that_ferry_makes_are_those_of_nothing_else(
    build: Callable[[], onnx.ModelProto], model: onnx.ModelProto, recipe: str
) -> None:
    rows = rows_for(model, 16)
    wanted, found = (Quantizer(one, rows).apply(parse(recipe)) for one in (build(), model))
    assert off(wanted, found, rows) < 1e-4


def test_nodes_without_names_are_told_apart_in_half_precision() -> None:
    model = image_net()
    for node in model.graph.node:
        node.name = ""
    for at, ends in enumerate(("r1", "p1")):
        # Operators that onnxruntime leaves in float, with a cast on either side.
        (reader,) = [node for node in model.graph.node if ends in node.input]
        reader.input[0] = f"kept{at}"
        place = list(model.graph.node).index(reader)
        model.graph.node.insert(place, helper.make_node("Min", [ends], [reader.input[0]]))
    rows = rows_for(model, 8)
    quantizer = Quantizer(model, rows)
    assert off(model, quantizer.apply(parse("half")), rows) < 0.1
    (layer,) = quantizer.float_layers(parse("half-float1"))
    half = quantizer.apply(parse("half-float1"), [layer])
    assert [node.op_type for node in half.graph.node if node.name == layer] == [layer.split(".")[0]]
    assert not [node for node in model.graph.node if node.name], "the user's model stays as it is"


def test_the_domains_that_a_branch_needs_are_kept() -> None:
    work = helper.make_node("FastGelu", ["x"], ["z"], domain="com.microsoft")
    branch = helper.make_graph([work], "g", [], [helper.make_tensor_value_info("z", FLOAT, None)])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    domains = ["", "com.microsoft", "evil.org"]
    model = helper.make_model(
        helper.make_graph([choice], "g", [], []),
        opset_imports=[helper.make_opsetid(domain, 1) for domain in domains],
    )
    drop_unused_domains(model)
    assert [one.domain for one in model.opset_import] == domains[:2]
    model.graph.ClearField("node")
    drop_unused_domains(model)
    assert [one.domain for one in model.opset_import] == [""]


def test_a_name_is_new_within_subgraphs_too() -> None:
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["deep"], "work")], "g", [], [])
    choice = helper.make_node("If", ["c"], ["y"], "choice", then_branch=inner, else_branch=inner)
    names = Names(helper.make_model(helper.make_graph([choice], "g", [], [])))
    assert [names.new(one) for one in ("deep", "work", "x", "free", "free", "free_2")] == [
        *("deep_2", "work_2", "x_2", "free", "free_2", "free_2_2"),
    ]


# Weights that several nodes read


def twice(operator: str, weight: np.ndarray, **attributes: Any) -> onnx.ModelProto:
    """Two nodes of one weight, the second of which may read it in another way."""
    first = helper.make_node(operator, ["x", "w"], ["h"], "one", **attributes)
    attributes = {**attributes, "transB": 1} if operator == "Gemm" else attributes
    second = helper.make_node(operator, ["h", "w"], ["y"], "two", **attributes)
    shape: list[int | str] = ["batch", 16] + ([5, 5] if operator != "Gemm" else [])
    return model_of([first, second], {"x": (FLOAT, shape)}, {"y": shape}, {"w": weight})


@pytest.mark.parametrize(
    "model",
    [
        twice("Conv", normal(1, 16, 16, 3, 3, scale=0.1), pads=[1, 1, 1, 1]),
        twice("ConvTranspose", normal(1, 16, 16, 3, 3, scale=0.1), pads=[1, 1, 1, 1]),
        twice("Gemm", normal(1, 16, 16)),
    ],
)
def test_a_weight_of_two_nodes_is_stored_once(model: onnx.ModelProto) -> None:
    rows = rows_for(model, 8)
    made = weight_only(prepare(model), 8)
    assert off(model, made, rows) < 0.1
    whole = [one for one in constants(made).values() if one.dtype == np.int8]
    assert len(whole) == (0 if "Gemm" in [node.op_type for node in model.graph.node] else 1)


def test_a_weight_that_a_branch_reads_is_kept() -> None:
    model = product_net()
    branches = []
    for operator in ("Add", "Sub"):
        node = helper.make_node(operator, ["g1", "b1"], ["chosen"])
        made = helper.make_tensor_value_info("chosen", FLOAT, ["batch", 64])
        branches.append(helper.make_graph([node], operator, [], [made]))
    always = helper.make_node(
        "If", ["yes"], ["r1"], then_branch=branches[0], else_branch=branches[1]
    )
    model.graph.node[1].CopyFrom(always)
    model.graph.node[0].input.pop()
    model.graph.input.append(helper.make_tensor_value_info("yes", onnx.TensorProto.BOOL, []))
    feeds = Rows(
        name="rows",
        inputs={**rows_for(product_net(), 4).inputs, "yes": np.array(True)},
        labels=None,
    )
    assert off(model, weight_only(prepare(model), 8), feeds) < 1


def test_a_first_layer_whose_weight_another_reads_is_left_alone() -> None:
    shared = image_net()
    again = helper.make_node("Conv", ["standard", "w1"], ["c3"], "again", pads=[1, 1, 1, 1])
    shared.graph.node.append(again)
    shared.graph.output.append(onnx.ValueInfoProto(name="c3"))
    assert with_raw_input(shared) is None
    answered = image_net()
    answered.graph.output.append(onnx.ValueInfoProto(name="centred"))
    assert with_raw_input(answered) is None


# What onnxruntime's quantizer breaks on


@pytest.mark.parametrize("shape", [(1, 64), (), (1,), (1, 1), (8, 64), (8, 1)])
def test_a_bias_of_any_form_is_quantized(shape: tuple[int, ...]) -> None:
    batch: int | str = 8 if shape[:1] == (8,) else "batch"
    model = product_net(batch=batch)
    bias = normal(7, *shape) if shape else np.float32(0.3)
    nodes = [
        helper.make_node("MatMul", ["features", "w1"], ["g1"], "first"),
        helper.make_node("Add", ["g1", "b1"], ["s1"], "bias"),
        helper.make_node("Relu", ["s1"], ["r1"], "relu"),
        model.graph.node[2],
    ]
    model = model_of(
        nodes,
        {"features": (FLOAT, [batch, 64])},
        {"logits": [batch, 20]},
        {"w1": normal(1, 64, 64), "b1": np.asarray(bias), "w2": normal(3, 64, 20)},
    )
    rows = rows_for(model, 8)
    made = Quantizer(model, rows, 8 if batch == 8 else None).apply(parse("static-u8s8-reduced"))
    assert off(model, made, rows) < 0.5


def test_what_no_tool_brings_to_a_newer_opset_is_one_line() -> None:
    model = image_net()
    model.opset_import[0].version = 1
    with pytest.raises(ModelError, match="onnxruntime cannot prepare the model for int8: "):
        prepare(model)


def test_an_older_file_with_a_sequence_beside_its_arrays_is_converted() -> None:
    model = product_net()
    model.opset_import[0].version = 11
    model.graph.node.append(helper.make_node("SequenceConstruct", ["logits"], ["list"], "list"))
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    model.graph.output.append(helper.make_value_info("list", kind))
    assert modernised(model, rows_for(model, 4).inputs).opset_import[0].version == 13


@pytest.mark.parametrize("calibration", ["entropy", "percentile"])
def test_histograms_of_rows_that_do_not_fill_their_batches(calibration: str) -> None:
    model = product_net()
    quantizer = Quantizer(model, rows_for(model, 70))
    assert quantizer.apply(parse(f"static-u8s8-{calibration}"))
    assert Quantizer(model, rows_for(model, 9)).apply(parse(f"static-u8s8-{calibration}"))


# Whose fault it is


def test_a_recipe_that_ferry_itself_breaks_says_so() -> None:
    model = product_net()
    judge = Judge(Quantizer(model, rows_for(model)), rows_for(model), generous(), {})
    judge.rows = replace(judge.rows, inputs={"features": [None]})
    tried, content = judge.attempt(parse("half"), BUDGET)
    assert (tried.inside, content) == (False, b"")
    assert tried.verdict.startswith("not tried, by a fault of ferry's own at serving.runtime.")
    assert ", please report it: AttributeError: " in tried.verdict
