"""Runs that are recorded in a real MLflow server over HTTP, which asks for a password."""

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from sample_metrics import PredictedRows
from tracking_server import PASSWORD, USER, TrackingServer

from pipeline.commands.predict import log_predictions
from pipeline.tracking.sending import sync
from pipeline.tracking.store import artifact_root, open_store

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take long for an answer."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "90")


def run_of(server: TrackingServer, identifier: str) -> Any:
    """The run that the server has of a journal."""
    client = MlflowClient(server.url_of())
    experiment = client.get_experiment_by_name("net")
    assert experiment
    found = client.search_runs([experiment.experiment_id], f"tags.`ferry.run` = '{identifier}'")
    (run,) = found
    return run


def use(server: TrackingServer, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the user in the environment or in the address."""
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", server.url if way == "environment" else server.url_of()
    )
    if way == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


@pytest.mark.parametrize("way", ["environment", "address"])
def test_a_run_is_recorded(
    way: str, auth_server: TrackingServer, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    use(auth_server, way, monkeypatch)
    identifier = log_predictions(PredictedRows(), ["a.npy"])  # type: ignore[arg-type]
    run = run_of(auth_server, identifier or "")
    assert run.info.status == "FINISHED"
    assert run.data.params["inputs"] == "a.npy"
    assert run.data.metrics["rows"] == 1200
    mlflow = open_store()
    mlflow.MlflowClient().log_text(run.info.run_id, "found", "note.txt")
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/note.txt") == "found"
    assert artifact_root() is None
    assert not (store / "mlruns").exists(), "nothing is kept here"


def test_a_wrong_password_is_told_and_not_shown(
    auth_server: TrackingServer,
    monkeypatch: pytest.MonkeyPatch,
    store: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", auth_server.url_of("wrong-horse"))
    identifier = log_predictions(PredictedRows(), ["a.npy"])  # type: ignore[arg-type]
    assert "does not have all of this run yet" in caplog.text
    kept = "".join(path.read_text() for path in store.glob("tracking/*/*.json*"))
    assert "wrong-horse" not in caplog.text + kept
    monkeypatch.setenv("MLFLOW_TRACKING_URI", auth_server.url_of())
    sync(lambda _: None)
    assert run_of(auth_server, identifier or "").info.status == "FINISHED"
