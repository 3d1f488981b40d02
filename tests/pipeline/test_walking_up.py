"""Commands below the folder of params.yaml: they go up to it, and what is typed stays in place."""

import json
import shutil
from pathlib import Path

import pytest
import sample_metrics
from click.testing import CliRunner, Result
from project import REPOSITORY

from pipeline.cli import ferry
from pipeline.config import layout
from pipeline.config.experiment import BundleConfig
from pipeline.config.params import stage_defaults
from pipeline.stages import pull
from pipeline.tracking.store import store_uri


@pytest.fixture
def below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory two folders below params.yaml."""
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    folder = tmp_path / "notes" / "today"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("FERRY_MIRROR", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(ferry, arguments)


def test_a_command_works_in_the_folder_of_params_yaml(below: Path) -> None:
    assert invoke("pull", "digits").exit_code == 0
    assert (below / "../../data/raw/digits").is_dir()
    assert list(below.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "used"), [("mirror", "notes/today/mirror"), ("https://a.b/c", "https://a.b/c")]
)
def test_a_mirror_is_named_from_where_one_is(
    below: Path, monkeypatch: pytest.MonkeyPatch, typed: str, used: str
) -> None:
    seen = []
    # The real one would go on with the official addresses.
    monkeypatch.setattr(pull, "_checked", lambda mirror, *_: seen.append(mirror))
    invoke("pull", "digits", "--mirror", typed)
    assert seen == [used]


def test_a_file_is_named_from_where_one_is(below: Path) -> None:
    result = invoke("lint", "net.onnx")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: net.onnx")


def test_a_file_beside_an_experiment_is_named_from_where_one_is(below: Path) -> None:
    result = invoke("parity", "net.onnx", "digits-mlp", "--data", "digits:test")
    assert result.stderr == (
        "Error: notes/today/net.onnx is not there; it should be an ONNX file or a bundle\n"
    )


def test_what_is_printed_to_be_typed_works_from_where_one_is(below: Path) -> None:
    sample_metrics.write_all(below.parents[1], "mnist-cnn")
    result = invoke("results")
    assert "Report   ../../reports/index.html " in result.stderr
    assert " -C ../.. predict bundles/mnist-cnn " in result.stderr


def test_a_file_takes_the_defaults_of_the_project(below: Path) -> None:
    path = below / "../../params.yaml"
    path.write_text(path.read_text().replace("golden_rows: 64", "golden_rows: 7"))
    assert stage_defaults("bundle", BundleConfig).golden_rows == 7
    assert Path.cwd() == below


def test_runs_are_kept_beside_params_yaml(below: Path) -> None:
    assert store_uri() == f"sqlite:///{below.parents[1]}/mlflow.db"


def test_the_nearest_params_yaml_is_taken(below: Path) -> None:
    assert layout.project() == Path("../..")
    (below.parent / "params.yaml").write_text("")
    assert layout.project() == Path("..")


def test_a_folder_that_is_named_is_left_upwards_too(below: Path) -> None:
    result = invoke("-C", "..", "config", "digits-mlp", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["epochs"]["value"] == 60
