"""The bundle stage: which variant is shipped, and that nothing unproven is."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sample_metrics
from click.testing import CliRunner, Result
from project import REPOSITORY, Project

from pipeline.cli import ferry
from pipeline.config.experiment import Params, TargetBudget
from pipeline.errors import GateError, TargetError
from pipeline.proof.rows import rows_of_split
from pipeline.proof.sides import open_side
from pipeline.records import read
from pipeline.records.benchmark import BenchmarkReport, BundleReport, Gain
from pipeline.records.parity import ParityReport
from pipeline.records.ready import open_split
from pipeline.stages.bundle import bundle
from pipeline.stages.parity import parity
from pipeline.targets.card import RUNS
from pipeline.targets.choice import choose
from serving import open_model
from serving.batch.answers import answer
from serving.bundles import Target
from serving.bundles.bundle import open_bundle, read_manifest
from serving.bundles.verify import verify
from serving.drift.check import DriftReport, open_check
from serving.errors import IntegrityError, MissingInputError
from serving.files import sha256_of_file, write_json
from serving.measuring.report import Measurement


def gain(times: float, low: float | None = None) -> Gain:
    return Gain(times=times, low=times if low is None else low, high=times)


FP32 = gain(1.0)


@pytest.mark.parametrize(
    ("gains", "variant"),
    [
        ({"fp32": FP32, "fp16": gain(0.9), "int8": gain(2.0)}, "int8"),
        ({"fp32": FP32, "fp16": gain(1.3), "int8": gain(1.2)}, "fp16"),
        ({"fp32": FP32, "int8": gain(1.09)}, "fp32"),
        ({"fp32": FP32, "int8": gain(1.1)}, "int8"),
        ({"fp32": FP32}, "fp32"),
        ({"fp32": FP32, "int8": gain(0.5)}, "fp32"),
        # A median alone shows nothing: the whole interval must be above 1.
        ({"fp32": FP32, "int8": gain(1.5, low=0.98)}, "fp32"),
        ({"fp32": FP32, "int8": gain(1.5, low=1.0)}, "fp32"),
        ({"fp32": FP32, "int8": gain(1.5, low=1.01)}, "int8"),
        ({"fp32": FP32, "fp16": gain(1.2, low=1.1), "int8": gain(1.5, low=0.98)}, "fp16"),
    ],
)
def test_the_best_is_shipped_if_it_is_enough_better(gains: dict[str, Gain], variant: str) -> None:
    chosen, reason = choose(gains, "latency", 1.1)
    assert chosen == variant
    assert "latency" in reason


def test_the_reason_tells_gains_with_their_intervals() -> None:
    int8 = Gain(times=1.5, low=1.25, high=1.75)
    _, reason = choose({"fp32": FP32, "int8": int8}, "latency", 1.1)
    assert reason == "1.50 [1.25 to 1.75] times as good as fp32 in latency"
    _, reason = choose(
        {"fp32": FP32, "fp16": gain(0.9), "int8": replace(int8, low=0.9)}, "latency", 1.1
    )
    assert reason == (
        "no other variant is 1.1 times better in latency "
        "(fp16 0.90, int8 1.50 [0.90 to 1.75] times as good)"
    )


def timed(variant: str, path: Path, p50_ms: float, bulk_ms: float) -> Measurement:
    """A CPU row for a model file with chosen latencies at batch 1 and 32."""
    one = sample_metrics.measured(variant, 1.0, size=path.stat().st_size)
    rows = tuple(
        replace(row, timing=sample_metrics.timing(ms, size))
        for row, size, ms in zip(one.rows, (1, 32), (p50_ms, bulk_ms), strict=False)
    )
    return replace(one, sha256=sha256_of_file(path), rows=rows)


@pytest.fixture(scope="module")
def timed_once(exported: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a real parity report and chosen timings: int8 for one row, fp16 in bulk."""
    root = tmp_path_factory.mktemp("timed") / "project"
    shutil.copytree(exported.root, root)
    # How far two epochs of int8 are off depends on the processor, and is not what is tested here.
    gates = exported.experiment.parity
    wide = replace(gates.int8, flips=360, min_snr_db=0, accuracy_loss=100, batch_diff=10)
    experiment = replace(exported.experiment, parity=replace(gates, int8=wide))
    project = replace(exported, root=root, experiment=experiment)
    parity(
        project.weights,
        project.models,
        project.data,
        project.files("parity"),
        experiment=project.experiment,
        track=False,
    )
    models = project.models
    found = (
        timed("fp32", models["fp32"], 0.4, 4.0),
        timed("fp16", models["fp16"], 0.5, 1.0),
        timed("int8", models["int8"], 0.2, 3.0),
    )
    report = BenchmarkReport(
        experiment="digits-cnn",
        torch_version="2",
        weights_sha256=sha256_of_file(project.weights),
        bench=replace(sample_metrics.bench_report("digits-cnn"), measured=found),
    )
    write_json(project.details("benchmark"), report)
    return project


@pytest.fixture
def measured(timed_once: Project, tmp_path: Path) -> Project:
    """A copy of that project, which a test may spoil."""
    root = tmp_path / "project"
    shutil.copytree(timed_once.root, root)
    return replace(timed_once, root=root)


def run(project: Project, goal: str = "latency") -> Path:
    config = replace(project.experiment.bundle, goal=goal)  # type: ignore[arg-type]
    folder = project.root / "bundles" / "digits-cnn"
    bundle(
        project.models,
        project.data,
        project.details("bundle").parent,
        folder,
        project.files("bundle"),
        experiment=replace(project.experiment, bundle=config),
        track=False,
    )
    return folder


def bundle_for(project: Project, target: Target, **budget: float | None) -> BundleReport:
    budgets = {target: TargetBudget(**({"size_kib": None, "ram_kib": None} | budget))}
    config = replace(project.experiment.bundle, budgets=budgets)
    return bundle(
        project.models,
        project.data,
        project.details("bundle").parent,
        project.root / "bundles" / f"digits-cnn.{target}",
        None,
        experiment=replace(project.experiment, bundle=config),
        target=target,
        track=False,
    )


def test_another_kind_of_machine_takes_the_smallest(measured: Project) -> None:
    report = bundle_for(measured, "arm64")
    sizes = {name: path.stat().st_size for name, path in measured.models.items()}
    assert report.variant == min(sizes, key=lambda name: sizes[name]) != "fp32"
    assert report.gains[report.variant].times == sizes["fp32"] / sizes[report.variant]
    assert (report.target, report.goal) == ("arm64", "size")
    assert not measured.details("bundle").exists()


def test_what_has_no_room_is_not_shipped(measured: Project) -> None:
    sizes = {name: path.stat().st_size / 1024 for name, path in measured.models.items()}
    ordered = sorted(sizes, key=lambda name: sizes[name])
    assert bundle_for(measured, "arm64", size_kib=sizes[ordered[0]]).variant == ordered[0]
    with pytest.raises(
        TargetError, match=r"does not fit arm64: fp32 takes .* KiB, the budget is 1"
    ):
        bundle_for(measured, "arm64", size_kib=1)


def test_every_bundle_has_a_card_and_a_bill_of_all_its_files(measured: Project) -> None:
    report = bundle_for(measured, "triton")
    built = open_bundle(measured.root / "bundles" / "digits-cnn.triton")
    bill = json.loads(built.contents["bom.json"])
    files = {one["name"] for one in bill["components"] if one["type"] == "file"}
    assert files == built.contents.keys() - {"bom.json"}
    assert {"digits-cnn/config.pbtxt", "digits-cnn/1/model.onnx", "README.md"} < files
    (data,) = [one for one in bill["components"] if one["type"] == "data"]
    assert (data["name"], data["licenses"]) == ("digits", [{"license": {"id": "CC-BY-4.0"}}])
    card = bill["metadata"]["component"]["modelCard"]
    assert card["modelParameters"]["architectureFamily"] == "cnn"
    proven = read(ParityReport, measured.details("parity"), "").variants[report.variant]
    metric = card["quantitativeAnalysis"]["performanceMetrics"][0]
    assert (metric["type"], metric["value"]) == ("accuracy", repr(proven.accuracy))
    assert "E. Alpaydin" in built.contents["README.md"].decode()


def test_microcontrollers_get_a_program_and_are_told_its_room(measured: Project) -> None:
    report = bundle_for(measured, "c", size_kib=64, ram_kib=8)
    # Of half precision C knows nothing, and it is no reason to ship none.
    assert report.variant == "int8"
    assert report.flash_bytes is not None
    assert report.ram_bytes is not None
    assert report.flash_bytes < 8 * 1024
    assert report.ram_bytes < 2 * 1024
    assert str(report.boards).startswith("Arduino Mega 2560, STM32F103 'Blue Pill', Arduino Zero")
    folder = measured.root / "bundles" / "digits-cnn.c"
    manifest = open_bundle(folder).manifest
    assert {"model.h", "model.c", "selftest.c"} <= manifest.files.keys()
    assert manifest.files["model.onnx"].sha256 in (folder / "model.h").read_text()
    if shutil.which("cc") is None:
        pytest.skip("no C compiler is installed")
    assert RUNS["c"] in (folder / "README.md").read_text()
    subprocess.run(RUNS["c"], shell=True, check=True, cwd=folder)
    # A program that was left in the bundle would make its runner refuse it.
    open_bundle(folder)


@pytest.fixture
def command_there(measured: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`ferry bundle digits-cnn` with more arguments, in a sub-folder of that project."""
    shutil.copy(REPOSITORY / "params.yaml", measured.root)
    (measured.root / "below").mkdir()
    monkeypatch.chdir(measured.root / "below")
    given = ("bundle", "digits-cnn", "--no-track")
    return lambda *more: CliRunner().invoke(ferry, [*given, *more])


def test_the_output_lies_where_one_is(
    measured: Project, command_there: Callable[..., Result]
) -> None:
    done = command_there("--target", "arm64", "--output", "made", "--json")
    assert done.exit_code == 0, done.stderr
    made = open_bundle(measured.root / "below" / "made").manifest
    assert json.loads(done.stdout)["digest"] == made.digest
    assert done.stderr.endswith("made below/made\n")


@pytest.mark.parametrize(
    ("folder", "target"),
    [("digits-cnn", "arm64"), ("./../bundles/digits-cnn", "web"), ("mnist-cnn", "cpu")],
)
def test_what_the_pipeline_keeps_is_not_replaced_by_another(
    measured: Project, command_there: Callable[..., Result], folder: str, target: str
) -> None:
    done = command_there("--target", target, "--output", f"../bundles/{folder}")
    assert done.exit_code == 2
    assert "is where the pipeline keeps the bundle of" in done.stderr
    assert not (measured.root / "bundles").exists()


def test_a_microcontroller_that_is_too_small_is_told_what_would_do(measured: Project) -> None:
    with pytest.raises(
        TargetError, match=r"int8 takes 0\.\d KiB of RAM, the budget is 0\.1 KiB; .*Zero"
    ):
        bundle_for(measured, "c", ram_kib=0.1)


def test_the_golden_rows_are_those_that_are_decided_most_narrowly(measured: Project) -> None:
    folder = run(measured)
    made = open_bundle(folder)
    rows = np.array(open_split(measured.data, "test").inputs)
    found = np.sort(open_model(folder).predict(rows).probabilities, axis=1)
    margins = np.sort(found[:, -1] - found[:, -2])
    margins = margins[margins > made.manifest.golden.tie]
    with np.load(folder / "golden.npz") as golden:
        scores = np.sort(golden["probabilities"], axis=1)
    kept = np.sort(scores[:, -1] - scores[:, -2])
    assert kept == pytest.approx(margins[: len(kept)], abs=1e-6)
    assert 0 < made.manifest.golden.tie < 0.5


@pytest.mark.parametrize(
    ("goal", "variant"), [("latency", "int8"), ("throughput", "fp16"), ("size", "fp16")]
)
def test_the_goal_decides(measured: Project, goal: str, variant: str) -> None:
    folder = run(measured, goal)
    manifest = read_manifest(folder)
    assert manifest.variant == variant
    assert sha256_of_file(folder / "model.onnx") == sha256_of_file(measured.models[variant])


def test_the_gains_are_recorded_with_their_intervals(measured: Project) -> None:
    run(measured)
    report = read(BundleReport, measured.details("bundle"), "ferry bundle")
    assert set(report.gains) == {"fp32", "fp16", "int8"}
    assert report.gains["int8"].times == pytest.approx(2)
    assert report.gains["fp16"].high == pytest.approx(0.8)


def test_an_interrupted_benchmark_chooses_nothing(measured: Project) -> None:
    path = measured.details("benchmark")
    path.write_text(path.read_text().replace('"partial": false', '"partial": true'))
    with pytest.raises(IntegrityError, match="`ferry benchmark digits-cnn` measures it anew"):
        run(measured)
    assert not (measured.root / "bundles").exists()


def test_a_bundle_is_a_side_of_its_own(measured: Project, params: Params) -> None:
    folder = run(measured)
    side = open_side(f"{folder}@cpu", params.experiment)
    assert side.sha256 == sha256_of_file(measured.models["int8"])
    rows = rows_of_split(measured.data, "test", side.inputs[0])
    found = side.answer(rows.slice(0, 20), 20)["probabilities"].argmax(1)
    assert (
        found == open_model(folder).predict(np.array(rows.inputs["images"][:20])).label_index
    ).all()


def test_how_far_a_device_may_be_off_is_measured_where_the_gate_has_no_limit(
    measured: Project,
) -> None:
    proven = read(ParityReport, measured.details("parity"), "ferry parity").variants["int8"]
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
    facts = json.loads(measured.details("parity").read_text())["variants"]["int8"]
    assert (found.label_index == test.labels).mean() == pytest.approx(facts["accuracy"])
    manifest = read_manifest(folder)
    trained = json.loads(measured.details("train").read_text())
    assert manifest.source.weights_sha256 == trained["weights_sha256"]
    assert manifest.parity["flips"].limit == measured.experiment.parity.int8.flips
    assert manifest.golden.rows == measured.experiment.bundle.golden_rows


def test_the_reference_is_of_the_training_rows_and_of_answers_to_others(measured: Project) -> None:
    folder = run(measured)
    reference = open_bundle(folder).reference()
    assert reference is not None
    rows = {
        split: len(open_split(measured.data, split).labels) for split in ("train", "validation")
    }
    assert reference.data == "digits"
    assert reference.rows == rows["train"]
    assert sum(reference.classes) == reference.quantities["confidence"].rows == rows["validation"]
    content = (folder / "reference.json").read_bytes()
    assert (run(measured) / "reference.json").read_bytes() == content


def test_the_test_rows_have_not_moved_and_their_negatives_have(measured: Project) -> None:
    folder = run(measured)
    rows = np.array(open_split(measured.data, "test").inputs)
    assert drift(folder, rows).moved == ()
    moved = {one.name: one.verdict for one in drift(folder, rows.max() - rows).moved}
    assert moved["mean brightness"] == "strongly moved"


def drift(folder: Path, rows: np.ndarray) -> DriftReport:
    check = open_check(folder)
    check.add(rows, answer(open_model(folder), [""] * len(rows), rows).columns)
    return check.report()


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


def fail(project: Project, variant: str) -> None:
    """Write that a variant did not pass its gate."""
    path = project.details("parity")
    report = json.loads(path.read_text())
    report["variants"][variant] |= {"passed": False, "failures": ["9 flips, limit 0"]}
    path.write_text(json.dumps(report))


def test_what_failed_is_never_chosen_and_without_fp32_nothing_is(measured: Project) -> None:
    fail(measured, "int8")
    folder = run(measured)
    assert read_manifest(folder).variant == "fp32"
    shutil.rmtree(folder.parent)
    fail(measured, "fp32")
    with pytest.raises(GateError, match="digits-cnn fp32 did not pass its gate: 9 flips, limit 0"):
        run(measured)
    assert not (measured.root / "bundles").exists()


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_a_model_that_has_rotted_is_told_whether_it_would_ship_or_not(
    measured: Project, name: str
) -> None:
    path = measured.models[name]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    maker = "export" if name == "fp32" else "quantize"
    with pytest.raises(IntegrityError, match=rf"{maker}@digits-cnn recorded .* it has rotted or"):
        run(measured)
    assert not (measured.root / "bundles").exists()


@pytest.mark.parametrize("stage", ["parity", "benchmark"])
def test_a_file_that_was_not_the_one_measured_is_refused(measured: Project, stage: str) -> None:
    path = measured.details(stage)
    digest = sha256_of_file(measured.models["int8"])
    path.write_text(path.read_text().replace(digest, "0" * 64))
    with pytest.raises(IntegrityError, match=rf"but {stage}\.json is about 000000000000"):
        run(measured)


@pytest.mark.parametrize("stage", ["train", "parity", "benchmark"])
def test_a_missing_measurement_names_the_command(measured: Project, stage: str) -> None:
    measured.details(stage).unlink()
    with pytest.raises(MissingInputError, match=f"`ferry {stage} digits-cnn` makes it"):
        run(measured)


def test_a_spoilt_measurement_is_one_line(measured: Project) -> None:
    measured.details("parity").write_text('{"experiment": 3}')
    with pytest.raises(IntegrityError) as caught:
        run(measured)
    assert "\n" not in str(caught.value)
