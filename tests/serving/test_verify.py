import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_classifier import METADATA, SOURCE, classifier, contents, forge
from tiny_kinds import Copies, autoencoder_contents, table_contents

from serving.bundles.bundle import FileInfo, Gate, Golden, read_manifest
from serving.bundles.verify import Trust, VerifyReport, as_table, verify
from serving.bundles.writing import BundleContents, write_bundle
from serving.errors import IntegrityError, ProviderError, UnknownNameError
from serving.files import sha256_of_bytes


def replace_file(bundle: Path, name: str, content: bytes) -> None:
    """Put another file into a bundle, with a manifest that knows it."""
    (bundle / name).write_bytes(content)
    info = FileInfo(size=len(content), sha256=sha256_of_bytes(content))
    forge(bundle, files={**read_manifest(bundle).files, name: info})


def failed(report: VerifyReport) -> dict[str, str]:
    assert not report.passed
    return {check.name: check.detail for check in report.checks if check.status == "failed"}


def test_a_good_bundle_passes_every_check(built_bundle: Path) -> None:
    report = verify(built_bundle)
    assert report.passed
    assert {check.status for check in report.checks} == {"passed"}
    names = [check.name for check in report.checks]
    assert names == [
        *("files", "metadata", "signature", "labels", "parity", "golden", "profiles", "runner")
    ]
    assert report.digest == read_manifest(built_bundle).digest
    assert report.proof is not None
    assert report.proof.asked == "CPUExecutionProvider"
    report.require()
    assert "digest" in as_table(report)


def test_an_altered_file_stops_there(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(classifier(channels=3))
    report = verify(bundle)
    assert list(failed(report)) == ["files"]
    assert len(report.checks) == 1
    assert report.digest is None
    with pytest.raises(IntegrityError, match=r"failed verification: files: .*model\.onnx"):
        report.require()


def test_a_model_that_says_something_else_of_itself(bundle: Path) -> None:
    other = METADATA | {"ferry.dataset": "another", "ferry.labels": "[]"}
    replace_file(bundle, "model.onnx", classifier(metadata=other))
    message = failed(verify(bundle))["metadata"]
    assert "ferry.dataset is 'another' in the model and 'toy' in the manifest" in message
    assert "ferry.labels" in message


def test_a_model_that_takes_something_else(bundle: Path) -> None:
    replace_file(bundle, "model.onnx", classifier(channels=3))
    message = failed(verify(bundle))
    assert "inputs: found" in message["signature"]
    wrong = "golden.npz: input is uint8 [6, 4, 5, 1], expected uint8 [6, 4, 5, 3]"
    assert message["golden"] == wrong


def test_a_model_of_another_opset(bundle: Path) -> None:
    replace_file(bundle, "model.onnx", classifier(opset=17))
    assert failed(verify(bundle)) == {"signature": "opset: found 17, expected 18"}


def test_a_file_that_is_no_model(bundle: Path) -> None:
    replace_file(bundle, "model.onnx", b"nothing")
    assert "cannot be loaded" in failed(verify(bundle))["model"]


def test_labels_that_are_not_those_of_the_manifest(bundle: Path) -> None:
    replace_file(bundle, "labels.txt", b"a\nb\nc\n")
    assert "labels.txt" in failed(verify(bundle))["labels"]


@pytest.mark.parametrize(
    ("made", "labels", "message"),
    [
        (table_contents, ("no",), "classes of probabilities: found 2, expected 1"),
        (table_contents, (), "classes of probabilities: found 2, expected 0"),
        (contents, (), "classes of probabilities: found 3, expected 0"),
    ],
)
def test_labels_that_are_not_as_many_as_the_classes(
    tmp_path: Path, made: Callable[[], BundleContents], labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(IntegrityError, match=message):
        write_bundle(tmp_path / "tiny", dataclasses.replace(made(), labels=labels))
    assert not (tmp_path / "tiny").exists()


def test_what_tells_the_class_is_what_the_model_says(tmp_path: Path, bundle_of: Copies) -> None:
    """The runner goes by the manifest."""
    bundle_of(table_contents)
    classes = read_manifest(tmp_path / "tiny").classes
    forge(tmp_path / "tiny", classes=dataclasses.replace(classes, are_probabilities=False))
    message = "the model tells its classes by other outputs than the manifest says"
    assert failed(verify(tmp_path / "tiny"))["labels"] == message


def test_a_model_without_classes_has_no_labels(bundle_of: Copies) -> None:
    report = verify(bundle_of(autoencoder_contents))
    assert report.passed
    assert "no classes" in as_table(report)


def test_a_gate_that_was_not_met(bundle: Path) -> None:
    forge(bundle, parity={"max_abs_diff": Gate(measured=0.31, limit=0.05)})
    assert failed(verify(bundle))["parity"] == "max_abs_diff is 0.31, limit 0.05"


def golden_arrays(bundle: Path) -> dict[str, np.ndarray]:
    with np.load(bundle / "golden.npz") as archive:
        return {name: archive[name] for name in archive.files}


def save_golden(bundle: Path, tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "new.npz", **arrays)
    replace_file(bundle, "golden.npz", (tmp_path / "new.npz").read_bytes())


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_golden_outputs_that_the_model_does_not_give(
    bundle: Path, tmp_path: Path, value: float
) -> None:
    arrays = golden_arrays(bundle)
    arrays["probabilities"][2, 1] += value
    save_golden(bundle, tmp_path, arrays)
    message = failed(verify(bundle))
    assert "the golden outputs differ by" in message["golden"]
    assert "runner" in message  # it finds out by itself too


def test_golden_outputs_within_the_limit_pass(bundle: Path, tmp_path: Path) -> None:
    arrays = golden_arrays(bundle)
    arrays["logits"][2, 1] += 5e-5
    save_golden(bundle, tmp_path, arrays)
    assert verify(bundle).passed
    forge(bundle, golden=Golden(rows=6, max_abs_diff=1e-5, tie=0))
    assert "the limit is 1.000e-05" in failed(verify(bundle))["golden"]


def test_golden_rows_that_are_missing(bundle: Path, tmp_path: Path) -> None:
    arrays = golden_arrays(bundle)
    save_golden(bundle, tmp_path, {name: array[:2] for name, array in arrays.items()})
    wrong = "golden.npz: input is uint8 [2, 4, 5, 1], expected uint8 [6, 4, 5, 1]"
    assert failed(verify(bundle))["golden"] == wrong
    del arrays["logits"]
    save_golden(bundle, tmp_path, arrays)
    assert "golden.npz holds ['input', 'probabilities']" in failed(verify(bundle))["golden"]


def test_a_golden_file_is_never_unpickled(bundle: Path, tmp_path: Path) -> None:
    evil = np.array([{"a": 1}], dtype=object)
    save_golden(bundle, tmp_path, dict.fromkeys(("input", "logits", "probabilities"), evil))
    assert failed(verify(bundle))["golden"] == "golden.npz: input is no array as ferry writes it"
    replace_file(bundle, "golden.npz", b"PK nothing")
    assert failed(verify(bundle))["golden"] == "golden.npz is no archive of some arrays"


def test_a_strange_runner_is_not_executed(bundle: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    replace_file(bundle, "runner.py", f"open({str(trace)!r}, 'w')\n".encode())
    assert "not the one of this ferry" in failed(verify(bundle))["runner"]
    report = verify(bundle, trust=Trust(digest=read_manifest(bundle).digest))
    assert report.passed
    assert report.checks[-1].status == "skipped"
    assert "its digest is right" in report.checks[-1].detail
    assert not trace.exists()


def test_a_source_that_is_not_the_models(bundle: Path) -> None:
    forge(bundle, source=dataclasses.replace(SOURCE, git_revision="f" * 40))
    assert "ferry.git_revision" in failed(verify(bundle))["metadata"]


def test_a_model_of_nobody_knows_whom_need_not_tell_what_it_is(tmp_path: Path) -> None:
    unsaid = classifier(metadata={})
    with pytest.raises(IntegrityError, match=r"ferry\.experiment is None in the model"):
        write_bundle(tmp_path / "ours", contents(model=unsaid))
    write_bundle(tmp_path / "theirs", contents(model=unsaid, variant="file"))
    report = verify(tmp_path / "theirs")
    assert report.passed
    assert "says nothing of itself" in as_table(report)


def test_its_labels_are_as_many_as_its_classes_all_the_same(tmp_path: Path) -> None:
    made = contents(model=classifier(metadata={}), variant="file", labels=("one", "two"))
    with pytest.raises(IntegrityError, match="classes of probabilities: found 3, expected 2"):
        write_bundle(tmp_path / "theirs", made)


def test_a_provider_that_is_not_there_is_an_error(bundle: Path) -> None:
    with pytest.raises(UnknownNameError):
        verify(bundle, provider="gpu")
    with pytest.raises(ProviderError):
        verify(bundle, provider="coreml")


def test_the_command_prints_each_check_and_fails(bundle: Path) -> None:
    command = [sys.executable, "-m", "serving", "verify", str(bundle)]
    good = subprocess.run(command, capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    assert "golden     passed" in good.stdout
    forge(bundle, parity={"flips": Gate(measured=3, limit=1)})
    bad = subprocess.run(command, capture_output=True, text=True)
    assert bad.returncode == 1
    assert bad.stderr.count("\n") == 1
    assert "parity: flips is 3, limit 1" in bad.stderr
    assert "parity     failed" in bad.stdout
