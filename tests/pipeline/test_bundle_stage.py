"""The bundle stage: which variant is shipped, and that nothing unproven is."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from project import Project

from pipeline.bundle import bundle, choose
from pipeline.config import BundleConfig
from pipeline.errors import GateError, IntegrityError, MissingInputError
from pipeline.parity import parity
from pipeline.proof.opening import open_side
from pipeline.proof.rows import rows_of_split
from pipeline.ready import open_split
from pipeline.records import read
from pipeline.records.benchmark import BenchmarkReport, EagerTiming, VariantBenchmark
from pipeline.records.parity import ParityReport
from serving import open_model
from serving.bench_report import BenchReport
from serving.environment import describe
from serving.files import sha256_of_file, write_json
from serving.manifest import read_manifest
from serving.session import ProviderProof
from serving.timing import PairedRatio, Timing
from serving.verify import verify

LATENCY = BundleConfig(goal="latency", min_gain=1.1, golden_rows=4)


@pytest.mark.parametrize(
    ("gains", "variant"),
    [
        ({"fp32": 1.0, "fp16": 0.9, "int8": 2.0}, "int8"),
        ({"fp32": 1.0, "fp16": 1.3, "int8": 1.2}, "fp16"),
        ({"fp32": 1.0, "int8": 1.09}, "fp32"),
        ({"fp32": 1.0, "int8": 1.1}, "int8"),
        ({"fp32": 1.0}, "fp32"),
        ({"fp32": 1.0, "int8": 0.5}, "fp32"),
    ],
)
def test_the_best_is_shipped_if_it_is_enough_better(gains: dict[str, float], variant: str) -> None:
    chosen, reason = choose(gains, LATENCY)
    assert chosen == variant
    assert "latency" in reason


def timing(batch_size: int, p50_ms: float) -> Timing:
    return Timing(
        batch_size=batch_size,
        p50_ms=p50_ms,
        p90_ms=p50_ms,
        p99_ms=p50_ms,
        rows_per_second=1000 * batch_size / p50_ms,
        num_calls=20,
        warmup_ms=1.0,
        steady=True,
    )


def timed(path: Path, p50_ms: float, bulk_ms: float) -> VariantBenchmark:
    """A CPU row for a model file with chosen latencies at batch 1 and 32."""
    cpu = "CPUExecutionProvider"
    row = BenchReport(
        model=str(path),
        sha256=sha256_of_file(path),
        file_bytes=path.stat().st_size,
        provider="cpu",
        proof=ProviderProof(asked=cpu, nodes={cpu: 9}),
        share=1.0,
        threads=2,
        session_ms=1.0,
        first_call_ms=1.0,
        peak_memory_bytes=1,
        batches=(timing(1, p50_ms), timing(32, bulk_ms)),
        skipped=(),
        environment=describe(),
    )
    return VariantBenchmark(providers=(row,))


@pytest.fixture
def measured(exported: Project, tmp_path: Path) -> Project:
    """A project with a real parity report and chosen timings: int8 for one row, fp16 in bulk."""
    root = tmp_path / "project"
    shutil.copytree(exported.root, root)
    project = replace(exported, root=root)
    parity(
        project.weights,
        project.models,
        project.data,
        project.metrics("parity"),
        experiment=project.experiment,
        track=False,
    )
    models = project.models
    eager = EagerTiming(
        batch_size=1, threads=2, p50_ms=1, p90_ms=1, p99_ms=1, rows_per_second=1, num_calls=1
    )
    report = BenchmarkReport(
        experiment="digits-cnn",
        environment=describe(),
        torch_version="2",
        weights_sha256=sha256_of_file(project.weights),
        variants={
            "fp32": timed(models["fp32"], 0.4, 4.0),
            "fp16": timed(models["fp16"], 0.5, 1.0),
            "int8": timed(models["int8"], 0.2, 3.0),
        },
        eager=(eager,),
        eager_ratio=PairedRatio(median=4, low=4, high=4, num_pairs=50),
        skipped={},
    )
    write_json(project.metrics("benchmark"), report)
    return project


def run(project: Project, goal: str = "latency") -> Path:
    config = replace(project.experiment.bundle, goal=goal)  # type: ignore[arg-type]
    folder = project.root / "bundles" / "digits-cnn"
    bundle(
        project.models,
        project.data,
        project.metrics("bundle").parent,
        folder,
        project.metrics("bundle"),
        experiment=replace(project.experiment, bundle=config),
        track=False,
    )
    return folder


@pytest.mark.parametrize(
    ("goal", "variant"), [("latency", "int8"), ("throughput", "fp16"), ("size", "fp16")]
)
def test_the_goal_decides(measured: Project, goal: str, variant: str) -> None:
    folder = run(measured, goal)
    manifest = read_manifest(folder)
    assert manifest.variant == variant
    assert sha256_of_file(folder / "model.onnx") == sha256_of_file(measured.models[variant])


def test_a_bundle_is_a_side_of_its_own(measured: Project) -> None:
    folder = run(measured)
    side = open_side(f"{folder}@cpu")
    assert side.sha256 == sha256_of_file(measured.models["int8"])
    rows = rows_of_split(measured.data, "test", side.inputs[0])
    found = side.answer(rows.slice(0, 20), 20)["probabilities"].argmax(1)
    assert (
        found == open_model(folder).predict(np.array(rows.inputs["images"][:20])).label_index
    ).all()


def test_how_far_a_device_may_be_off_is_measured_where_the_gate_has_no_limit(
    measured: Project,
) -> None:
    proven = read(ParityReport, measured.metrics("parity"), "ferry parity").variants["int8"]
    assert proven.limits.max_abs_diff is None
    manifest = read_manifest(run(measured))
    assert manifest.golden.max_abs_diff == proven.max_abs_diff > 0.01
    assert "max_abs_diff" not in manifest.parity
    assert {"flips", "accuracy_loss", "batch_diff"} <= set(manifest.parity)


def test_the_bundle_is_verified_and_answers_as_the_weights_do(measured: Project) -> None:
    folder = run(measured)
    assert verify(folder).passed
    test = open_split(measured.data, "test")
    found = open_model(folder).predict(np.array(test.inputs))
    facts = json.loads(measured.metrics("parity").read_text())["variants"]["int8"]
    assert (found.label_index == test.labels).mean() == pytest.approx(facts["accuracy"])
    manifest = read_manifest(folder)
    trained = json.loads(measured.metrics("train").read_text())
    assert manifest.source.weights_sha256 == trained["weights_sha256"]
    assert manifest.parity["flips"].limit == measured.experiment.parity.int8.flips
    assert manifest.golden.rows == measured.experiment.bundle.golden_rows


@pytest.mark.slow
def test_copying_the_folder_is_a_deployment(measured: Project, tmp_path: Path) -> None:
    device = tmp_path / "device"
    shutil.copytree(run(measured), device)
    done = subprocess.run(
        [sys.executable, "runner.py", "selftest"],
        cwd=device,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_variant_that_failed_is_never_chosen(measured: Project) -> None:
    path = measured.metrics("parity")
    report = json.loads(path.read_text())
    report["variants"]["int8"] |= {"passed": False, "failures": ["9 flips, limit 4"]}
    path.write_text(json.dumps(report))
    assert read_manifest(run(measured)).variant == "fp32"


def test_without_a_passed_fp32_there_is_no_bundle(measured: Project) -> None:
    path = measured.metrics("parity")
    report = json.loads(path.read_text())
    report["variants"]["fp32"] |= {"passed": False, "failures": ["9 flips, limit 0"]}
    path.write_text(json.dumps(report))
    with pytest.raises(GateError, match="digits-cnn fp32 did not pass its gate: 9 flips, limit 0"):
        run(measured)
    assert not (measured.root / "bundles").exists()


@pytest.mark.parametrize("stage", ["parity", "benchmark"])
def test_a_file_that_was_not_the_one_measured_is_refused(measured: Project, stage: str) -> None:
    path = measured.metrics(stage)
    digest = sha256_of_file(measured.models["int8"])
    path.write_text(path.read_text().replace(digest, "0" * 64))
    with pytest.raises(IntegrityError, match=rf"but {stage}\.json is about 000000000000"):
        run(measured)


@pytest.mark.parametrize("stage", ["train", "parity", "benchmark"])
def test_a_missing_measurement_names_the_command(measured: Project, stage: str) -> None:
    measured.metrics(stage).unlink()
    with pytest.raises(MissingInputError, match=f"`ferry {stage} digits-cnn` makes it"):
        run(measured)


def test_a_spoilt_measurement_is_one_line(measured: Project) -> None:
    measured.metrics("parity").write_text('{"experiment": 3}')
    with pytest.raises(IntegrityError) as caught:
        run(measured)
    assert "\n" not in str(caught.value)
