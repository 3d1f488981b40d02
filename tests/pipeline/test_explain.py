"""What a failure is explained by where no node of the graph is to blame."""

from dataclasses import replace

import numpy as np
import onnx
import proof_models as small
import pytest
from foreign_files import FILES
from small_models import image_net, rows_for
from small_onnx import FLOAT, copied, model, node

from pipeline.config.experiment import GateConfig
from pipeline.errors import ParityError
from pipeline.exporting.module import keep_padding
from pipeline.proof.differences import FAR
from pipeline.proof.explain import OPTIMIZED
from pipeline.proof.pair import compare, limits_of_pair, refuse_failures
from pipeline.proof.prove import ask_onnx_reference
from pipeline.proof.rows import Rows
from pipeline.proof.tables import pair_table
from pipeline.quantization.apply import Quantizer
from pipeline.quantization.recipes import parse
from pipeline.records.parity import VariantParity

LOOSE = GateConfig.only(max_abs_diff=9)
BATCH = "alone, this row is answered alike: the answer depends on its batch"
FEATURES = {"features": (FLOAT, ["batch", small.FEATURES])}
VALUES = {"values": (FLOAT, ["batch", small.FEATURES])}


def result_of(
    reference: onnx.ModelProto,
    other: onnx.ModelProto,
    rows: Rows | None = None,
    limits: GateConfig | None = None,
) -> VariantParity:
    report = compare(
        small.side(reference, "one.onnx"),
        small.side(other, "other.onnx"),
        rows or small.rows(labelled=False),
        limits=limits or limits_of_pair(1e-4),
        batch_sizes=(1, 7),
        hostile=False,
    )
    assert not report.passed
    with pytest.raises(ParityError) as caught:
        refuse_failures({"other.onnx": report.result}, None)
    assert len(str(caught.value).splitlines()) == 1
    return report.result


def beside_others(scale: float) -> onnx.ModelProto:
    """The features, and so many times what they are above the mean of their batch."""
    nodes = [
        node("ReduceMean", "features axes", "mean"),
        node("Sub", "features mean", "above"),
        node("Mul", "above scale", "part"),
        node("Add", "features part", "values"),
    ]
    weights = {"axes": np.array([0]), "scale": np.float32(scale)}
    return model(nodes, FEATURES, VALUES, weights)


def test_an_answer_that_depends_on_its_batch_blames_no_node() -> None:
    result = result_of(beside_others(0), beside_others(1))
    assert result.max_abs_diff > 1
    assert BATCH in result.notes
    assert result.first_divergence is None


def test_nor_does_one_that_is_the_same_on_both_sides() -> None:
    assert result_of(beside_others(1), beside_others(1)).notes == (BATCH,)


def test_nor_does_one_whose_batches_alone_are_beyond_their_limit() -> None:
    limits = GateConfig.only(max_abs_diff=10, batch_diff=1e-4)
    result = result_of(beside_others(0), beside_others(1), limits=limits)
    assert len(result.failures) == 1
    assert result.notes == (BATCH,)


def test_what_differs_alone_as_well_is_the_nodes_fault() -> None:
    other = beside_others(1)
    other.graph.node[0].CopyFrom(node("ReduceMax", "features axes", "mean"))
    other.graph.node[3].CopyFrom(node("Sub", "features part", "values"))
    shifted = copied(other)
    shifted.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array([1]), "axes"))
    result = result_of(beside_others(0), shifted)
    assert BATCH not in result.notes
    assert result.first_divergence is not None


def padded_pool() -> onnx.ModelProto:
    """The largest of four neighbours of what a padding of zeros has been put around."""
    nodes = [
        node("Pad", "x pads", "wide"),
        node("MaxPool", "wide", "y", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    ends = {"x": (FLOAT, ["batch", 1, 3, 3])}, {"y": (FLOAT, ["batch", 1, 2, 2])}
    return model(nodes, *ends, {"pads": np.array([0, 0, 1, 1, 0, 0, 0, 0])})


def below_zero() -> Rows:
    drawn = np.random.default_rng(0).random((30, 1, 3, 3), np.float32)
    return Rows(name="below", inputs={"x": -1 - drawn}, labels=None)


def test_what_the_optimizer_changes_blames_no_node() -> None:
    kept = onnx.shape_inference.infer_shapes(padded_pool())
    assert keep_padding(kept.graph) == 1
    for pair, name in (((kept, padded_pool()), "other"), ((padded_pool(), kept), "one")):
        result = result_of(*pair, below_zero())
        assert result.first_divergence is None
        (note,) = [one for one in result.notes if "optimization" in one]
        assert note.startswith(f"without graph optimization {name}.onnx answers this row alike")


def test_kernels_that_answer_otherwise_than_the_graph_blame_no_node() -> None:
    result = result_of(padded_pool(), padded_pool(), below_zero())
    assert len(result.failures) == 1
    assert "between optimized kernels and the graph" in result.failures[0]
    assert result.notes == (OPTIMIZED,)


def test_nan_in_the_rows_is_no_answer_alike() -> None:
    rows = small.rows(9, labelled=False)
    rows.inputs["features"][4, 2] = np.nan
    linear = model([node("Identity", "features", "values")], FEATURES, VALUES)
    result = result_of(linear, linear, replace(rows, labels=None))
    assert BATCH not in result.notes


def test_probabilities_are_explained_where_the_label_stays() -> None:
    (file,) = [one for one in FILES if one.name == "strings_beside_scores"]
    sound = onnx.load_from_string(file.content())
    other = copied(sound)
    for attribute in other.graph.node[1].attribute:
        if attribute.name == "coefficients":
            attribute.floats[:] = [1.01 * one for one in attribute.floats]
    result = result_of(sound, other, Rows(name="rows", inputs=dict(file.rows), labels=None))
    assert result.first_divergence is not None
    assert result.first_divergence.node == "LinearClassifier"


def test_flips_are_explained_by_their_node() -> None:
    bias = np.array([0, 0, 0.5, 0], np.float32)
    limits = GateConfig.only(flips=0)
    result = result_of(small.linear(), small.linear(bias=bias), small.rows(), limits)
    assert result.first_divergence is not None
    assert result.first_divergence.node == "dense/Gemm"


# A third opinion


def warning_of(made: onnx.ModelProto, rows: Rows) -> str:
    side = small.side(made)
    report = compare(side, side, rows, limits=LOOSE, batch_sizes=(7,))
    assert report.passed
    return next((line for line in pair_table(report).splitlines() if "WARNING" in line), "")


def test_both_sides_may_be_wrong() -> None:
    found = warning_of(padded_pool(), below_zero())
    assert "onnx.reference, which computes the operators as ONNX defines them" in found
    assert "answers otherwise than model.onnx, by " in found
    assert "without graph optimization ONNX Runtime agrees with it" in found
    assert "puts the Pad before MaxPool/y into that MaxPool" in found


def test_other_models_are_not_warned_of() -> None:
    assert warning_of(padded_pool(), replace(below_zero(), inputs=above_zero())) == ""
    assert warning_of(small.linear(), small.rows()) == ""
    model, rows = image_net(), rows_for(image_net())
    for recipe in ("static-u8s8-raw", "half", "dynamic"):
        assert warning_of(Quantizer(model, rows).apply(parse(recipe)), rows) == ""


def above_zero() -> dict[str, np.ndarray]:
    return {name: -array for name, array in below_zero().inputs.items()}


def test_answers_of_another_shape_contradict_as_well() -> None:
    side = small.side(small.linear())
    other = small.linear()
    other.graph.node[0].CopyFrom(node("MatMul", "features wide", "logits"))
    wide = np.ones((small.FEATURES, small.CLASSES + 1), np.float32)
    other.graph.initializer.append(onnx.numpy_helper.from_array(wide, "wide"))
    for output in other.graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = small.CLASSES + 1
    lying = replace(side, content=other.SerializeToString())
    found = ask_onnx_reference(side, lying, small.rows(3).slice(0, 3))
    assert found.to_model == FAR
    assert found.warning is not None
    assert "in another shape: one of the two is wrong" in found.warning
