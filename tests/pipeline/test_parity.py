"""Parity: what passes, what fails and how it is told, down to the layer."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from project import Project

from pipeline import onnxmodel
from pipeline.config import GateConfig, Params
from pipeline.divergence import first_divergence
from pipeline.errors import ConfigError, IntegrityError, MissingInputError, ParityError
from pipeline.graph import Graph, load_graph
from pipeline.parity import Answers, compare, parity, reference_answers
from pipeline.ready import Split, open_manifest, open_split
from pipeline.records import read
from pipeline.records.parity import ParityReport, as_table
from serving.session import open_session

GATE = GateConfig(max_abs_diff=1e-4, flips=0, accuracy_loss=0.0, batch_diff=1e-4)


def graph_of(project: Project) -> Graph:
    manifest = open_manifest(project.data)
    return load_graph(project.weights, project.experiment, manifest)


def run(project: Project, models: dict[str, Path], metrics: Path) -> ParityReport:
    return parity(
        project.weights,
        models,
        project.data,
        metrics,
        experiment=project.experiment,
        track=False,
    )


def test_all_variants_pass_over_the_whole_test_set(exported: Project, tmp_path: Path) -> None:
    report = run(exported, exported.models, tmp_path / "parity.json")
    assert report.passed
    assert report.rows == 360
    assert report.variants["fp32"].flips == 0
    assert report.variants["fp32"].max_abs_diff <= 1e-4
    assert report.variants["int8"].max_abs_diff > report.variants["fp16"].max_abs_diff
    trained = json.loads(exported.metrics("train").read_text())
    assert report.torch_accuracy == pytest.approx(trained["accuracy"])
    assert read(ParityReport, tmp_path / "parity.json", "ferry parity").passed
    table = as_table(report)
    assert table.count("passed") == 3
    assert "360 rows" in table


def test_the_figures_are_those_of_a_calculation_by_hand(exported: Project) -> None:
    test = open_split(exported.data, "test")
    reference = reference_answers(graph_of(exported), test.inputs)
    session = open_session(exported.models["int8"])
    found = session.run({"images": np.array(test.inputs)})["logits"]
    measured = compare(session, reference, test, [len(test.labels)], GATE)
    wanted = reference.values
    errors = np.abs(found - wanted)
    row, column = np.unravel_index(errors.argmax(), errors.shape)
    assert measured.max_abs_diff == pytest.approx(errors.max())
    assert measured.max_abs_at == (row, column)
    assert measured.mean_abs_diff == pytest.approx(errors.mean())
    assert measured.flips == (found.argmax(1) != wanted.argmax(1)).sum()
    assert measured.accuracy == (found.argmax(1) == test.labels).mean()
    big = np.abs(wanted) >= 0.01 * np.abs(wanted).max()
    expected = (errors[big] / np.abs(wanted)[big]).max()
    assert measured.max_rel_diff >= expected - 1e-7
    assert not measured.passed


def test_what_fails_is_named_with_value_place_and_limit(exported: Project) -> None:
    test = open_split(exported.data, "test")
    reference = reference_answers(graph_of(exported), test.inputs)
    spoilt = reference.values.copy()
    spoilt[12, 7] += 0.5
    spoilt[33] = -spoilt[33]
    answers = Answers(spoilt, spoilt.argmax(1))
    measured = compare(open_session(exported.models["fp32"]), answers, test, [7, 256], GATE)
    assert not measured.passed
    assert any("at logits[33, " in failure for failure in measured.failures)
    assert "1 flips, limit 0" in measured.failures


def test_a_nan_never_passes(exported: Project) -> None:
    test = open_split(exported.data, "test")
    reference = reference_answers(graph_of(exported), test.inputs)
    reference.values[5, 3] = np.nan
    measured = compare(open_session(exported.models["fp32"]), reference, test, [256], GATE)
    assert not measured.passed
    assert measured.max_abs_at == (5, 3)


def test_an_answer_that_depends_on_the_batch_fails(exported: Project, tmp_path: Path) -> None:
    """A model that takes the batch's mean off every logit."""

    def plant(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)
        (gemm,) = [node for node in nodes if node.op_type == "Gemm"]
        gemm.output[0] = "before"
        axes = numpy_helper.from_array(np.array([0], np.int64), "batch_axis")
        model.graph.initializer.append(axes)
        mean = onnx.helper.make_node("ReduceMean", ["before", "batch_axis"], ["mean_logits"])
        minus = onnx.helper.make_node("Sub", ["before", "mean_logits"], ["logits"])
        del model.graph.node[:]
        model.graph.node.extend([*nodes[:-1], mean, minus, nodes[-1]])

    path = planted(exported, tmp_path, plant)
    test = open_split(exported.data, "test")
    reference = reference_answers(graph_of(exported), test.inputs)
    measured = compare(open_session(path), reference, test, [1, 7, 256], GATE)
    assert any("between batch sizes, limit 1.0e-04" in failure for failure in measured.failures)


def planted(
    project: Project, folder: Path, change: Callable[[onnx.ModelProto], None], variant: str = "fp32"
) -> Path:
    """A copy of a variant with a fault."""
    model = onnx.load(project.models[variant])
    change(model)
    path = folder / "planted.onnx"
    onnxmodel.save(model, path)
    return path


def edit(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    (tensor,) = [one for one in model.graph.initializer if one.name == name]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))


def weight_clamped(model: onnx.ModelProto) -> None:
    edit(model, "network.1.conv.weight", lambda weight: weight.clip(-0.02, 0.02))


def first_weight_swapped(model: onnx.ModelProto) -> None:
    edit(model, "network.0.conv.weight", lambda weight: weight.transpose(0, 1, 3, 2).copy())


def bias_shifted(model: onnx.ModelProto) -> None:
    (gemm,) = [node for node in model.graph.node if node.op_type == "Gemm"]
    edit(model, gemm.input[2], lambda bias: bias + 0.25)


def mean_forgotten(model: onnx.ModelProto) -> None:
    edit(model, "mean", np.zeros_like)


def relu_lost(model: onnx.ModelProto) -> None:
    relu = [node for node in model.graph.node if node.op_type == "Relu"][1]
    relu.op_type = "Identity"


def pool_of_averages(model: onnx.ModelProto) -> None:
    pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
    pool.op_type = "AveragePool"
    kept = [attribute for attribute in pool.attribute if attribute.name != "storage_order"]
    kept = [attribute for attribute in kept if attribute.name != "dilations"]
    del pool.attribute[:]
    pool.attribute.extend(kept)


@pytest.mark.parametrize(
    ("fault", "node"),
    [
        (mean_forgotten, "main/Sub"),
        (first_weight_swapped, "network.0.conv/Conv"),
        (pool_of_averages, "network.0.pool/MaxPool"),
        (weight_clamped, "network.1.conv/Conv"),
        (relu_lost, "network.1.activation/Relu"),
        (bias_shifted, "network.4/Gemm"),
    ],
)
def test_a_planted_fault_is_named_at_its_layer(
    exported: Project, tmp_path: Path, fault: Callable[[onnx.ModelProto], None], node: str
) -> None:
    path = planted(exported, tmp_path, fault)
    metrics = tmp_path / "parity.json"
    with pytest.raises(ParityError) as caught:
        run(exported, {**exported.models, "fp32": path}, metrics)
    told = str(caught.value)
    assert told.startswith("digits-cnn fp32: ")
    assert f"first divergence at {node}; see {metrics}" in told
    assert "at logits[" in told
    assert "limit 1.0e-04" in told
    assert "\n" not in told
    report = read(ParityReport, metrics, "ferry parity")
    assert not report.passed
    assert report.variants["fp16"].passed
    divergence = report.variants["fp32"].first_divergence
    assert divergence is not None
    assert divergence.node == node


def test_a_wrong_int8_scale_is_named_at_its_layer(exported: Project, tmp_path: Path) -> None:
    def double(model: onnx.ModelProto) -> None:
        edit(model, "network.1.conv.weight_scale", lambda scale: scale * 2)

    path = planted(exported, tmp_path, double, "int8")
    row = np.array(open_split(exported.data, "test").inputs[:1])
    model = onnx.load(path)
    found = first_divergence(graph_of(exported), model, row, 1.0)
    assert found is not None
    assert found.node == "network.1.conv/Conv"


def test_a_model_of_other_weights_is_refused(exported: Project, tmp_path: Path) -> None:
    def relabel(model: onnx.ModelProto) -> None:
        for entry in model.metadata_props:
            if entry.key == "ferry.weights_sha256":
                entry.value = "0" * 64

    path = planted(exported, tmp_path, relabel)
    with pytest.raises(IntegrityError, match="was not exported from the weights"):
        run(exported, {"fp32": path}, tmp_path / "parity.json")


def test_a_missing_variant_names_the_command(exported: Project, tmp_path: Path) -> None:
    models = {"int8": tmp_path / "model.int8.onnx"}
    with pytest.raises(MissingInputError, match="`dvc repro quantize@digits-cnn` makes it"):
        run(exported, models, tmp_path / "parity.json")


def test_accuracy_that_is_lost_fails_its_gate(exported: Project) -> None:
    test = open_split(exported.data, "test")
    reference = reference_answers(graph_of(exported), test.inputs)
    right = np.where(reference.predicted == test.labels)[0][:4]
    found = open_session(exported.models["fp32"]).run({"images": np.array(test.inputs)})["logits"]
    wrong = Split(test.inputs, np.array(test.labels))
    # The reference answers four rows more rightly than the model does.
    wrong.labels[right] = (wrong.labels[right] + 1) % 10
    better = found.copy()
    better[right, wrong.labels[right]] += 100
    answers = Answers(better, better.argmax(1))
    gate = replace(GATE, max_abs_diff=1e6, flips=10, accuracy_loss=1.0)
    measured = compare(open_session(exported.models["fp32"]), answers, wrong, [256], gate)
    assert measured.failures == ("1.11 points of accuracy lost, limit 1.00",)
    # What is lost to the digit of the limit is within it, here and in the bundle's own gate.
    exactly = replace(gate, accuracy_loss=round(100 * 4 / 360, 9))
    measured = compare(open_session(exported.models["fp32"]), answers, wrong, [256], exactly)
    assert measured.passed
    assert measured.accuracy_loss <= exactly.accuracy_loss


def test_the_sources_are_not_touched(exported: Project, tmp_path: Path) -> None:
    before = {name: path.read_bytes() for name, path in exported.models.items()}
    copy = tmp_path / "weights.safetensors"
    shutil.copy(exported.weights, copy)
    run(exported, exported.models, tmp_path / "parity.json")
    assert before == {name: path.read_bytes() for name, path in exported.models.items()}
    assert copy.read_bytes() == exported.weights.read_bytes()


def refused(params: Params, name: str, **gate: object) -> str:
    experiment = params.experiment(name)
    parity_config = replace(
        experiment.parity,
        int8=replace(experiment.parity.int8, **gate),  # type: ignore[arg-type]
    )
    nowhere = Path("nowhere")
    with pytest.raises(ConfigError) as caught:
        parity(nowhere, {}, nowhere, nowhere, experiment=replace(experiment, parity=parity_config))
    return str(caught.value)


def test_a_gate_that_does_not_say_how_many_may_flip(params: Params) -> None:
    told = refused(params, "digits-mlp", flips=None)
    assert told == "experiments.digits-mlp.parity.int8.flips must be a number, got None"


def test_a_gate_on_classes_that_are_not_there(params: Params) -> None:
    told = refused(params, "mnist-autoencoder", accuracy_loss=0.1)
    assert told == (
        "experiments.mnist-autoencoder.parity.int8.accuracy_loss must be null: no class is "
        "predicted, got 0.1"
    )
