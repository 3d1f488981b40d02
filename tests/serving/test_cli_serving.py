import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from tiny_classifier import images
from tiny_kinds import text_classifier

from serving.batch.writers import FORMATS
from serving.cli import serving
from serving.model import BATCH_ROWS

ROOT = Path(__file__).parents[2]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(serving, [str(argument) for argument in arguments])


def run(*arguments: str, cwd: Path, stdout: Any = subprocess.PIPE) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "serving", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def work(tmp_path: Path, model_file: Path) -> Path:
    """A folder with a model, some rows and some images."""
    np.save(tmp_path / "rows.npy", images(50))
    (tmp_path / "images").mkdir()
    for index, row in enumerate(images(5)):
        Image.fromarray(row[..., 0]).save(tmp_path / "images" / f"{index}.png")
    assert model_file.parent == tmp_path
    return tmp_path


def test_help_tells_the_real_defaults() -> None:
    by_name = {parameter.name: parameter for parameter in serving.commands["predict"].params}
    assert f"({BATCH_ROWS})" in by_name["batch_rows"].help
    assert tuple(by_name["format"].type.choices) == FORMATS


def test_predict_to_a_file_prints_one_line(work: Path) -> None:
    code, out, err = run(
        "predict", "tiny.onnx", "rows.npy", "images", "--output", "out.csv", cwd=work
    )
    assert (code, err) == (0, "")
    assert out.startswith("55 rows to out.csv; ")
    assert out.splitlines()[1].startswith("decode ")
    assert out.count("\n") == 2
    assert len((work / "out.csv").read_text(encoding="utf-8").splitlines()) == 56


def test_predict_to_stdout_is_data_only(work: Path) -> None:
    code, out, err = run("predict", "tiny.onnx", "images", cwd=work)
    assert code == 0
    assert out.splitlines()[0] == "id,label,label_index,probability"
    assert len(out.splitlines()) == 6
    assert err.startswith("5 rows; ")
    code, out, _ = run("predict", "tiny.onnx", "images", "--json", "--probabilities", cwd=work)
    assert [len(json.loads(line)) for line in out.splitlines()] == [7] * 5


def test_predict_reports_as_json(work: Path) -> None:
    code, out, err = run(
        "predict", "tiny.onnx", "rows.npy", "-o", "out.parquet", "--json", cwd=work
    )
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["rows"], report["errors"], report["output"]) == (50, 0, "out.parquet")
    assert report["proof"]["asked"] == "CPUExecutionProvider"


def test_predict_takes_lines_and_columns(work: Path) -> None:
    (work / "text.onnx").write_bytes(text_classifier())
    (work / "reviews.txt").write_text("good\nbad\n\n")
    (work / "reviews.csv").write_text("title,body\na,good\nb,bad\n")
    code, out, err = run("predict", "text.onnx", "reviews.txt", cwd=work)
    labels = [line.split(",")[:2] for line in out.splitlines()]
    assert (code, labels[0]) == (0, ["id", "label"])
    assert labels[1:3] == [["reviews.txt:0", "positive"], ["reviews.txt:1", "negative"]]
    assert err.startswith("3 rows; ")
    code, out, err = run("predict", "text.onnx", "reviews.csv", "--column", "body", cwd=work)
    assert [line.split(",")[1] for line in out.splitlines()[1:]] == ["positive", "negative"]


def test_an_environment_variable_stands_for_an_option(work: Path) -> None:
    result = CliRunner(env={"FERRY_PREDICT_PROVIDER": "nonsense"}).invoke(
        serving, ["predict", str(work / "tiny.onnx"), str(work / "rows.npy")]
    )
    assert result.exit_code == 2
    assert "no provider named 'nonsense'" in result.stderr


def test_verify_refuses_one_changed_byte(bundle: Path) -> None:
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    result = invoke("verify", bundle, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["passed"] is False
    assert result.stderr.count("\n") == 1
    assert "model.onnx has sha256" in result.stderr
    assert invoke("predict", bundle, bundle).exit_code == 1


WRONG = {
    "no such model": (1, ["none.onnx", "rows.npy"], "none.onnx is not there"),
    "corrupt model": (1, ["rows.npy", "rows.npy"], "rows.npy cannot be loaded"),
    "folder as model": (1, ["images", "rows.npy"], "images is not a bundle"),
    "no such input": (1, ["tiny.onnx", "none.npy"], "none.npy is not there"),
    "unknown suffix": (1, ["tiny.onnx", "tiny.onnx"], "unknown suffix '.onnx'"),
    "empty folder": (1, ["tiny.onnx", "empty"], "empty holds no images"),
    "other rows": (1, ["tiny.onnx", "float.npy"], "takes uint8 [rows, 4, 5, 1]"),
    "nothing readable": (1, ["tiny.onnx", "large.png"], "not one of 1 rows can be used"),
    "missing provider": (
        1,
        ["tiny.onnx", "rows.npy", "--provider", "coreml"],
        "coreml is not there",
    ),
    "misspelt provider": (2, ["tiny.onnx", "rows.npy", "--provider", "cpuu"], "mean 'cpu'"),
    "unknown output": (2, ["tiny.onnx", "rows.npy", "-o", "out.txt"], "choose with --format"),
    "parquet on stdout": (2, ["tiny.onnx", "rows.npy", "--format", "parquet"], "--output"),
    "output is a folder": (1, ["tiny.onnx", "rows.npy", "-o", "taken.csv"], "taken.csv"),
    "output below a file": (1, ["tiny.onnx", "rows.npy", "-o", "rows.npy/x.csv"], "rows.npy"),
    "no threads": (2, ["tiny.onnx", "rows.npy", "--threads", "0"], "--threads"),
    "no batch": (2, ["tiny.onnx", "rows.npy", "--batch-size", "-1"], "--batch-size"),
    "columns of none": (2, ["tiny.onnx", "rows.npy", "--column", "a"], "--column is for"),
    "no input": (2, ["tiny.onnx"], "INPUT"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line_and_leaves_nothing(
    work: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, arguments, message = WRONG[case]
    (work / "empty").mkdir()
    (work / "taken.csv").mkdir()
    np.save(work / "float.npy", np.zeros((2, 4, 5, 1)))
    Image.new("L", (50, 50)).save(work / "large.png")
    monkeypatch.chdir(work)
    before = sorted(work.rglob("*"))
    result = invoke("predict", *arguments)
    assert result.exit_code == status, result.output
    assert isinstance(result.exception, SystemExit)
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert result.stdout == ""
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "said"), [("--help", ""), ("predict tiny.onnx rows.npy", "stdout: ")]
)
def test_a_full_disk_behind_stdout(work: Path, words: str, said: str) -> None:
    with Path("/dev/full").open("w") as full:
        code, _, err = run(*words.split(), cwd=work, stdout=full)
    assert (code, err) == (1, f"Error: {said}No space left on device\n")


@pytest.mark.parametrize(
    ("words", "closed", "said"),
    [
        ("--help", ">&-", "stdout is closed"),
        ("predict tiny.onnx rows.npy", ">&-", "stdout is closed"),
        ("predict tiny.onnx - --input-format csv", "<&-", "stdin is empty"),
    ],
)
def test_a_stream_that_is_closed(work: Path, words: str, closed: str, said: str) -> None:
    command = f"exec '{sys.executable}' -m serving {words} {closed}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, cwd=work, env=environment, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {said}")
    assert done.stderr.count("\n") == 1
