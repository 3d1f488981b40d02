"""Bundling an ONNX file that ferry did not make: with its proof alone, and as any other bundle."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import sample_metrics
from click.testing import CliRunner
from small_onnx import FLOAT, model, node

from pipeline.cli import ferry
from pipeline.commands.predict import experiment_of
from pipeline.config.experiment import GateConfig
from pipeline.errors import GateError
from pipeline.records.parity import PairReport, SideInfo
from pipeline.stages.bundle import bundle_file
from serving import open_model
from serving.batch.answers import answer
from serving.bundles.bundle import open_bundle, read_manifest
from serving.bundles.verify import verify
from serving.drift.check import open_check
from serving.errors import FerryError, InputError, IntegrityError, MissingInputError, ModelError
from serving.files import sha256_of_file, write_json
from serving.measuring.bench import bench
from serving.measuring.rounds import BenchOptions

GOLDEN_ROWS = 16
ROWS = np.random.default_rng(2).normal(size=(40, 3)).astype(np.float32)
LIMITS = GateConfig(
    max_abs_diff=1e-4,
    max_scaled_diff=None,
    max_probability_diff=None,
    min_snr_db=None,
    min_kernel_snr_db=None,
    flips=0,
    accuracy_loss=None,
    error_increase=None,
    batch_diff=1e-4,
)


def net(output: str = "out", batch: int | str = "n", classes: int | str = 4) -> onnx.ModelProto:
    """Of rows of three numbers the scores of four classes."""
    weight = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    nodes = [node("MatMul", "rows w", "product"), node("Softmax", "product", output, axis=1)]
    inputs = {"rows": (FLOAT, [batch, 3])}
    return model(nodes, inputs, {output: (FLOAT, [batch, classes])}, {"w": weight})


def kept(folder: Path, made: onnx.ModelProto, name: str = "net.onnx") -> Path:
    path = folder / name
    path.write_bytes(made.SerializeToString())
    np.save(folder / "rows.npy", ROWS)
    return path


def proof(path: Path, *, rows: str = "rows.npy") -> Path:
    """What `ferry parity` leaves of the file beside a copy of itself that says something else."""
    from pipeline.proof.pair import compare
    from pipeline.proof.rows import open_rows
    from pipeline.proof.sides import model_side

    other = onnx.load(path)
    other.doc_string = "the reference"
    reference, side = (
        model_side(str(one), one.read_bytes())
        for one in (kept(path.parent, other, "reference.onnx"), path)
    )
    opened = open_rows(str(path.parent / rows), side.inputs)
    report = compare(reference, side, opened, limits=LIMITS, batch_sizes=(1, 7), hostile=False)
    write_json(path.with_suffix(".json"), report)
    return path.with_suffix(".json")


def bundled(path: Path, labels: Path | None = None) -> Path:
    folder = path.parent / "bundles" / path.stem
    bundle_file(path, folder, **proven_by(path), labels=labels)
    return folder


def proven_by(path: Path) -> dict[str, Any]:
    """What `bundle_file` is given of a file beside its rows and its proof."""
    return {
        "rows": str(path.parent / "rows.npy"),
        "parity": path.with_suffix(".json"),
        "golden_rows": GOLDEN_ROWS,
    }


def refused(path: Path, error: type[FerryError], labels: Path | None = None) -> str:
    with pytest.raises(error) as caught:
        bundled(path, labels)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert not (path.parent / "bundles").exists(), "nothing is left"
    return message


@pytest.fixture
def proven(tmp_path: Path) -> Path:
    path = kept(tmp_path, net())
    proof(path)
    return path


def test_the_file_is_shipped_byte_for_byte(proven: Path) -> None:
    folder = bundled(proven)
    assert (folder / "model.onnx").read_bytes() == proven.read_bytes()
    manifest = read_manifest(folder)
    assert (manifest.name, manifest.variant) == ("net", "file")
    assert manifest.labels == ()
    assert manifest.golden.rows == GOLDEN_ROWS
    assert manifest.golden.max_abs_diff == LIMITS.max_abs_diff
    assert {"max_abs_diff", "batch_diff"} <= set(manifest.parity)
    assert manifest.parity["max_abs_diff"].limit == LIMITS.max_abs_diff
    assert manifest.source.weights_sha256 == sha256_of_file(proven.parent / "reference.onnx")
    with np.load(folder / "golden.npz", allow_pickle=False) as golden:
        np.testing.assert_array_equal(golden["input"], ROWS[:GOLDEN_ROWS])
    assert open_bundle(folder).reference() is None
    assert not (folder / "reference.json").exists()


def runner_prints(folder: Path) -> list[str]:
    """The lines of the bundle's own runner, which answers the rows beside the model."""
    done = subprocess.run(
        [sys.executable, "-I", "-B", str(folder / "runner.py"), "predict", "rows.npy"],
        cwd=folder.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_predict_verify_bench_and_runner_take_it(proven: Path) -> None:
    labels = proven.parent / "labels.txt"
    labels.write_text("ant\nbee\ncat\ndog\n", encoding="utf-8")
    folder = bundled(proven, labels)
    assert verify(folder).passed
    found = open_model(folder).predict(ROWS)
    assert set(found.label) <= {"ant", "bee", "cat", "dog"}
    assert bench(folder, BenchOptions(batch_sizes=(1, 4), seconds=0.01, num_rounds=1)).measured
    lines = [line.split(",") for line in runner_prints(folder)]
    assert lines[0] == ["row", "label", "label_index", "score"]
    assert [label for _, label, *_ in lines[1:]] == found.label
    np.testing.assert_allclose([float(line[3]) for line in lines[1:]], found.score, rtol=1e-6)


def test_a_table_that_nobody_calls_scores_is_written_as_it_is(proven: Path) -> None:
    folder = bundled(proven)
    assert (verify(folder).passed, open_model(folder).kind) == (True, "other")
    header, first, *_ = runner_prints(folder)
    assert header == "row,out"
    out = json.loads(first.split(",", 1)[1].strip('"'))
    np.testing.assert_allclose(out, open_model(folder).answers(ROWS)["out"][0], rtol=1e-6)


def test_scores_of_the_usual_name_are_classified_by_the_runner(tmp_path: Path) -> None:
    path = kept(tmp_path, net("probabilities", classes="classes"))
    proof(path)
    folder = bundled(path)
    assert verify(folder).passed
    assert runner_prints(folder)[0] == "row,label,label_index,probability"


def test_a_model_of_one_batch_size(tmp_path: Path) -> None:
    path = kept(tmp_path, net(batch=1))
    module_proof(path)
    folder = bundled(path)
    assert read_manifest(folder).golden.rows == 1
    assert verify(folder).passed
    assert len(open_model(folder).answers(ROWS)["out"]) == len(ROWS)
    assert len(runner_prints(folder)) == len(ROWS) + 1


def module_proof(path: Path) -> None:
    """What `ferry export --module` leaves beside its model."""
    limits = GateConfig.only(max_abs_diff=2e-4, max_probability_diff=2e-4, batch_diff=2e-4, flips=0)
    report = PairReport(
        reference=SideInfo(name="nets.small:build", sha256="3" * 64),
        other=SideInfo(name=path.name, sha256=sha256_of_file(path)),
        data="rows.npy",
        rows=40,
        shared={},
        passed=True,
        result=replace(sample_metrics.variant(), limits=limits),
    )
    write_json(path.with_suffix(".json"), report)


def test_the_report_of_an_export_is_a_proof_too(tmp_path: Path) -> None:
    path = kept(tmp_path, net())
    module_proof(path)
    manifest = read_manifest(bundled(path))
    assert manifest.golden.max_abs_diff == 2e-4
    assert manifest.source.weights_sha256 == "3" * 64
    gates = {"max_abs_diff", "max_probability_diff", "flips", "batch_diff"}
    assert set(manifest.parity) == gates


def test_predictions_are_tracked_under_the_bundles_name(proven: Path) -> None:
    renamed = bundled(proven).rename(proven.parent / "on a device")
    assert experiment_of(renamed) == experiment_of(proven) == "net"


# How the training data are distributed


def test_training_rows_tell_when_others_have_moved(proven: Path) -> None:
    rng = np.random.default_rng(6)
    np.save(proven.parent / "train.npy", rng.normal(size=(3000, 3)).astype(np.float32))
    labels = proven.parent / "labels.txt"
    labels.write_text("ant\nbee\ncat\ndog\n", encoding="utf-8")
    folder, train = proven.parent / "made", str(proven.parent / "train.npy")
    report = bundle_file(proven, folder, **proven_by(proven), labels=labels, reference=train)
    assert report.reference_rows == 3000
    assert verify(folder).passed
    reference = open_bundle(folder).reference()
    assert reference is not None
    assert reference.data == train
    assert sum(reference.classes) == 3000
    assert len(reference.classes) == 4
    check = open_check(folder)
    rows = rng.normal(size=(500, 3)).astype(np.float32)
    check.add(rows, answer(open_model(folder), [""] * 500, rows).columns)
    assert check.report().moved == ()
    rows[:, 2] += 3
    check.add(rows, answer(open_model(folder), [""] * 500, rows).columns)
    assert "feature 2" in {one.name for one in check.report().moved}


def test_training_rows_that_the_model_does_not_take(proven: Path) -> None:
    np.save(proven.parent / "train.npy", ROWS[:, :2])
    with pytest.raises(InputError, match=r"the model takes float32 \[rows, 3\]"):
        bundle_file(
            proven,
            proven.parent / "made",
            **proven_by(proven),
            reference=str(proven.parent / "train.npy"),
        )
    assert not (proven.parent / "made").exists()


# Nothing unproven ships


def test_a_file_without_a_proof(tmp_path: Path) -> None:
    path = kept(tmp_path, net())
    message = refused(path, MissingInputError)
    assert "`ferry parity REFERENCE" in message


def test_a_proof_of_another_file(proven: Path) -> None:
    other = net()
    other.graph.name = "another"
    proven.write_bytes(other.SerializeToString())
    message = refused(proven, IntegrityError)
    assert f"{proven} has sha256 {sha256_of_file(proven)[:12]}…, but" in message
    assert "proves this one" in message


def test_the_reference_is_not_what_was_proven(proven: Path) -> None:
    reference = proven.parent / "reference.onnx"
    reference.with_suffix(".json").write_bytes(proven.with_suffix(".json").read_bytes())
    refused(reference, IntegrityError)


def test_a_proof_that_failed(proven: Path) -> None:
    report = proven.with_suffix(".json")
    raw = json.loads(report.read_text())
    raw["passed"] = raw["result"]["passed"] = False
    raw["result"]["failures"] = ["9 flips, limit 0"]
    report.write_text(json.dumps(raw))
    assert "did not pass its gate, so it is not bundled: 9 flips" in refused(proven, GateError)


def test_a_spoilt_proof_is_one_line(proven: Path) -> None:
    for text in ("not JSON", "[1]", '{"passed": true}'):
        proven.with_suffix(".json").write_text(text)
        refused(proven, IntegrityError)


# What does not fit


def test_a_model_of_several_inputs(tmp_path: Path) -> None:
    made = net()
    made.graph.input.append(onnx.helper.make_tensor_value_info("more", FLOAT, ["n"]))
    path = kept(tmp_path, made)
    module_proof(path)
    message = refused(path, InputError)
    assert "has the inputs rows, more; a bundle's model has one" in message


def test_a_file_that_ferry_does_not_run(tmp_path: Path) -> None:
    made = net()
    made.graph.node[0].domain = "evil.org"
    path = kept(tmp_path, made)
    assert "needs the operator evil.org::MatMul" in refused(path, ModelError)


def test_rows_that_the_model_does_not_take(proven: Path) -> None:
    np.save(proven.parent / "rows.npy", ROWS[:, :2])
    assert "the model takes float32 [rows, 3]" in refused(proven, InputError)


def test_rows_that_are_too_few_for_a_fixed_batch(tmp_path: Path) -> None:
    path = kept(tmp_path, net(batch=64))
    module_proof(path)
    assert "holds 40 rows, the model takes 64 at once" in refused(path, InputError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"ant\nbee\n", "has 2 labels, the model tells 4 classes"),
        (b"a\nb\na\nc\n", "has 'a' twice"),
        (b"a\nb\n\nc\n", "has an empty label"),
        (b"\xff\xfe", "is not a text in UTF-8"),
    ],
)
def test_labels_that_do_not_fit(proven: Path, text: bytes, message: str) -> None:
    labels = proven.parent / "labels.txt"
    labels.write_bytes(text)
    assert message in refused(proven, InputError, labels)


def test_labels_of_a_model_that_tells_no_classes(tmp_path: Path) -> None:
    nodes = [node("ReduceSum", "rows axis", "sum", keepdims=0)]
    made = model(
        nodes, {"rows": (FLOAT, ["n", 3])}, {"sum": (FLOAT, ["n"])}, {"axis": np.array([1])}
    )
    path = kept(tmp_path, made)
    module_proof(path)
    labels = tmp_path / "labels.txt"
    labels.write_text("ant\nbee\n")
    assert "no output of the model tells classes: it has sum" in refused(path, InputError, labels)
    folder = bundled(path)
    assert verify(folder).passed
    assert read_manifest(folder).labels == ()


# The command


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(ferry, ["bundle", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize("reference", [False, True])
def test_the_command(proven: Path, reference: bool) -> None:
    folder, rows = proven.parent / "shipped", proven.parent / "rows.npy"
    given = ["--data", rows, "--parity", proven.with_suffix(".json"), "--output", folder]
    given += ["--reference", rows] if reference else []
    code, out, err = run(proven, *given, "--json")
    assert code == 0, err
    made = json.loads(out)
    assert made["golden_rows"] == len(ROWS)  # fewer than the default
    assert made["reference_rows"] == (len(ROWS) if reference else 0)
    assert verify(folder).passed


def test_what_the_command_lacks_is_told(proven: Path) -> None:
    code, _, err = run(proven, "--data", "rows.npy")
    assert code == 2
    assert "needs --data, --parity and --output" in err


def test_an_experiment_takes_none_of_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Path(__file__).resolve().parents[2]
    (tmp_path / "params.yaml").write_bytes((repository / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    code, _, err = run("digits-cnn", "--labels", "labels.txt")
    assert code == 2
    assert "are for MODEL.onnx" in err
