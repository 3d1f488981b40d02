"""Passwords and signatures in the addresses that the pipeline is given are shown nowhere."""

import logging
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from file_server import FileServer
from mlflow import MlflowClient
from project import REPOSITORY
from sample_metrics import PredictedRows

from pipeline.cli import ferry
from pipeline.commands.predict import log_predictions
from pipeline.datasets import _download
from pipeline.errors import running
from pipeline.tracking import run_of_predictions
from pipeline.tracking.store import store_key, store_uri
from serving.errors import ModelError

SECRET = "hunter2%2FhUNTER"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(ferry, arguments)


def assert_kept(result: Result) -> None:
    assert SECRET not in result.stdout + result.stderr


def assert_left_nowhere(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert SECRET not in path.name
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this project's settings, with a mirror that needs a password."""
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    begin = text.index("mirrors:")
    end = text.index("\n", begin)
    mirror = f"mirrors: ['http://user:{SECRET}@127.0.0.1:9/m?sig={SECRET}']"
    (tmp_path / "params.yaml").write_text(text[:begin] + mirror + text[end:])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_download, "PAUSES", ())
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path


def test_mirrors_and_their_errors(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileServer() as server:
        address = server.url.replace("//", f"//user:{SECRET}@")
        monkeypatch.setenv("FERRY_MIRROR", f"{address}/m?token={SECRET}")
        # The official addresses are of no interest here.
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        result = invoke("pull", "rt_polarity")
    assert result.exit_code == 1
    assert_kept(result)
    assert "user:***@" in result.stderr
    assert "?token=***: 404" in result.stderr
    (project / "params.yaml").unlink()  # which is the user's own
    assert_left_nowhere(project)
    (asked, _), *_ = server.seen
    assert asked.startswith("/m/rt-polarity/")
    assert asked.endswith(f"?token={SECRET}"), "the address itself is whole"


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_settings(project: Path, more: tuple[str, ...]) -> None:
    assert_kept(invoke("config", "digits-mlp", *more))
    assert_kept(invoke("list", *more))


@pytest.mark.parametrize("command", ["pull", "train", "export", "data", "bundle", "lint", "new"])
def test_a_name_that_is_an_address(project: Path, command: str) -> None:
    result = invoke(command, f"http://user:{SECRET}@h/x?token={SECRET}")
    assert result.exit_code
    assert_kept(result)


def test_what_a_users_own_code_raises() -> None:
    with pytest.raises(ModelError, match=r"reading: ValueError: no http://u:\*\*\*@h"):  # noqa: SIM117
        with running("reading"):
            raise ValueError(f"no http://u:{SECRET}@h")


def test_mlflow_keeps_none(store: Path) -> None:
    log_predictions(PredictedRows(), [f"s3://b/a?X-Amz-Signature={SECRET}"])  # type: ignore[arg-type]
    client = MlflowClient(store_uri())
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert run.data.params["inputs"] == "s3://b/a?X-Amz-Signature=***"
    with run_of_predictions("net") as tracker:
        tracker.log_tags({"note": f"http://u:{SECRET}@h"})
    assert_left_nowhere(store)


def test_a_server_that_is_down(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@127.0.0.1:9")
    caplog.set_level(logging.INFO)
    log_predictions(PredictedRows(), ["a.npy"])  # type: ignore[arg-type]
    assert "does not have all of this run yet" in caplog.text
    assert SECRET not in caplog.text
    for command in (("ui",), ("doctor", "--json"), ("track",), ("track", "--json")):
        assert_kept(invoke(*command))
    assert_left_nowhere(store)


def test_another_password_leads_to_the_same_store(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@127.0.0.1:9")
    key = store_key()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:other@127.0.0.1:9")
    assert store_key() == key
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:other@127.0.0.1:8")
    assert store_key() != key
