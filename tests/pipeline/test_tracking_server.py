"""Runs that are recorded in a real MLflow server over HTTP, which asks for a password."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient, set_tracking_uri
from tracking_server import PASSWORD, USER, TrackingServer

from pipeline.commands.predict import log_predictions
from pipeline.tracking.store import artifact_root, open_store

pytestmark = pytest.mark.slow


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is read of a `PredictReport`."""

    model: Path = Path("net.onnx")
    model_sha256: str = "ab" * 32
    rows: int = 12
    errors: int = 0
    seconds: float = 2.5
    rows_per_second: float = 4.8
    drift: None = None


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A folder without a store, where MLflow knows of no server and no user."""
    monkeypatch.chdir(tmp_path)
    for name in ("URI", "USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")
    yield
    set_tracking_uri(None)  # type: ignore[arg-type]


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
    way: str, auth_server: TrackingServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(auth_server, way, monkeypatch)
    identifier = log_predictions(Report(), ["a.npy"])  # type: ignore[arg-type]
    run = MlflowClient(auth_server.url_of()).get_run(identifier or "")
    assert run.info.status == "FINISHED"
    assert run.data.params["inputs"] == "a.npy"
    assert run.data.metrics["rows"] == 12
    mlflow = open_store()
    with mlflow.start_run(run_id=identifier):
        mlflow.log_text("found", "note.txt")
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/note.txt") == "found"
    assert artifact_root() is None
    assert list(tmp_path.iterdir()) == [], "nothing is kept here"


def test_a_wrong_password_is_told_and_not_shown(
    auth_server: TrackingServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", auth_server.url_of("wrong-horse"))
    assert log_predictions(Report(), ["a.npy"]) is None  # type: ignore[arg-type]
    assert "did not record" in caplog.text
    assert "wrong-horse" not in caplog.text
