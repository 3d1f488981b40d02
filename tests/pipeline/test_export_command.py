"""`ferry export` as a person meets it: an experiment, or a module of one's own."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import ferry

INPUT = ("--input", "images:float32[batch,3,8,8]")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(*arguments: str) -> Result:
    return CliRunner().invoke(ferry, ["export", *arguments], prog_name="ferry")


@pytest.mark.slow
def test_a_module_needs_no_params_yaml(folder: Path) -> None:
    done = export("--module", "foreign_nets:noisy", *INPUT, "--output", "net.onnx", "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["module"] == "foreign_nets:noisy"
    assert report["parity"]["passed"]
    assert (folder / "net.onnx").is_file()
    assert json.loads((folder / "net.parity.json").read_text()) == report["parity"]


@pytest.mark.slow
def test_a_gate_that_is_not_met_is_status_1(folder: Path) -> None:
    given = ("--input", "float32[batch,4]", "--output", "net.onnx")
    done = export("--module", "foreign_nets:Lying", *given)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: foreign_nets:Lying: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "net.onnx").exists()
    assert (folder / "net.failed.onnx").is_file()
    wide = export("--module", "foreign_nets:Lying", *given, "--limit", "0.5", "--opset", "18")
    assert wide.exit_code == 0, wide.stderr
    assert "opset           18" in wide.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument 'EXPERIMENT', or --module"),
        (("--module", "a:b"), "--module needs --input and --output"),
        (("--module", "a:b", *INPUT), "--module needs --input and --output"),
        (("--module", "a:b", "--output", "net.onnx"), "--module needs --input and --output"),
        (("--module", "ab", *INPUT, "--output", "net.onnx"), "package.file:function, got 'ab'"),
        (("--module", "a:b", "--input", "x", "--output", "n.onnx"), "cannot read the input 'x'"),
        (("--module", "a:b", *INPUT, "--output", "n.onnx", "--opset", "17"), "17 is not in the"),
    ],
)
def test_wrong_usage(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    done = export(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("option", [("--output", "x.onnx"), ("--limit", "1"), INPUT])
def test_options_of_a_module_are_not_for_an_experiment(
    folder: Path, option: tuple[str, str]
) -> None:
    root = Path(__file__).parents[2]
    (folder / "params.yaml").write_text((root / "params.yaml").read_text())
    done = export("digits-mlp", *option)
    assert done.exit_code == 2
    assert "are for --module" in done.stderr
    both = export("digits-mlp", "--module", "a:b")
    assert both.exit_code == 2
    assert "give one" in both.stderr


def test_the_help_says_that_it_runs_ones_own_code() -> None:
    assert "runs your own code" in " ".join(export("--help").stdout.split())
