"""`ferry` as a person meets it: help, mistakes, environment variables and missing packages."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner, Result

from pipeline.cli import ferry
from pipeline.commands.options import complete_experiment
from serving.cli import WATCHED
from serving.commands.options import FiniteRange

ROOT = Path(__file__).parents[2]
HEAVY = (
    *("matplotlib", "mlflow", "numpy", "onnx", "onnxruntime", "pandas", "pyarrow", "pydantic"),
    *("scipy", "sklearn", "torch", "yaml"),
)
EXTRA = ("dvc", "matplotlib", "mlflow", "onnx", "pydantic", "sklearn", "torch", "yaml")
STAGES = ("pull", "preprocess", "train", "export", "quantize", "parity", "benchmark", "bundle")
ARGUMENT = {"pull": ["digits"], "preprocess": ["digits"], "report": [], "results": []}
COMMANDS = sorted(ferry.commands)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with params.yaml and nothing else."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FERRY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    return tmp_path


def invoke(*arguments: str, **settings: Any) -> Result:
    return CliRunner().invoke(ferry, arguments, prog_name="ferry", **settings)


def one_line(result: Result) -> str:
    """The line of an error that ferry told."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0]


def python(code: str, *arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


# Help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    example = [line for line in lines if line.startswith("Example: ")][-1]
    assert example.startswith(f"Example: ferry {name}")
    help_text = ferry.commands[name].help or ""
    assert help_text.strip().splitlines()[-1].strip() == example, "the example comes last"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help_and_a_variable_and_one_is_json(name: str) -> None:
    command = ferry.commands[name]
    options = [one for one in command.params if isinstance(one, click.Option)]
    known = {flag for option in options for flag in option.opts}
    assert "--json" in known
    words = (command.help or "").strip().splitlines()[-1].split()
    assert {word for word in words if word.startswith("-")} <= known
    for option in options:
        assert option.help, option.opts
        if isinstance(option.type, click.types.FloatParamType):
            assert isinstance(option.type, FiniteRange), f"{option.opts} takes NaN"
        flag = max(option.opts, key=len).removeprefix("--").replace("-", "_").upper()
        shared = {"FERRY_ALLOW", "FERRY_TRACK", "FERRY_MIRROR"}
        assert option.envvar in {f"FERRY_{name.upper()}_{flag}", *shared}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_with_limits_are_those_that_are_watched(name: str) -> None:
    flags = {flag for option in ferry.commands[name].params for flag in option.opts}
    assert ("--call-timeout" in flags) == ("--max-memory" in flags) == (name in WATCHED)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_readme_names_every_command(name: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"\bferry {name}\b", text)


def test_help_lists_every_command_with_the_whole_first_line_of_its_help() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    listed = [line.split(maxsplit=1) for line in result.stdout.splitlines() if line[:2] == "  "]
    for name in COMMANDS:
        first = (ferry.commands[name].help or "").splitlines()[0]
        assert [name, first] in listed
    assert result.stdout.index("\nModels:") < result.stdout.index("  bench ")
    assert "Example: ferry " in result.stdout


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ([], "ben", ["bench", "benchmark"]),
        (["train"], "digits-m", ["digits-mlp"]),
        (["parity", "digits-mlp"], "mnist-cn", ["mnist-cnn"]),
        (["results", "digits-mlp"], "mnist-cn", ["mnist-cnn"]),
        (["config"], "mnist-cn", ["mnist-cnn"]),
        (["train", "digits-mlp", "--device"], "c", ["cpu", "cuda"]),
        (["quantize"], "mine", ["file mine"]),
        (["predict"], "bundles/d", ["file bundles/d"]),
        (["predict", "bundles/digits-mlp"], "rows", ["file rows"]),
    ],
)
def test_a_shell_completes(
    folder: Path, words: list[str], incomplete: str, expected: list[str]
) -> None:
    shell = BashComplete(ferry, {}, "ferry", "_FERRY_COMPLETE")
    found = shell.get_completions(words, incomplete)
    assert [f"{one.type} {one.value}".removeprefix("plain ") for one in found] == expected


def test_without_params_yaml_a_shell_is_told_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shell = BashComplete(ferry, {}, "ferry", "_FERRY_COMPLETE")
    assert [one.type for one in shell.get_completions(["train"], "digits")] == ["file"]


def test_no_command_at_all_shows_the_help() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "Usage: ferry " in result.stderr


def test_version() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("ferry, version ")


def test_ferry_is_also_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: ferry ")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in ("train", "predict"))]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, json\n"
        "from pipeline.cli import ferry\n"
        "ferry(sys.argv[1:], standalone_mode=False)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = python(code, *arguments)
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout.splitlines()[-1])
    assert not set(modules) & set(HEAVY)
    loaded = {one.rpartition(".")[2] for one in modules if ".commands." in one}
    assert loaded & set(COMMANDS) == set(arguments) & set(COMMANDS), "only what is named"


# Mistakes


@pytest.mark.parametrize("name", STAGES)
def test_an_unknown_name_is_answered_with_the_nearest(folder: Path, name: str) -> None:
    kind, near = ("data set", "digits") if name in ARGUMENT else ("experiment", "digits-mlp")
    result = invoke(name, f"{near}x")
    assert result.exit_code == 2
    assert one_line(result) == f"Error: no {kind} named '{near}x'; did you mean '{near}'?"


def test_a_misspelt_name_is_refused_before_anything_heavy_is_imported(folder: Path) -> None:
    takes = [name for name in COMMANDS if complete_experiment in completions(name)]
    assert {*STAGES, "tune", "results", "config"} - {"pull", "preprocess"} <= {*takes}
    lines = [f"{name} digits-mlpx" for name in takes]
    lines += ["pull digitsx", "preprocess digitsx", "results digits-mlpx --publish there"]
    lines += ["parity model.onnx digits-mlpx:int8@cpu --data digits:test"]
    done = python(REFUSED, *lines, cwd=folder)
    assert done.returncode == 0, done.stderr
    *refused, imported = done.stdout.splitlines()
    assert len(refused) == len(lines)
    for line in refused:
        assert re.match(r"2 Error: no (experiment|data set) named '\S+'; did you mean ", line)
    assert not set(imported.split()) & set(HEAVY) - {"numpy", "pydantic", "yaml"}


REFUSED = """
import sys
from click.testing import CliRunner
from pipeline.cli import ferry
for line in sys.argv[1:]:
    done = CliRunner().invoke(ferry, line.split(), prog_name="ferry")
    print(done.exit_code, done.stderr.strip())
print(*sys.modules)
"""


def completions(name: str) -> list[object]:
    """How the arguments of a command are completed."""
    return [one._custom_shell_complete for one in ferry.commands[name].params]


MAKES = {
    "preprocess digits": "ferry pull digits",
    "train digits-mlp": "ferry preprocess digits",
    "quantize digits-mlp": "ferry export digits-mlp",
}


@pytest.mark.parametrize("command", MAKES)
def test_a_stage_that_comes_too_early_names_the_one_before(folder: Path, command: str) -> None:
    result = invoke(*command.split())
    assert result.exit_code == 1
    assert f"`{MAKES[command]}` makes it" in one_line(result)
    assert [path.name for path in folder.iterdir()] == ["params.yaml"], "nothing was written"


def test_an_export_without_weights_names_the_training(folder: Path) -> None:
    assert invoke("pull", "digits").exit_code == 0
    done = invoke("preprocess", "digits", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["dataset"] == "digits"
    result = invoke("export", "digits-mlp")
    assert result.exit_code == 1
    assert one_line(result) == (
        "Error: models/digits-mlp/model.safetensors is not there; `ferry train digits-mlp` makes it"
    )
    assert not (folder / "models").exists()


@pytest.mark.parametrize("name", [name for name in COMMANDS if name in (*STAGES, "report")])
def test_without_params_yaml(folder: Path, name: str) -> None:
    (folder / "params.yaml").unlink()
    result = invoke(name, *ARGUMENT.get(name, ["digits-mlp"]))
    assert result.exit_code == 1
    assert "Error: params.yaml is not there; run ferry where" in one_line(result)


def test_a_wrong_key_stops_the_commands_of_its_experiment_alone(folder: Path) -> None:
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("    epochs: 60", "    epochs: sixty", 1))
    message = "experiments.digits-mlp.epochs must be an integer, got 'sixty'"
    stopped = invoke("train", "digits-mlp")
    assert stopped.exit_code == 2
    assert one_line(stopped) == f"Error: {message}"
    other = invoke("train", "digits-cnn")
    assert "`ferry preprocess digits` makes it" in one_line(other)
    for name in ("results", "list"):
        going_on = invoke(name)
        assert going_on.exit_code == 0
        assert going_on.stderr.splitlines()[0] == f"Warning: {message}; left out"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing argument 'EXPERIMENT'"),
        (["train", "digits-mlp", "--device", "tpu"], "'tpu' is not one of"),
        (["train", "digits-mlp", "--devise", "cpu"], "No such option"),
        (["pull", "digits", "mnist"], "unexpected extra argument"),
    ],
)
def test_wrong_usage(folder: Path, arguments: list[str], expected: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert expected in result.stderr


def test_a_folder_to_work_in(folder: Path) -> None:
    (folder / "other").mkdir()
    shutil.copy(ROOT / "params.yaml", folder / "other")
    result = invoke("-C", "other", "pull", "digits", "--json")
    assert result.exit_code == 0, result.stderr
    assert (folder / "other" / "data" / "raw" / "digits").is_dir()
    assert json.loads(result.stdout)["files"]


def test_a_folder_that_is_not_there(folder: Path) -> None:
    result = invoke("-C", "nowhere", "pull", "digits")
    assert result.exit_code in (1, 2)
    assert "nowhere" in one_line(result)


# Environment variables


def test_the_folder_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "other").mkdir()
    shutil.copy(ROOT / "params.yaml", folder / "other")
    monkeypatch.setenv("FERRY_DIRECTORY", "other")
    assert invoke("pull", "digits").exit_code == 0
    assert (folder / "other" / "data" / "raw" / "digits").is_dir()


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("FERRY_TRAIN_DEVICE", "tpu", "'tpu' is not one of"),
        ("FERRY_TRACK", "perhaps", "'perhaps' is not a valid boolean"),
    ],
)
def test_options_are_read_from_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(variable, value)
    result = invoke("train", "digits-mlp")
    assert result.exit_code == 2
    assert expected in result.stderr


def test_the_mirror_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = folder / "mirror" / "mnist"
    mirror.mkdir(parents=True)
    (mirror / "t10k-labels-idx1-ubyte.gz").write_bytes(b"not what it should be")
    text = invoke("pull", "--help").stdout
    assert "FERRY_MIRROR" in text
    seen: list[str | None] = []
    monkeypatch.setattr(ferry.commands["pull"], "callback", lambda mirror, **_: seen.append(mirror))
    monkeypatch.setenv("FERRY_MIRROR", str(mirror.parent))
    assert invoke("pull", "mnist").exit_code == 0
    assert invoke("pull", "mnist", "--mirror", "other").exit_code == 0
    assert seen == [str(mirror.parent), "other"]


def test_json_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRY_PULL_JSON", "1")
    assert json.loads(invoke("pull", "digits").stdout)["files"]
    monkeypatch.setenv("FERRY_PULL_JSON", "0")
    assert invoke("pull", "digits").stdout.startswith("digits: ")


# Missing packages


BLOCKED = """
import json, sys
from importlib.abc import MetaPathFinder

class Hiding(MetaPathFinder):
    def __init__(self, finder, hidden):
        self.finder, self.hidden = finder, hidden
    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in self.hidden:
            return None
        return self.finder.find_spec(fullname, path, target)
sys.meta_path[:] = [Hiding(finder, sys.argv[1].split(",")) for finder in sys.meta_path]

from click.testing import CliRunner
from pipeline.cli import ferry
results = []
for line in sys.argv[2:]:
    done = CliRunner().invoke(ferry, line.split(), prog_name="ferry")
    crashed = done.exception is not None and not isinstance(done.exception, SystemExit)
    results.append([done.exit_code, done.stdout, done.stderr, crashed and repr(done.exception)])
print(json.dumps(results))
"""


def without(packages: tuple[str, ...], *commands: str, cwd: Path) -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of commands where some packages cannot be imported."""
    done = python(BLOCKED, ",".join(packages), *commands, cwd=cwd)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == len(commands)
    for command, (*_, crash) in zip(commands, results, strict=True):
        assert not crash, f"ferry {command}: {crash}"
    return [(status, out, err) for status, out, err, _ in results]


def test_without_the_extra_every_command_of_the_pipeline_names_it(folder: Path) -> None:
    names = [*STAGES, "report", "results"]
    commands = [" ".join([name, *ARGUMENT.get(name, ["digits-mlp"])]) for name in names]
    for name, (status, out, err) in zip(names, without(EXTRA, *commands, cwd=folder), strict=True):
        assert (status, out) == (1, ""), name
        assert err.startswith(f"Error: `ferry {name}` needs "), name
        assert err.endswith(": pip install 'onnx-ferry[pipeline]'\n"), name
        assert len(err.splitlines()) == 1, name


@pytest.mark.parametrize("package", ["torch", "yaml", "pydantic"])
def test_without_one_package_training_names_it(folder: Path, package: str) -> None:
    ((status, _, err),) = without((package,), "train digits-mlp", cwd=folder)
    line = f"Error: `ferry train` needs {package}: pip install 'onnx-ferry[pipeline]'\n"
    assert (status, err) == (1, line)


def test_without_the_extra_serving_works(folder: Path) -> None:
    helps = [f"{name} --help" for name in COMMANDS]
    for status, out, err in without(EXTRA, *helps, cwd=folder):
        assert (status, err) == (0, "")
        assert "Example: ferry " in out


def test_without_the_extra_doctor_works(folder: Path) -> None:
    text, as_json = without(EXTRA, "doctor", "doctor --json", cwd=folder)
    assert text[0] in (0, 1)
    assert text[1]
    assert json.loads(as_json[1])
