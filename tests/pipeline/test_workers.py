"""Processes of a search: what they tell, and that one that dies costs one trial."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from project import REPOSITORY
from searches import searching

from pipeline import layout
from pipeline.config.experiment import Params
from pipeline.records.train import Epoch
from pipeline.training.tuning.workers import Job, Outcome, Worker, workers
from serving.errors import FerryError


def job_of(data: Path, params: Params) -> Job:
    experiment = searching(params, {"train.lr": (0.1,)}, epochs=2)
    return Job(data=data, weights=Path("m/w"), experiment=experiment, neighbours=2)


@pytest.fixture(scope="module")
def worker(ready: Path, params: Params) -> Iterator[Worker]:
    with workers(job_of(ready / layout.ready("digits"), params), 1) as team:
        yield team[0]


def hear(worker: Worker) -> list[Epoch | Outcome]:
    """All that it tells about one trial."""
    message = [worker.receive()]
    while isinstance(message[-1], Epoch):
        worker.answer(go_on=True)
        message.append(worker.receive())
    return message


def test_epochs_and_the_end_are_told(worker: Worker) -> None:
    worker.begin(3, {"model.hidden": (4, 4)})
    assert worker.trial == 3
    *epochs, outcome = hear(worker)
    assert isinstance(outcome, Outcome)
    assert outcome.state == "complete"
    assert list(outcome.epochs) == epochs
    assert len(epochs) == 2


def test_an_answer_ends_a_trial(worker: Worker) -> None:
    worker.begin(4, {"train.lr": 0.02})
    assert isinstance(worker.receive(), Epoch)
    worker.answer(go_on=False)
    outcome = worker.receive()
    assert isinstance(outcome, Outcome)
    assert outcome.state == "pruned"


def test_one_that_dies_is_a_failed_trial_and_starts_again(worker: Worker) -> None:
    worker.begin(5, {"train.lr": 0.02})
    worker.receive()
    worker._process.kill()
    outcome = worker.receive()
    assert isinstance(outcome, Outcome)
    assert (outcome.state, outcome.reason) == ("failed", "its process ended with status -9")
    worker.begin(6, {"train.lr": 0.02})
    assert len(hear(worker)) == 3


def test_what_would_stop_every_trial_is_raised(tmp_path: Path, params: Params) -> None:
    with workers(job_of(tmp_path / "nowhere", params), 1) as (lost,):
        lost.begin(0, {"train.lr": 0.1})
        with pytest.raises(FerryError, match="ferry preprocess"):
            lost.receive()


ORPHANS = """
import sys, time
from pathlib import Path
from pipeline.config.params import load
from pipeline.training.tuning.workers import Job
from pipeline.training.tuning.workers import workers

if __name__ == "__main__":
    experiment = load(Path("params.yaml")).experiment("digits-mlp")
    job = Job(data=Path("x"), weights=Path("y"), experiment=experiment, neighbours=1)
    with workers(job, 1) as team:
        sys.stdout.write(f"{team[0]._process.pid}\\n")
        sys.stdout.flush()
        time.sleep(60)
"""


def test_they_do_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)
