"""The benchmark stage: a row with proof for what ran, a reason for what did not."""

import csv
from pathlib import Path

import pytest
from project import Project

from pipeline.benchmark import benchmark
from pipeline.errors import MissingInputError
from pipeline.records import read
from pipeline.records.benchmark import BenchmarkReport, as_table
from serving.bench_report import BenchReport, SkippedProvider
from serving.files import sha256_of_file
from serving.probe import probe
from serving.session import usable_providers


@pytest.fixture(scope="module")
def timed(exported: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The metrics file and the folder of plots of one run over fp32 and int8."""
    folder = tmp_path_factory.mktemp("benchmark")
    models = {name: exported.models[name] for name in ("fp32", "int8")}
    benchmark(
        exported.weights,
        models,
        exported.data,
        folder / "benchmark.json",
        folder / "plots",
        experiment=exported.experiment,
        track=False,
    )
    return folder / "benchmark.json", folder / "plots"


@pytest.mark.slow
def test_every_variant_has_a_row_per_provider(timed: tuple[Path, Path], exported: Project) -> None:
    report = read(BenchmarkReport, timed[0], "ferry benchmark")
    usable = usable_providers(probe())
    for variant in ("fp32", "int8"):
        rows = report.variants[variant].providers
        assert [row.provider for row in rows] == list(usable)
        for row in rows:
            if usable[row.provider] is None:
                assert isinstance(row, BenchReport)
                assert row.share == 1
                assert sum(row.proof.nodes.values()) > 0
                assert row.sha256 == sha256_of_file(exported.models[variant])
                assert [timing.batch_size for timing in row.batches] == [1, 4]
                assert all(t.p50_ms <= t.p90_ms <= t.p99_ms for t in row.batches)
                assert row.peak_memory_bytes > 10_000_000
            else:
                assert isinstance(row, SkippedProvider)
                assert row.skipped


@pytest.mark.slow
def test_pytorch_is_measured_beside_it(timed: tuple[Path, Path]) -> None:
    report = read(BenchmarkReport, timed[0], "ferry benchmark")
    assert [row.batch_size for row in report.eager] == [1, 4]
    assert report.eager_ratio.num_pairs > 20
    assert report.eager_ratio.low <= report.eager_ratio.median <= report.eager_ratio.high
    assert report.environment.allowed_cores >= 1
    assert report.torch_version


@pytest.mark.slow
def test_the_plot_has_a_point_per_measurement(timed: tuple[Path, Path]) -> None:
    report = read(BenchmarkReport, timed[0], "ferry benchmark")
    rows = list(csv.DictReader((timed[1] / "benchmark.csv").open()))
    names = {row["name"] for row in rows}
    assert {"fp32 · cpu", "int8 · cpu", "PyTorch eager"} <= names
    (point,) = [r for r in rows if r["name"] == "PyTorch eager" and r["batch_size"] == "4"]
    assert float(point["p50_ms"]) == report.eager[1].p50_ms


@pytest.mark.slow
def test_the_table_tells_rows_reasons_and_the_ratio(timed: tuple[Path, Path]) -> None:
    report = read(BenchmarkReport, timed[0], "ferry benchmark")
    text = as_table(report)
    for variant in report.variants.values():
        for row in variant.providers:
            if isinstance(row, SkippedProvider):
                assert f"{row.provider}: skipped: {row.skipped}" in text
    assert f"{report.eager_ratio.median:.2f} times as fast as PyTorch eager" in text


def test_a_missing_variant_names_the_command(exported: Project, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="`dvc repro quantize@digits-cnn` makes it"):
        benchmark(
            exported.weights,
            {"fp32": tmp_path / "none.onnx"},
            exported.data,
            tmp_path / "benchmark.json",
            tmp_path / "plots",
            experiment=exported.experiment,
            track=False,
        )
    assert list(tmp_path.iterdir()) == []
