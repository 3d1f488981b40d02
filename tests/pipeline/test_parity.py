"""The stage: what passes, what fails and how it is told, down to the layer."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from planted_faults import Plant, replaced, weight_of
from project import Project, files_in

from pipeline.config.experiment import Params
from pipeline.errors import ConfigError, ParityError
from pipeline.exporting import onnxmodel
from pipeline.models.parts.graph import Graph, load_graph
from pipeline.proof.tables import parity_table, ulps
from pipeline.records import read, record
from pipeline.records.parity import Cell, ParityReport, SkippedCell
from pipeline.records.ready import open_manifest, open_split
from pipeline.stages.parity import parity
from serving.errors import IntegrityError, MissingInputError
from serving.files import sha256_of_bytes
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


def test_the_table_tells_it_at_a_glance(report: ParityReport) -> None:
    table = parity_table(report)
    assert table.count("passed") == 3
    assert "on 360 rows" in table
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
    assert all(one.passed for one in cells(report, "fp32"))
    assert {one.exporter for one in cells(report, "int8")} == {"dynamo"}
    skipped = [one for one in report.variants["int8"].cells if isinstance(one, SkippedCell)]
    assert all(one.reason for one in skipped)


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
            row.max_abs_diff
            for row in variant.hostile
            if row.gated and row.max_abs_diff is not None
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


def test_mlflow_gets_gates_and_the_report(exported: Project, store: Path) -> None:
    import mlflow

    models = {"fp32": exported.models["fp32"]}
    parity(
        exported.weights,
        models,
        exported.data,
        files_in(store, "parity"),
        experiment=exported.experiment,
    )
    (run_,) = mlflow.search_runs(experiment_names=["digits-cnn"], output_format="list")
    assert run_.data.tags["ferry.parity"] == "passed"
    assert run_.data.metrics["variants/fp32/flips"] == 0
    assert run_.data.metrics["variants/fp32/snr_db"] > 100
    kept = mlflow.artifacts.download_artifacts(run_id=run_.info.run_id, artifact_path="reports")
    assert Path(kept, "parity.json").read_bytes() == (store / "parity.json").read_bytes()


def planted(
    project: Project, folder: Path, plant: Callable[[onnx.ModelProto], object]
) -> tuple[Path, object]:
    """A copy of fp32 with a fault, and the node that was spoilt."""
    model = onnx.load(project.models["fp32"])
    node = plant(model)
    path = folder / "planted.onnx"
    record(path, sha256_of_bytes(onnxmodel.save(model, path)))
    return path, node


@pytest.mark.parametrize(
    "plant",
    [
        weight_of("Conv", 1, lambda weight: weight.clip(-0.02, 0.02)),
        replaced("Relu", 1, "Identity"),
    ],
    ids=["clamped", "relu"],
)
def test_a_planted_fault_is_named_at_its_layer(
    exported: Project, tmp_path: Path, plant: Plant
) -> None:
    path, node = planted(exported, tmp_path, plant)
    with pytest.raises(ParityError) as caught:
        run(exported, {"fp32": path, "fp16": exported.models["fp16"]}, tmp_path)
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


def test_a_model_of_other_weights_is_refused(exported: Project, tmp_path: Path) -> None:
    def relabel(model: onnx.ModelProto) -> None:
        for entry in model.metadata_props:
            if entry.key == "ferry.weights_sha256":
                entry.value = "0" * 64

    path, _ = planted(exported, tmp_path, relabel)
    with pytest.raises(IntegrityError, match="was not exported from the weights"):
        run(exported, {"fp32": path}, tmp_path)


def test_a_missing_variant_names_the_command(exported: Project, tmp_path: Path) -> None:
    models = {"int8": tmp_path / "model.int8.onnx"}
    with pytest.raises(MissingInputError, match="`ferry quantize digits-cnn` makes it"):
        run(exported, models, tmp_path)


def test_accuracy_that_is_lost_fails_its_gate(exported: Project, tmp_path: Path) -> None:
    always_three = weight_of("Gemm", 0, lambda bias: bias + 50 * np.eye(10)[3], place=2)
    path, _ = planted(exported, tmp_path, always_three)
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
    def poisoned(weight: np.ndarray) -> None:
        weight[0, 0, 0, 0] = np.nan

    path, _ = planted(exported, tmp_path, weight_of("Conv", 1, poisoned))
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

    path, _ = planted(exported, tmp_path, plant)
    with pytest.raises(ParityError, match=r"(in batches of|alone and) .*, limit 1\.0e-04"):
        run(exported, {"fp32": path}, tmp_path)


@pytest.mark.parametrize(
    ("name", "gate", "changes", "message"),
    [
        ("digits-mlp", "int8", {"flips": None}, "int8.flips must be a number, got None"),
        ("digits-mlp", "fp32", {"max_abs_diff": None}, "fp32.max_abs_diff must be a number, got"),
        ("digits-mlp", "", {"levels": ("none",)}, "levels must hold 'all', which ships, got ('no"),
        ("digits-mlp", "", {"exporters": ("torchscript",)}, "exporters must hold 'dynamo', which"),
    ],
)
def test_gates_that_do_not_fit_are_refused(
    params: Params, name: str, gate: str, changes: dict[str, Any], message: str
) -> None:
    experiment = params.experiment(name)
    config = experiment.parity
    if gate:
        changes = {gate: replace(getattr(config, gate), **changes)}
    nowhere, files = Path("nowhere"), files_in(Path("nowhere"), "parity")
    experiment = replace(experiment, parity=replace(config, **changes))
    with pytest.raises(ConfigError) as caught:
        parity(nowhere, {}, nowhere, files, experiment=experiment)
    assert f"experiments.{name}.parity.{message}" in str(caught.value)
