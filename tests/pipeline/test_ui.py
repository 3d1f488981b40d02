"""`ferry ui`: MLflow's pages of the project's runs, until Ctrl-C and no longer."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from project import REPOSITORY

from pipeline.cli import ferry


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        free = one.getsockname()[1]
    yield free
    with socket.socket() as one:
        assert one.connect_ex(("127.0.0.1", free)) != 0, "nothing serves any more"


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(ferry, ["ui", *arguments])
    assert len(result.stderr.splitlines()) == 1
    return result


@pytest.mark.slow
def test_the_pages_are_served_until_ctrl_c(store: Path, port: int) -> None:
    (store / "params.yaml").touch()
    (store / "below").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "ui", "--port", str(port), "--json"],
        cwd=store / "below",
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    said = "".join(process.stdout.readline() for _ in range(3))
    address = json.loads(said)["url"]
    with urllib.request.urlopen(address) as page:
        assert b"<title>MLflow</title>" in page.read()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "Ctrl-C ends it\n")


def test_a_port_that_is_taken(store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        taken = str(one.getsockname()[1])
        result = invoke("--port", taken)
    assert result.exit_code == 2
    assert f"--port {taken} of 127.0.0.1 is taken" in result.stderr


def test_where_nothing_was_recorded(store: Path) -> None:
    (store / "mlflow.db").unlink()
    result = invoke()
    assert result.exit_code == 1
    assert "mlflow.db is not there; `ferry train EXPERIMENT` makes it" in result.stderr
    assert not (store / "mlflow.db").exists()


def test_runs_that_are_kept_elsewhere(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://runs.example.org")
    result = invoke()
    assert result.exit_code == 2
    assert "the runs are kept at http://runs.example.org: open that" in result.stderr


def test_a_store_that_cannot_be_used_is_told(store: Path) -> None:
    (store / "mlflow.db").unlink()
    (store / "mlflow.db").mkdir()
    result = invoke()
    assert result.exit_code == 1
    assert f"the store of runs {store}/mlflow.db cannot be used: unable to open" in result.stderr
