import ast
import csv
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forgeries import FORGERIES
from on_device import python, refused, run
from tiny_classifier import (
    LABELS,
    METADATA,
    classifier,
    contents,
    expected_scores,
    forge,
    images,
)
from tiny_kinds import TEXTS, Copies, autoencoder_contents, errors, halved, positive, text_contents

from serving.bundles.bundle import (
    FileInfo,
    Golden,
    open_bundle,
    read_manifest,
    runner_source,
)
from serving.bundles.integrity import check
from serving.bundles.verify import verify
from serving.bundles.writing import BundleContents, write_bundle
from serving.files import sha256_of_bytes
from serving.runtime.session import usable_providers


def test_the_self_test_passes(device: Path) -> None:
    done = run(device, "selftest")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("selftest: passed, largest difference ")


def test_predictions_are_those_of_the_model(device: Path) -> None:
    done = run(device, "predict", "rows.npy")
    assert (done.returncode, done.stderr) == (0, "")
    lines = list(csv.DictReader(done.stdout.splitlines()))
    expected = expected_scores(images(70))
    assert [int(line["row"]) for line in lines] == list(range(70))
    assert [int(line["label_index"]) for line in lines] == expected.argmax(axis=1).tolist()
    assert {line["label"] for line in lines} <= set(LABELS)
    found = [float(line["probability"]) for line in lines]
    np.testing.assert_allclose(found, expected.max(axis=1), atol=1e-6)


def test_an_output_file_appears_whole(device: Path) -> None:
    done = run(device, "predict", "rows.npy", "--output", "out.csv")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = (device.parent / "out.csv").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 71
    left = sorted(path.name for path in device.parent.iterdir())
    assert left == ["model", "out.csv", "rows.npy"]


def test_it_is_importable_and_leaves_the_folder_as_it_was(device: Path) -> None:
    done = python(
        device,
        "import sys, numpy as np, runner\n"
        "answer = runner.predict(np.load('../rows.npy'), batch_rows=16)\n"
        "print(answer.label_index.dtype, answer.probability.dtype, answer.probabilities.shape)\n"
        "print(answer.probabilities.argmax(1).tolist() == answer.label_index.tolist())\n"
        "print(len(runner.predict(np.load('../rows.npy')[:0]).label))\n"
        "print(runner.selftest().worst < 1e-4, runner.selftest().flips, '' in sys.path)\n"
        "heavy = {'serving', 'torch', 'onnx', 'click', 'PIL', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))\n",
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["int64 float32 (70, 3)", "True", "0", "True 0 True", "[]"]
    open_bundle(device)


def test_it_is_written_for_python_3_9() -> None:
    source = runner_source().decode()
    tree = ast.parse(source, feature_version=(3, 9))
    assert "zip(" not in source  # whose `strict` Python 3.9 lacks
    evaluated = [n.annotation for n in ast.walk(tree) if isinstance(n, ast.arg) and n.annotation]
    evaluated += [n.returns for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.returns]
    outside = [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef))]
    evaluated += [n.annotation for one in outside for n in one.body if isinstance(n, ast.AnnAssign)]
    # Such as `Path | None`, unless it is quoted.
    assert not [ast.unparse(one) for one in evaluated if isinstance(one, ast.BinOp)]
    imported = {
        name.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
    } | {
        node.module.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


@pytest.mark.parametrize("name", ["model.onnx", "labels.txt", "golden.npz"])
def test_an_altered_file_is_refused_before_it_is_used(device: Path, name: str) -> None:
    content = bytearray((device / name).read_bytes())
    content[len(content) // 2] ^= 1
    (device / name).write_bytes(content)
    refused(run(device, "predict", "rows.npy"), f"{name} was altered")


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, '{"digest": 1, "files": {}}'])
def test_a_manifest_that_is_none(device: Path, text: str) -> None:
    (device / "manifest.json").write_text(text)
    refused(run(device, "selftest"), "manifest.json was altered")


def test_every_altered_byte_of_the_manifest_is_refused(device: Path) -> None:
    path = device / "manifest.json"
    whole = path.read_bytes()
    done = python(
        device,
        "import runner, pathlib\n"
        "path = pathlib.Path('manifest.json')\n"
        "whole = path.read_bytes()\n"
        "accepted = 0\n"
        "for at in range(0, len(whole), 5):\n"
        "    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])\n"
        "    try:\n"
        "        runner.check()\n"
        "        accepted += 1\n"
        "    except runner.RunnerError:\n"
        "        pass\n"
        "path.write_bytes(whole)\n"
        "print(accepted)\n",
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert path.read_bytes() == whole


def test_a_missing_file(device: Path) -> None:
    (device / "golden.npz").unlink()
    refused(run(device, "selftest"), "golden.npz is missing")
    (device / "manifest.json").unlink()
    refused(run(device, "selftest"), "manifest.json: No such file")


def test_a_golden_difference_over_the_limit(device: Path) -> None:
    forge(device, golden=Golden(rows=6, max_abs_diff=-1.0, tie=0))
    refused(run(device, "selftest"), "the golden outputs differ by")


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_golden_row_that_gets_another_class(device: Path, value: float) -> None:
    """Within the limit, and still the answer is another one."""
    with np.load(device / "golden.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    row = arrays["probabilities"][2]
    row[row.argmin()] = row.max() + 0.01 + value
    np.savez(device / "golden.npz", **arrays)
    content = (device / "golden.npz").read_bytes()
    info = FileInfo(size=len(content), sha256=sha256_of_bytes(content))
    files = {**read_manifest(device).files, "golden.npz": info}
    golden = dataclasses.replace(read_manifest(device).golden, max_abs_diff=2.0)
    forge(device, files=files, golden=golden)
    done = run(device, "selftest", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, f"runner: {found['error']}\n")
    if np.isnan(value):
        assert (found["passed"], found["worst"]) == (False, None)
        assert "differ by inf" in found["error"]
    else:
        assert (found["passed"], found["flips"], found["rows"]) == (False, 1, 6)
        assert found["error"] == "1 of 6 golden rows get another class"
        details = {one.name: one.detail for one in verify(device).checks if one.status == "failed"}
        assert details["golden"] == "1 of 6 golden rows get another class here"


def test_the_result_of_a_self_test_as_json(device: Path) -> None:
    found = json.loads(run(device, "selftest", "--json").stdout)
    assert (found.pop("worst") < 1e-6, found.pop("limit")) == (True, 1e-4)
    digest = read_manifest(device).digest
    good = {"passed": True, "error": None, "flips": 0, "rows": 6, "digest": digest, "vouched": []}
    assert found == good
    (device / "labels.txt").unlink()
    done = run(device, "selftest", "--json")
    assert json.loads(done.stdout) == {"passed": False, "error": "labels.txt is missing"}
    assert (done.returncode, done.stderr) == (1, "runner: labels.txt is missing\n")


@pytest.mark.parametrize("made", [contents, text_contents, autoencoder_contents])
def test_the_speed_is_measured_on_the_golden_rows(
    bundle_of: Copies, made: Callable[[], BundleContents]
) -> None:
    folder = bundle_of(made)
    done = run(folder, "bench", "--seconds", "0.05", "--batch-size", "4")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert 0 < found["rows_per_second"] <= 4 * 1000 * found["calls"]
    assert found["calls"] >= 1
    assert found["load_ms"] > 0
    assert 10 < found["peak_memory_mib"] < 10_000
    assert (found["batch_size"], found["provider"]) == (4, "CPUExecutionProvider")
    assert found["digest"] == read_manifest(folder).digest
    for words in (("--seconds", "0"), ("--seconds", "inf"), ("--batch-size", "0")):
        assert run(folder, "bench", *words).returncode == 2


def test_a_runtime_that_is_too_old(device: Path) -> None:
    forge(device, minimum_runtime="9.9")
    refused(run(device, "selftest"), "needs onnxruntime 9.9 or newer")


@pytest.mark.gpu
def test_a_gpu_passes_the_self_test(device: Path) -> None:
    if reason := usable_providers().get("cuda", "not part of this onnxruntime"):
        pytest.skip(f"cuda: {reason}")
    done = run(device, "selftest", "--provider", "cuda")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("provider", ["coreml", "CUDA"])
def test_the_provider_asked_for_or_an_error(device: Path, provider: str) -> None:
    done = run(device, "selftest", "--provider", provider)
    if provider == "CUDA" and done.returncode == 0:
        pytest.skip("cuda runs here")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


BAD_ROWS = {
    "dtype": (
        images(2).astype(np.float32),
        "takes uint8 [rows, 4, 5, 1], got float32 [2, 4, 5, 1]",
    ),
    "one row alone": (images(2)[0], "got uint8 [4, 5, 1]"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_do_not_fit(device: Path, case: str) -> None:
    rows, message = BAD_ROWS[case]
    np.save(device.parent / "bad.npy", rows)
    refused(run(device, "predict", "bad.npy"), message)


def test_files_that_hold_no_rows(device: Path) -> None:
    (device.parent / "bad.npy").write_bytes(b"not an array")
    refused(run(device, "predict", "bad.npy"), "bad.npy cannot be read")
    np.save(device.parent / "bad.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused(run(device, "predict", "bad.npy"), "bad.npy cannot be read")
    refused(run(device, "predict", "gone.npy"), "gone.npy cannot be read")


def test_a_folder_that_cannot_be_written(device: Path) -> None:
    refused(run(device, "predict", "rows.npy", "--output", "no/such/out.csv"), "out.csv: No such")


def test_wrong_usage_is_status_2(device: Path) -> None:
    assert run(device).returncode == 2
    assert run(device, "train").returncode == 2
    assert run(device, "predict").returncode == 2


def test_the_reader_of_stdout_may_leave(device: Path) -> None:
    np.save(device.parent / "many.npy", images(20_000))
    command = f"{sys.executable} -B model/runner.py predict many.npy | head -2"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=device.parent, timeout=60
    )
    assert (len(done.stdout.splitlines()), done.stderr) == (2, "")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("an endless loop", "the model has not ended in 1 s (--call-timeout)"),
        ("a division that traps", "the native runtime ended (SIGFPE)"),
    ],
)
def test_a_model_that_does_not_end_or_ends_the_process(device: Path, name: str, said: str) -> None:
    FORGERIES[name](device)
    for command in (["selftest"], ["predict", "rows.npy"]):
        refused(run(device, *command, "--call-timeout", "1"), said)


def test_a_text_that_a_terminal_would_obey(tmp_path: Path) -> None:
    """The manifest holds it as an escape, which the runner must write alike."""
    labels = ("a\x9bb", "\u202ec", "d\x7f")
    model = classifier(metadata=METADATA | {"ferry.labels": json.dumps(labels)})
    write_bundle(tmp_path / "m", contents(model=model, labels=labels))
    assert check(tmp_path / "m")[0]["labels"] == list(labels)


def test_a_model_without_probabilities(tmp_path: Path) -> None:
    write_bundle(tmp_path / "m", contents(model=classifier(outputs=("logits",))))
    np.save(tmp_path / "rows.npy", images(2))
    assert run(tmp_path / "m", "selftest").returncode == 0
    lines = list(csv.DictReader(run(tmp_path / "m", "predict", "rows.npy").stdout.splitlines()))
    assert [list(line) for line in lines] == [["row", "label", "label_index", "score"]] * 2
    index = expected_scores(images(2)).argmax(axis=1)
    assert [line["label"] for line in lines] == [LABELS[one] for one in index]


def test_a_model_without_classes(tmp_path: Path, bundle_of: Copies) -> None:
    done = python(
        bundle_of(autoencoder_contents),
        "import numpy as np, runner\n"
        "try:\n"
        "    runner.predict(np.zeros((1, 4, 5, 1), np.uint8))\n"
        "except runner.RunnerError as error:\n"
        "    print(error)\n",
    )
    message = "the model gives reconstruction, error, no known scores: use `answers`\n"
    assert done.stdout == message


@pytest.mark.parametrize("rows", ["npy", "txt"])
def test_texts_of_a_file(tmp_path: Path, bundle_of: Copies, rows: str) -> None:
    model = bundle_of(text_contents)
    np.save(tmp_path / "rows.npy", np.array(TEXTS))
    (tmp_path / "rows.txt").write_bytes("\r\n".join([*TEXTS, ""]).encode("utf-8-sig"))
    assert run(model, "selftest").stdout.startswith("selftest: passed")
    done = run(model, "predict", f"rows.{rows}", "--output", "out.npz")
    assert (done.returncode, done.stderr) == (0, "")
    with np.load(tmp_path / "out.npz") as found:
        assert found["logits"].shape == (len(TEXTS), 1)
        np.testing.assert_allclose(found["probabilities"][:, 1], positive(TEXTS), atol=1e-6)
    lines = list(csv.DictReader(run(model, "predict", "rows.txt").stdout.splitlines()))
    assert [line["label"] for line in lines][:2] == ["positive", "negative"]


def test_text_that_is_not_utf8_or_no_text(tmp_path: Path, bundle_of: Copies) -> None:
    model = bundle_of(text_contents)
    (tmp_path / "rows.txt").write_bytes("naïve".encode("cp1252"))
    refused(run(model, "predict", "rows.txt"), "rows.txt cannot be read: 'utf-8' codec")
    np.save(tmp_path / "rows.npy", np.zeros(3))
    message = "the model takes string [rows], got float64 [3]"
    refused(run(model, "predict", "rows.npy"), message)


def test_a_reconstruction(tmp_path: Path, bundle_of: Copies) -> None:
    model = bundle_of(autoencoder_contents)
    np.save(tmp_path / "rows.npy", images(40))
    done = run(model, "predict", "rows.npy", "--output", "out.npz")
    assert (done.returncode, done.stderr) == (0, "")
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["error"], errors(images(40)), atol=1e-6)
        np.testing.assert_allclose(found["reconstruction"], halved(images(40)), atol=1e-6)
    lines = list(csv.DictReader(run(model, "predict", "rows.npy").stdout.splitlines()))
    assert list(lines[0]) == ["row", "reconstruction", "error"]
    np.testing.assert_allclose([float(line["error"]) for line in lines], errors(images(40)), 1e-5)
    done = python(
        model,
        "import numpy as np, runner\n"
        "found = runner.answers(np.zeros((0, 4, 5, 1), np.uint8))\n"
        "print({name: array.shape for name, array in found.items()})\n",
    )
    assert done.stdout == "{'reconstruction': (0, 4, 5, 1), 'error': (0,)}\n"
