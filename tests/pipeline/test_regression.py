"""A regression goes the whole way: two targets of very different units, raw in and out."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import sample_metrics
from onnx import numpy_helper
from project import Project, generous

from pipeline import datasets
from pipeline.config import layout
from pipeline.config.experiment import DatasetConfig, Experiment, Params
from pipeline.config.fitting import check
from pipeline.datasets import RawRows
from pipeline.errors import ConfigError, ParityError
from pipeline.models.parts.graph import load_graph
from pipeline.project.listing import listed
from pipeline.proof.rows import Rows, rows_of_split
from pipeline.proof.tables import parity_table
from pipeline.quantization.quality import compare_answers
from pipeline.records import read, record
from pipeline.records.benchmark import BenchmarkReport
from pipeline.records.evaluate import EvaluateReport
from pipeline.records.parity import ParityReport
from pipeline.records.published import Published, fill
from pipeline.records.quantize import QuantizeReport
from pipeline.records.ready import Split, open_manifest, open_split
from pipeline.records.train import TrainReport
from pipeline.stages.bundle import bundle
from pipeline.stages.evaluate import evaluate
from pipeline.stages.export import export
from pipeline.stages.page.results import as_table, read_results, rows_of, to_publish
from pipeline.stages.parity import parity
from pipeline.stages.preprocess import preprocess
from pipeline.stages.quantize import quantize
from pipeline.stages.report import report as write_page
from pipeline.stages.train import train
from serving import open_model
from serving.batch.answers import answer
from serving.bundles.bundle import read_manifest
from serving.bundles.verify import verify
from serving.files import sha256_of_file, write_json

TARGETS = ("near", "far")
"""The second is beyond what half precision holds."""


def houses(rows: int, seed: int) -> Split:
    """Three features, and two targets that follow them, with some noise."""
    random = np.random.default_rng(seed)
    inputs = random.normal((0, 50, -3), (1, 10, 0.1), (rows, 3)).astype(np.float32)
    whole = (inputs - [0, 50, -3]) / [1, 10, 0.1]
    near = whole @ [1, -0.5, 0.2] + 0.1 * random.normal(size=rows)
    far = 2e5 + 5e4 * (whole @ [0.3, 1, 0] + 0.1 * random.normal(size=rows))
    return Split(inputs, np.stack([near, far], axis=1).astype(np.float32))


def quick(params: Params) -> Experiment:
    experiment = params.experiment("diabetes-mlp")
    settings = {**experiment.model.settings, "hidden": [64, 64], "dropout": 0}
    return replace(
        experiment,
        epochs=25,
        model=replace(experiment.model, settings=settings),
        train=replace(experiment.train, lr=2e-2, batch_size=500, weight_decay=0.0),
        quantize=replace(generous(experiment.quantize, "half", "static-u8u8"), error_increase=50),
    )


@pytest.fixture(scope="module")
def project(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Through all stages but the benchmark, whose timings are made up."""
    made = Project(tmp_path_factory.mktemp("regression"), quick(params))
    dataset = replace(
        datasets.get("diabetes"),
        files=(),
        targets=TARGETS,
        read=lambda _: RawRows(train=houses(200, 1), test=houses(60, 2)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "get", lambda _: dataset)
        config = DatasetConfig(validation_rows=40, seed=1)
        preprocess(made.root, made.data, name="diabetes", config=config)
        files, plots = made.files("train"), made.plots("train")
        settings = {"experiment": made.experiment, "track": False}
        train(made.data, made.weights, files, plots, device="cpu", **settings)
    model = made.models["fp32"]
    details = made.details("train")
    export(made.weights, details, made.data, model, made.files("export"), **settings)
    files, plots = made.files("quantize"), made.plots("quantize")
    quantize(model, made.data, made.quantized, files, plots, **settings)
    parity(made.weights, made.models, made.data, made.files("parity"), **settings)
    pictures = made.root / layout.pictures(made.experiment.name)
    evaluate(made.weights, made.data, made.data, made.files("evaluate"), pictures, **settings)
    return made


def trained(project: Project) -> TrainReport:
    return read(TrainReport, project.details("train"), "ferry train")


def test_training_learns_both_targets_and_reports_them_in_their_units(project: Project) -> None:
    report = trained(project)
    test = open_split(project.data, "test")
    graph = load_graph(project.weights, project.experiment, open_manifest(project.data))
    answered = graph.answer(test.inputs, 7)[0].numpy()
    for index, one in enumerate(report.targets):
        assert one.target == TARGETS[index]
        off = answered[:, index].astype(np.float64) - test.labels[:, index]
        assert one.mean_absolute_error == pytest.approx(np.abs(off).mean(), rel=1e-5)
        assert one.r2 == pytest.approx(1 - (off**2).mean() / test.labels[:, index].var(), rel=1e-4)
        assert one.r2 > 0.8
    assert report.accuracy is None
    assert report.labels == report.confusion == ()
    assert report.best_epoch == min(report.history, key=lambda one: one.validation_loss).epoch
    metrics = json.loads(project.files("train").metrics.read_text())
    assert set(metrics) == {"loss", "r2"}, "errors of two units are no one number"


def test_the_graph_answers_raw_units_and_says_what_they_are(project: Project) -> None:
    model = open_model(project.models["fp32"])
    rows = np.array(open_split(project.data, "test").inputs[:5])
    columns = answer(model, list("abcde"), rows).columns
    assert list(columns) == ["id", *TARGETS]
    assert columns["far"].dtype == np.float32
    assert columns["far"].min() > 5e4
    assert model.session.metadata["ferry.task"] == "regression"


def test_half_precision_and_int8_leave_the_units_in_float(project: Project) -> None:
    report = read(ParityReport, project.details("parity"), "ferry parity")
    assert set(report.variants) == {"fp32", "fp16", "int8"}
    assert report.passed
    assert all(one.nonfinite == 0 for one in report.variants.values())
    onnx.checker.check_model(onnx.load(project.models["fp16"]))
    assert report.variants["fp16"].onnx_reference.skipped is None
    int8 = onnx.load(project.models["int8"])
    assert int8.graph.node[-1].op_type == "Add", "the answer itself is not put into 256 steps"


def test_parity_holds_the_errors_of_all_variants_to_the_weights(project: Project) -> None:
    report = read(ParityReport, project.details("parity"), "ferry parity")
    r2 = [one.r2 for one in trained(project).targets]
    assert report.torch_r2 == pytest.approx(np.mean(r2), rel=1e-4)
    fp32, int8 = report.variants["fp32"], report.variants["int8"]
    assert fp32.r2 == pytest.approx(report.torch_r2, abs=1e-6)
    assert fp32.error_increase == pytest.approx(0, abs=1e-2)
    assert int8.error_increase not in (None, fp32.error_increase)
    assert fp32.flips is None
    assert fp32.limits.max_abs_diff is None
    assert fp32.batch_sizes == (1, 7, 60), "no batch is larger than the test set"
    table = parity_table(report)
    assert "R²" in table
    assert "flips" not in table


def test_a_bias_in_the_answer_fails_the_gate(project: Project, tmp_path: Path) -> None:
    """Added to one target alone: seen in its own scale, and in the error."""
    model = onnx.load(project.models["fp32"])
    (mean,) = [one for one in model.graph.initializer if one.name == "head.mean"]
    off = numpy_helper.to_array(mean) + np.array([0.5, 0], np.float32)
    mean.CopyFrom(numpy_helper.from_array(off, mean.name))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    record(path, sha256_of_file(path))
    with pytest.raises(ParityError, match=r"of its scale at prediction\[\d+, 0\]") as caught:
        parity(
            project.weights,
            {"fp32": path},
            project.data,
            project.files("other"),
            experiment=project.experiment,
            track=False,
        )
    assert "% more mean squared error, limit 0.10 %" in str(caught.value)


def test_a_variant_is_judged_by_its_mean_error() -> None:
    truth = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
    wanted = {"prediction": truth + np.float32(0.1)}
    found = {"prediction": truth + np.float32(0.2)}
    quality = compare_answers(wanted, found, truth)
    assert quality.measure == "mean error"
    assert quality.loss == pytest.approx(300, rel=1e-3)
    assert quality.reference == pytest.approx(0.01 / 1.25, rel=1e-3)


def test_calibration_takes_the_rows_that_are_there_and_says_it(project: Project) -> None:
    report = read(QuantizeReport, project.details("quantize"), "ferry quantize")
    assert (report.calibration_rows, report.calibration_rows_asked) == (160, 1024)


def test_the_look_inside_draws_what_was_predicted(project: Project) -> None:
    found = read(EvaluateReport, project.details("evaluate"), "ferry evaluate")
    assert set(found.pictures) == {"predicted", "residuals"}
    assert list(found.targets) == list(TARGETS)
    far = found.targets["far"]
    assert abs(far.worst) >= far.quantiles["0.99"] >= far.quantiles["0.5"] > 0


def test_it_is_bundled_verified_and_shown(project: Project, params: Params) -> None:
    timed = replace(
        sample_metrics.measured("fp32", 1.0), sha256=sha256_of_file(project.models["fp32"])
    )
    bench = BenchmarkReport(
        experiment=project.experiment.name,
        torch_version="2",
        weights_sha256=sha256_of_file(project.weights),
        bench=replace(sample_metrics.bench_report("diabetes-mlp"), measured=(timed,)),
    )
    write_json(project.details("benchmark"), bench)
    report = read(ParityReport, project.details("parity"), "ferry parity")
    alone = replace(report, variants={"fp32": report.variants["fp32"]})
    write_json(project.details("parity"), alone)
    folder = project.root / layout.bundle(project.experiment.name)
    details = project.details("bundle").parent
    bundle(
        project.models,
        project.data,
        details,
        folder,
        project.files("bundle"),
        experiment=project.experiment,
        track=False,
    )
    write_json(project.details("parity"), report)
    assert verify(folder).passed
    manifest = read_manifest(folder)
    assert set(manifest.metrics) == {"r2"}
    std = open_manifest(project.data).target_std
    assert manifest.golden.max_abs_diff == pytest.approx(1e-4 * max(std))
    measured, _ = read_results("diabetes-mlp", project.root)
    assert measured is not None
    assert f"R² {report.torch_r2:.3f}" in as_table(rows_of(measured))
    published = fill(
        "".join(f"<!-- results: {kind} -->\n<!-- /results -->\n" for kind in ("training", "int8")),
        Published(results=(to_publish(measured),)),
    )
    assert f"| R² {measured.training.r2:.3f} |" in published
    assert "% larger |" in published  # of the test rows, and not of those for validation
    page = project.root / "index.html"
    only = replace(params, experiments={"diabetes-mlp": project.experiment})
    write_page(project.root, page, params=only)
    assert "mean absolute error of near" in page.read_text()


def test_it_is_listed_with_its_rows(
    project: Project, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.root)
    found = {one["dataset"]: one for one in map(asdict, listed("datasets", params))}
    rows = sum(open_manifest(project.data).rows.values())
    assert (found["diabetes"]["rows"], found["diabetes"]["classes"]) == (rows, None)


def test_what_does_not_fit_a_regression_is_told_first(params: Params) -> None:
    one = params.experiment("diabetes-mlp")
    wrong = replace(one, train=replace(one.train, loss="cross_entropy"))
    with pytest.raises(
        ConfigError,
        match=r"train\.loss: cross_entropy does not fit diabetes, which has targets; choose mean_",
    ):
        check(wrong)
    drawing = replace(params.experiment("mnist-autoencoder").model)
    with pytest.raises(ConfigError, match=r"takes image rows|gives pictures, diabetes has targets"):
        check(replace(one, model=drawing))


def test_targets_are_no_classes_to_a_model_that_tells_some(project: Project) -> None:
    info = open_model(project.models["fp32"]).input
    rows: Rows = rows_of_split(project.data, "test", info)
    assert rows.task == "regression"
    scores = {"probabilities": np.full((60, 2), 0.5, np.float32)}
    assert compare_answers(scores, scores, rows.labels, "classification").measure == "agreement"
