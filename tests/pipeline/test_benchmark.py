"""The benchmark stage: a row with proof for what ran, a reason for what did not."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from own_store import use_store
from project import Project, files_in

from pipeline.records import read
from pipeline.records.benchmark import EAGER, BenchmarkReport, as_table, over_eager, ratio_of_rows
from pipeline.stages.benchmark import NAMES, benchmark
from serving.errors import IntegrityError, MissingInputError
from serving.files import sha256_of_file
from serving.runtime.cores import allowed_cores
from serving.runtime.session import usable_providers

TOO_MANY = 4096
VARIANTS = ("fp32", "int8")


def run(project: Project, folder: Path, **changes: object) -> BenchmarkReport:
    """Measure fp32 and int8 as the project says but for `changes`; tell goes to a list."""
    log, track = changes.pop("log", lambda _: None), changes.pop("track", False)
    config = replace(project.experiment.benchmark, **changes)  # type: ignore[arg-type]
    return benchmark(
        project.weights,
        {name: project.models[name] for name in VARIANTS},
        project.data,
        files_in(folder, "benchmark"),
        folder / "plots",
        experiment=replace(project.experiment, benchmark=config),
        track=bool(track),
        log=log,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def folder(exported: Project, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The metrics file, the plots and the store of one run with all that is quick to start."""
    folder = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        use_store(folder, empty_store, patch)
        run(
            exported,
            folder,
            threads=(1, 1, TOO_MANY),
            baselines=("pyfunc", "channels_last", "eager"),
            growth_calls=20,
            cold_starts=1,
            track=True,
        )
    return folder


@pytest.fixture
def report(folder: Path) -> BenchmarkReport:
    return read(BenchmarkReport, folder / "benchmark.json", "ferry benchmark")


@pytest.mark.slow
def test_every_variant_has_a_row_per_provider(report: BenchmarkReport, exported: Project) -> None:
    usable = usable_providers()
    for variant in VARIANTS:
        for provider, reason in usable.items():
            rows = list(report.bench.of(variant, provider))
            if reason is None:
                (row,) = rows  # thread count 1 was asked for twice
                assert row.settings.threads == 1
                assert row.proof is not None
                assert row.proof.share == 1
                assert sum(row.proof.nodes.values()) > 0
                assert row.sha256 == sha256_of_file(exported.models[variant])
                assert [one.timing.batch_size for one in row.rows] == [1, 4]
                assert row.growth is not None
                assert row.growth.num_calls == 20
                assert row.peak_memory_bytes > 10_000_000
            else:
                assert rows == []
                (skipped,) = [
                    one
                    for one in report.bench.skipped
                    if (one.subject, one.provider, one.threads) == (variant, provider, None)
                ]
                assert skipped.skipped == reason


@pytest.mark.slow
def test_rivals_are_measured_beside_and_every_speedup_is_over_eager(
    report: BenchmarkReport, exported: Project
) -> None:
    assert report.bench.baseline == EAGER
    assert report.bench.measured[0].subject == EAGER
    baselines = [one for one in report.bench.measured if one.provider == "torch"]
    assert [one.subject for one in baselines] == [EAGER, NAMES["channels_last"], NAMES["pyfunc"]]
    assert baselines[0].sha256 == report.weights_sha256 == sha256_of_file(exported.weights)
    assert baselines[0].proof is None
    assert baselines[2].sha256 == sha256_of_file(exported.models["fp32"])
    assert baselines[2].proof is not None
    assert baselines[2].proof.share == 1
    for one in report.bench.measured:
        for row in one.rows:
            assert len(row.timing.turns_ms) == report.bench.num_rounds == 4
            if one.subject == EAGER:
                assert row.speedup is None
            else:
                (eager,) = report.bench.of(EAGER, "torch")
                theirs = eager.row(row.timing.batch_size)
                assert theirs is not None
                found = ratio_of_rows(row.timing, theirs.timing, seed=report.bench.seed)
                assert row.speedup == found


@pytest.mark.slow
def test_more_threads_than_cores_are_skipped_with_that_reason(report: BenchmarkReport) -> None:
    skipped = {one.subject for one in report.bench.skipped if one.threads == TOO_MANY}
    assert skipped == {one.subject for one in report.bench.measured}
    reasons = {one.skipped for one in report.bench.skipped if one.threads == TOO_MANY}
    assert reasons == {f"this process may use {allowed_cores()} cores"}


@pytest.mark.slow
def test_cold_starts_are_those_of_processes(report: BenchmarkReport) -> None:
    cold = {one.subject: one.p50_ms for one in report.bench.cold_starts}
    assert {EAGER, "MLflow pyfunc", "fp32 · cpu", "int8 · cpu"} <= set(cold)
    assert NAMES["channels_last"] not in cold
    assert min(cold.values()) > 0


@pytest.mark.slow
def test_the_plots_have_a_point_per_measurement(folder: Path, report: BenchmarkReport) -> None:
    rows = list(csv.DictReader((folder / "plots" / "benchmark.csv").open()))
    assert len(rows) == sum(len(one.rows) for one in report.bench.measured)
    (point,) = [row for row in rows if (row["subject"], row["batch_size"]) == (EAGER, "4")]
    row = report.bench.measured[0].row(4)
    assert row is not None
    assert float(point["p50_ms"]) == row.timing.p50_ms
    scaling = list(csv.DictReader((folder / "plots" / "scaling.csv").open()))
    assert {"what": f"{EAGER}, 1 thread", "batch_size": "4"}.items() <= scaling[1].items()
    assert float(scaling[1]["rows_per_second"]) == row.timing.rows_per_second
    starts = list(csv.DictReader((folder / "plots" / "cold_start.csv").open()))
    assert {start["subject"]: float(start["p50_ms"]) for start in starts} == {
        one.subject: one.p50_ms for one in report.bench.cold_starts
    }


@pytest.mark.slow
def test_the_table_tells_rows_reasons_and_the_speedups(report: BenchmarkReport) -> None:
    text = as_table(report)
    for skipped in report.bench.skipped:
        assert f"skipped: {skipped.skipped}" in text
    for size in (1, 4):
        ratio = dict(over_eager(report))[size]
        message = (
            f"ONNX Runtime fp32 is {ratio.median:.2f} times as fast as {EAGER} at batch {size},"
        )
        assert message in text


@pytest.mark.slow
def test_a_run_that_is_interrupted_keeps_what_it_measured(
    exported: Project, tmp_path: Path
) -> None:
    def stop(line: str) -> None:
        if "batch 4" in line:
            raise KeyboardInterrupt

    report = run(exported, tmp_path, log=stop)
    assert report.bench.partial
    assert {one.subject for one in report.bench.measured} >= {EAGER, "fp32", "int8"}
    for one in report.bench.measured:
        assert [row.timing.batch_size for row in one.rows] == [1]
    assert read(BenchmarkReport, tmp_path / "benchmark.json", "ferry benchmark") == report
    assert "interrupted" in as_table(report)


@pytest.mark.slow
def test_mlflow_holds_the_speeds_and_the_figures(folder: Path, report: BenchmarkReport) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "digits-cnn"]
    (found,) = client.search_runs([experiment.experiment_id])
    fp32 = next(report.bench.of("fp32")).row(1)
    assert fp32 is not None
    assert fp32.speedup is not None
    kept = found.data.metrics
    assert kept["variants/fp32/p50_ms"] == pytest.approx(fp32.timing.p50_ms, rel=1e-5)
    assert kept["variants/fp32/speedup"] == pytest.approx(fp32.speedup.median, rel=1e-5)
    assert kept["variants/pytorch/rows_per_second"] > 0
    assert "variants/pytorch/speedup" not in kept
    figures = [Path(one.path).name for one in client.list_artifacts(found.info.run_id, "figures")]
    assert figures == [
        *("cold_start.png", "latency_distribution.png", "latency_throughput.png", "scaling.png"),
    ]


def test_a_missing_variant_names_the_command(exported: Project, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="`ferry quantize digits-cnn` makes it"):
        benchmark(
            exported.weights,
            {"fp32": tmp_path / "none.onnx"},
            exported.data,
            files_in(tmp_path, "benchmark"),
            tmp_path / "plots",
            experiment=exported.experiment,
            track=False,
        )
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_model_are_refused_before_anything_is_measured(
    exported: Project, tmp_path: Path
) -> None:
    settings = {**exported.experiment.model.settings, "widths": [8, 16]}
    other = replace(exported.experiment.model, settings=settings)
    project = replace(exported, experiment=replace(exported.experiment, model=other))
    message: list[str] = []
    with pytest.raises(IntegrityError, match=r"was trained with model\.widths"):
        run(project, tmp_path, log=message.append)
    assert message == []
    assert list(tmp_path.iterdir()) == []
