"""The same rows from a cluster of Ray, as exact when the run is stopped."""

import importlib.util
import ipaddress
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from tiny_classifier import images

from serving.batch.engine import Answered, import_ray
from serving.batch.predict import ShardedOutput, predict
from serving.batch.run import PredictOptions
from serving.errors import EngineError, UsageError

LACKING = importlib.util.find_spec("ray") is None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(LACKING, reason="ray is not installed: pip install 'onnx-ferry[ray]'"),
]

LOCAL = PredictOptions(workers=2, batch_rows=8, limit=3020, top_k=2)
RAY = replace(LOCAL, engine="ray")


@pytest.fixture
def source(tmp_path: Path) -> list[str]:
    """Rows, and images of which one cannot be read: several chunks, in two sources."""
    np.save(tmp_path / "rows.npy", images(3000))
    folder = tmp_path / "images"
    folder.mkdir()
    for index, row in enumerate(images(30)):
        Image.fromarray(row[..., 0]).save(folder / f"{index:02}.png")
    (folder / "07.png").write_bytes(b"")
    return [str(tmp_path / "rows.npy"), str(folder)]


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """An entry for each run that left the cluster, which all runs of a test share."""
    ray = import_ray(None)
    left: list[bool] = []
    init, shutdown = ray.init, ray.shutdown
    monkeypatch.setattr(ray, "init", lambda **given: ray.is_initialized() or init(**given))
    monkeypatch.setattr(ray, "shutdown", lambda: left.append(True))
    yield left
    shutdown()


def test_two_actors_write_what_this_machine_writes(
    model_file: Path,
    source: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left: list[bool],
) -> None:
    predict(model_file, source, output=tmp_path / "local.csv", options=LOCAL)
    output = tmp_path / "ray.csv"
    monkeypatch.setattr("serving.batch.predict.SHARD_ROWS", 1)
    take = ShardedOutput.take

    def take_and_be_told(self: ShardedOutput, one: Answered) -> None:
        take(self, one)
        signal.raise_signal(signal.SIGTERM)  # Ray has a handler of its own

    with monkeypatch.context() as told:
        told.setattr(ShardedOutput, "take", take_and_be_told)
        stopped = predict(model_file, source, output=output, options=RAY)
    assert (stopped.stopped, stopped.rows, left) == ("SIGTERM", 1024, [True])
    report = predict(model_file, source, output=output, options=RAY)
    assert left == [True, True]
    assert {ipaddress.ip_address(one).is_loopback for one in listening()} == {True}
    assert (report.rows, report.errors, report.resumed_rows) == (3019, 1, 1024)
    assert output.read_bytes() == (tmp_path / "local.csv").read_bytes()
    (line,) = (tmp_path / "ray.csv.errors.jsonl").read_text().splitlines()
    assert json.loads(line)["id"].endswith("07.png")


def listening() -> set[str]:
    """The addresses on which this process and those that it started take connections."""
    this = psutil.Process()
    return {
        found.laddr.ip.removeprefix("::ffff:")
        for process in [this, *this.children(recursive=True)]
        for found in process.net_connections("inet")
        if found.status == psutil.CONN_LISTEN
    }


def test_what_is_there_stays_where_a_cluster_cannot_be_used(
    model_file: Path, source: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    predict(model_file, source, output=output, options=LOCAL)
    before = {path: path.read_bytes() for path in output.iterdir()}
    options = replace(RAY, overwrite=True)
    with pytest.raises(UsageError, match="--engine ray reads files; a stream is for"):
        predict(model_file, ["-"], output=output, options=options)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError):
        predict(model_file, source, output=output, options=options)
    assert {path: path.read_bytes() for path in output.iterdir()} == before


def test_a_cluster_that_is_not_there(model_file: Path, source: list[str], tmp_path: Path) -> None:
    options = PredictOptions(engine="ray", ray_address="127.0.0.1:1")
    with pytest.raises(EngineError, match=r"Ray cannot be reached at 127\.0\.0\.1:1"):
        predict(model_file, source, output=tmp_path / "out.csv", options=options)


def test_without_ray_the_command_says_what_to_install(
    model_file: Path, source: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from serving.cli import serving

    monkeypatch.setitem(sys.modules, "ray", None)
    result = CliRunner().invoke(serving, ["predict", str(model_file), *source, "--engine", "ray"])
    assert result.exit_code == 1
    assert "needs ray: pip install 'onnx-ferry[ray]'" in result.stderr
