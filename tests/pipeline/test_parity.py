"""The stage: what passes, what fails and how it is told, down to the layer."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from project import Project, files_in

from pipeline.config.experiment import Params
from pipeline.errors import ConfigError, ParityError
from pipeline.exporting import onnxmodel
from pipeline.network.graph import Graph, load_graph
from pipeline.proof.tables import parity_table, ulps
from pipeline.proof.tracing.divergence import first_divergence
from pipeline.records import read
from pipeline.records.parity import Cell, ParityReport, SkippedCell
from pipeline.records.ready import open_manifest, open_split
from pipeline.stages.parity import parity
from serving.errors import IntegrityError, MissingInputError
from serving.runtime.session import open_session


def graph_of(project: Project) -> Graph:
    manifest = open_manifest(project.data)
    return load_graph(project.weights, project.experiment, manifest)


def run(project: Project, models: dict[str, Path], folder: Path) -> ParityReport:
    return parity(
        project.weights,
        models,
        project.data,
        files_in(folder, "parity"),
        experiment=project.experiment,
        skipped={"int4": "nothing is gained"},
        track=False,
    )


@pytest.fixture(scope="module")
def report(exported: Project, tmp_path_factory: pytest.TempPathFactory) -> ParityReport:
    """The tiny experiment's own, as it is read back."""
    folder = tmp_path_factory.mktemp("parity")
    run(exported, exported.models, folder)
    return read(ParityReport, folder / "parity.json", "ferry parity")


def cells(report: ParityReport, variant: str) -> list[Cell]:
    return list(report.variants[variant].run)


def test_all_variants_pass_over_the_whole_test_set(exported: Project, report: ParityReport) -> None:
    assert report.passed
    assert report.rows == 360
    assert report.variants["fp32"].flips == 0
    assert report.variants["fp32"].max_abs_diff <= 1e-4
    assert report.variants["fp32"].max_probability_diff <= 1e-5  # type: ignore[operator]
    assert report.variants["int8"].max_abs_diff > report.variants["fp16"].max_abs_diff
    trained = json.loads(exported.details("train").read_text())
    assert report.torch_accuracy == pytest.approx(trained["accuracy"])
    assert report.skipped == {"int4": "nothing is gained"}


def test_the_table_tells_it_at_a_glance(report: ParityReport) -> None:
    table = parity_table(report)
    assert table.count("passed") == 3
    assert "on 360 rows" in table
    assert "int4: not made: nothing is gained" in table
    assert "fp32: onnx.reference on 4 rows: " in table
    assert list(ulps(report)) == ["fp32", "fp16", "int8"]


def test_the_matrix_is_whole(exported: Project, report: ParityReport) -> None:
    """The test set is smaller than the sample, so that every cell is asked all of it."""
    for variant in report.variants:
        found = {
            (one.level, one.batch_size) for one in cells(report, variant) if one.provider == "cpu"
        }
        levels = exported.experiment.parity.levels
        assert found == {(level, size) for level in levels for size in (1, 7, 256)}
        assert all(one.rows == 360 for one in cells(report, variant))
    assert {one.exporter for one in cells(report, "fp32")} == {"dynamo", "torchscript"}
    assert {one.exporter for one in cells(report, "int8")} == {"dynamo"}
    skipped = [one for one in report.variants["int8"].cells if isinstance(one, SkippedCell)]
    assert all(one.reason for one in skipped)


def test_both_exporters_agree(report: ParityReport) -> None:
    second = [one for one in cells(report, "fp32") if one.exporter == "torchscript"]
    assert second
    assert all(one.passed for one in second)


def test_the_figures_are_those_of_a_calculation_by_hand(
    exported: Project, report: ParityReport
) -> None:
    test = open_split(exported.data, "test")
    wanted = graph_of(exported).answer(test.inputs, 360)[0].numpy()
    found = open_session(exported.models["int8"]).run({"images": np.array(test.inputs)})["logits"]
    (cell,) = [one for one in cells(report, "int8") if (one.level, one.batch_size) == ("all", 256)]
    errors = np.abs(found.astype(np.float64) - wanted)
    logits = cell.outputs[0]
    assert logits.max_abs_diff == pytest.approx(errors.max(), rel=1e-4)
    assert logits.max_abs_at == np.unravel_index(errors.argmax(), errors.shape)
    assert logits.mean_abs_diff == pytest.approx(errors.mean(), rel=1e-4)
    (decisions,) = cell.decisions
    flipped = found.argmax(1) != wanted.argmax(1)
    assert decisions.flips + decisions.near_ties == flipped.sum()
    assert decisions.accuracy == (found.argmax(1) == test.labels).mean()


def test_the_summary_is_the_worst_of_the_cells(report: ParityReport) -> None:
    for name, variant in report.variants.items():
        shipped = [one for one in cells(report, name) if one.exporter == "dynamo"]
        assert variant.max_abs_diff == max(one.outputs[0].max_abs_diff for one in shipped)
        assert variant.max_probability_diff == max(one.outputs[1].max_abs_diff for one in shipped)
        assert variant.flips == max(one.decisions[0].flips for one in shipped)
        assert variant.accuracy == min(
            one.decisions[0].accuracy for one in shipped if one.decisions[0].accuracy
        )
        assert variant.hostile_max_abs_diff == max(
            row.max_abs_diff for row in variant.hostile if row.max_abs_diff is not None
        )


def test_hostile_rows_and_no_rows_are_asked(report: ParityReport) -> None:
    for variant in report.variants.values():
        assert [row.name for row in variant.hostile] == [
            "zeros",
            "all 255",
            "one hot pixel",
            "noise",
        ]
        assert variant.zero_rows == "answered 0 rows"


def test_an_explanation_on_demand(exported: Project, tmp_path: Path) -> None:
    models = {"int8": exported.models["int8"]}
    explained = parity(
        exported.weights,
        models,
        exported.data,
        files_in(tmp_path, "parity"),
        experiment=exported.experiment,
        explain=True,
        track=False,
    )
    assert explained.passed
    assert explained.variants["int8"].first_divergence is not None


def test_mlflow_gets_gates_and_cells(
    exported: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    models = {"fp32": exported.models["fp32"]}
    parity(
        exported.weights,
        models,
        exported.data,
        files_in(tmp_path, "parity"),
        experiment=exported.experiment,
    )
    mlflow.set_tracking_uri(store)
    (run_,) = mlflow.search_runs(experiment_names=["digits-cnn"], output_format="list")
    assert run_.data.tags["ferry.gate.fp32"] == "passed"
    assert run_.data.metrics["parity.fp32.flips"] == 0
    assert run_.data.metrics["parity.fp32.snr_db"] > 100
    assert "parity.fp32.dynamo.cpu.none.b7.logits.max_abs_diff" in run_.data.metrics


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
    with pytest.raises(ParityError) as caught:
        run(exported, {**exported.models, "fp32": path}, tmp_path)
    message = str(caught.value)
    assert message.startswith("digits-cnn fp32: ")
    assert f"first divergence at {node}; see {tmp_path / 'parity.json'}" in message
    assert "at logits[" in message
    assert "limit 1.0e-04" in message
    assert "\n" not in message
    report = read(ParityReport, tmp_path / "parity.json", "ferry parity")
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
    found = first_divergence(graph_of(exported), onnx.load(path), {"images": row}, 1.0)
    assert found is not None
    assert found.node == "network.1.conv/Conv"


def test_a_model_of_other_weights_is_refused(exported: Project, tmp_path: Path) -> None:
    def relabel(model: onnx.ModelProto) -> None:
        for entry in model.metadata_props:
            if entry.key == "ferry.weights_sha256":
                entry.value = "0" * 64

    path = planted(exported, tmp_path, relabel)
    with pytest.raises(IntegrityError, match="was not exported from the weights"):
        run(exported, {"fp32": path}, tmp_path)


def test_a_missing_variant_names_the_command(exported: Project, tmp_path: Path) -> None:
    models = {"int8": tmp_path / "model.int8.onnx"}
    with pytest.raises(MissingInputError, match="`dvc repro quantize@digits-cnn` makes it"):
        run(exported, models, tmp_path)


def test_accuracy_that_is_lost_fails_its_gate(exported: Project, tmp_path: Path) -> None:
    def forget(model: onnx.ModelProto) -> None:
        (gemm,) = [node for node in model.graph.node if node.op_type == "Gemm"]
        edit(model, gemm.input[2], lambda bias: bias + np.eye(10, dtype=np.float32)[3] * 50)

    path = planted(exported, tmp_path, forget)
    with pytest.raises(ParityError) as caught:
        run(exported, {"fp32": path}, tmp_path)
    message = str(caught.value)
    assert "points of accuracy lost, limit 0.00" in message
    assert "flips, limit 0" in message
    failed = read(ParityReport, tmp_path / "parity.json", "ferry parity")
    assert failed.variants["fp32"].accuracy_loss is not None
    assert failed.variants["fp32"].accuracy_loss > 50
    assert failed.variants["fp32"].mcnemar_p is not None
    assert failed.variants["fp32"].mcnemar_p < 1e-10
    assert "FAILED: " in parity_table(failed)


def test_a_nan_never_passes_and_its_maker_is_named(exported: Project, tmp_path: Path) -> None:
    def poison(model: onnx.ModelProto) -> None:
        def change(weight: np.ndarray) -> np.ndarray:
            weight[0, 0, 0, 0] = np.nan
            return weight

        edit(model, "network.1.conv.weight", change)

    path = planted(exported, tmp_path, poison)
    with pytest.raises(ParityError) as caught:
        run(exported, {"fp32": path}, tmp_path)
    assert "values are NaN or infinite, first at " in str(caught.value)
    assert "network.1.conv/Conv (Conv) is the first to make NaN" in str(caught.value)
    failed = read(ParityReport, tmp_path / "parity.json", "ferry parity")
    assert failed.variants["fp32"].nonfinite > 0


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
    with pytest.raises(ParityError, match=r"(in batches of|alone and) .*, limit 1\.0e-04"):
        run(exported, {"fp32": path}, tmp_path)


def test_the_sources_are_not_touched(exported: Project, tmp_path: Path) -> None:
    before = {name: path.read_bytes() for name, path in exported.models.items()}
    copy = tmp_path / "weights.safetensors"
    shutil.copy(exported.weights, copy)
    run(exported, exported.models, tmp_path)
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
    message = refused(params, "digits-mlp", flips=None)
    assert message == "experiments.digits-mlp.parity.int8.flips must be a number, got None"


def test_a_gate_on_classes_that_are_not_there(params: Params) -> None:
    message = refused(params, "mnist-autoencoder", accuracy_loss=0.1)
    assert message == (
        "experiments.mnist-autoencoder.parity.int8.accuracy_loss must be null: no class is "
        "predicted, got 0.1"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": ("none",)}, "levels must hold 'all', which ships, got ('none',)"),
        ({"exporters": ("torchscript",)}, "exporters must hold 'dynamo', which ships"),
    ],
)
def test_what_ships_is_always_compared(
    params: Params, changes: dict[str, object], message: str
) -> None:
    experiment = params.experiment("digits-mlp")
    config = replace(experiment.parity, **changes)  # type: ignore[arg-type]
    nowhere = Path("nowhere")
    with pytest.raises(ConfigError) as caught:
        parity(nowhere, {}, nowhere, nowhere, experiment=replace(experiment, parity=config))
    assert message in str(caught.value)


def test_near_ties_need_a_number_to_be_told_by(params: Params) -> None:
    experiment = params.experiment("digits-mlp")
    fp32 = replace(experiment.parity.fp32, max_abs_diff=None)
    experiment = replace(experiment, parity=replace(experiment.parity, fp32=fp32))
    nowhere = Path("nowhere")
    with pytest.raises(ConfigError, match=r"fp32\.max_abs_diff must be a number, got None"):
        parity(nowhere, {}, nowhere, nowhere, experiment=experiment)
