"""Several processes: they see what one sees, reach its weights, and fail together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from click.testing import CliRunner
from project import REPOSITORY
from safetensors.torch import load_file

from pipeline.cli import ferry
from pipeline.errors import ConfigError
from pipeline.training.distributed import Team, join

CPU = torch.device("cpu")


def test_alone_nothing_is_shared() -> None:
    network = torch.nn.Linear(2, 2)
    with join(CPU) as team:
        assert (team.rank, team.size, team.leads) == (0, 1, True)
        assert team.parallel(network) is network
        assert team.share(b"all") == b"all"
        assert team.total(torch.ones(2)).tolist() == [1, 1]
        assert team.part(7, where="x") == slice(0, 7)


def test_the_parts_make_up_the_batch() -> None:
    parts = [Team(device=CPU, rank=rank, size=4).part(12, where="x") for rank in range(4)]
    rows = [row for part in parts for row in range(12)[part]]
    assert rows == list(range(12))


def test_a_batch_that_cannot_be_shared_alike_is_refused() -> None:
    message = r"experiments\.a\.train\.batch_size: 9 rows cannot be shared .* by 2 processes"
    with pytest.raises(ConfigError, match=message):
        Team(device=CPU, size=2).part(9, where="experiments.a")


@pytest.fixture
def project(tmp_path: Path, ready: Path) -> Path:
    return small_project(tmp_path, ready)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, ready: Path) -> Path:
    """The project, trained by two processes that nobody disturbs."""
    folder = small_project(tmp_path_factory.mktemp("together"), ready)
    done = start(folder, *LAUNCHER)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["processes"] == 2, "one report on stdout, not two"
    return folder


def small_project(folder: Path, ready: Path) -> Path:
    """A folder with a small experiment without dropout and with every draw of the order."""
    text = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    section = text["experiments"]["digits-mlp"]
    section["model"] |= {"hidden": [16], "dropout": 0}
    section["train"] |= {"batch_size": 60, "early_stop": 0, "clip": 1.0, "ema": 0.5}
    section["train"]["augment"] = {"translate": 1, "flip": True}
    section["epochs"] = 20
    (folder / "params.yaml").write_text(yaml.safe_dump(text))
    (folder / "data").symlink_to(ready / "data")
    return folder


OPTIONS = ["train", "digits-mlp", "--no-track", "--device", "cpu", "--json"]


def command(*launcher: str) -> list[str]:
    return [sys.executable, *launcher, "-m", "pipeline.cli", *OPTIONS]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def start(project: Path, *launcher: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*launcher), cwd=project, env=environment(), capture_output=True, text=True
    )


LAUNCHER = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")


def results(project: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    report = json.loads((project / "reports/details/digits-mlp/train.json").read_text())
    return report, load_file(project / "models/digits-mlp/model.safetensors")


@pytest.mark.slow
def test_two_processes_reach_the_weights_of_one(
    project: Path, together: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    alone = CliRunner().invoke(ferry, OPTIONS)
    assert alone.exit_code == 0, alone.stderr
    one, expected = results(project)
    two, found = results(together)
    assert (one["processes"], two["processes"]) == (1, 2)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=2e-5, rtol=1e-4, msg=key)
    for one_epoch, other in zip(one["history"], two["history"], strict=True):
        assert other["loss"] == pytest.approx(one_epoch["loss"], rel=1e-4)
        assert other["accuracy"] == pytest.approx(one_epoch["accuracy"], abs=2e-3)
    assert sorted(path.name for path in (together / "models/digits-mlp").iterdir()) == [
        "model.safetensors",
        "model.safetensors.sha256",
    ]


@pytest.mark.slow
def test_two_processes_that_were_killed_go_on(project: Path, together: Path) -> None:
    folder = project / "models/digits-mlp"
    with (project / "log").open("wb") as log:
        running = subprocess.Popen(
            command(*LAUNCHER), cwd=project, env=environment(), stdout=log, stderr=log
        )
        while running.poll() is None and not (folder / "checkpoint.safetensors").exists():
            time.sleep(0.02)
        processes = [running.pid, *(child.pid for child in psutil.Process(running.pid).children())]
        for process in processes:
            os.kill(process, signal.SIGKILL)
        running.wait()
    assert not (folder / "model.safetensors").exists()
    resumed = start(project, *LAUNCHER)
    assert resumed.returncode == 0, resumed.stderr
    assert "goes on after epoch" in resumed.stderr
    assert results(project)[0]["weights_sha256"] == results(together)[0]["weights_sha256"]
