"""Trials of a search, here or in processes of their own: how each of them ends."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from project import REPOSITORY
from training import searching

from pipeline.config import layout
from pipeline.config.experiment import Params
from pipeline.records.train import Epoch
from pipeline.records.tune import Setting
from pipeline.training.tuning.workers import TrialJob, TrialOutcome, TrialWorker, run, workers
from serving.errors import FerryError


def job_of(data: Path, params: Params) -> TrialJob:
    experiment = searching(params, {"train.lr": (0.1,)}, epochs=2)
    return TrialJob(data=data, weights=Path("m/w"), experiment=experiment, neighbours=2)


@pytest.fixture(scope="module")
def data(ready: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A link to the digits, which a test can take away."""
    link = tmp_path_factory.mktemp("data") / "digits"
    link.symlink_to(ready / layout.ready("digits"))
    return link


@pytest.fixture(scope="module")
def worker(data: Path, params: Params) -> Iterator[TrialWorker]:
    with workers(job_of(data, params), 1) as team:
        yield team[0]


def hear(worker: TrialWorker) -> list[Epoch | TrialOutcome]:
    """All that it tells about one trial."""
    message = [worker.receive()]
    while isinstance(message[-1], Epoch):
        worker.answer(go_on=True)
        message.append(worker.receive())
    return message


def test_epochs_and_the_end_are_told(worker: TrialWorker) -> None:
    worker.begin(3, {"model.hidden": (4, 4)})
    assert worker.trial == 3
    *epochs, outcome = hear(worker)
    assert isinstance(outcome, TrialOutcome)
    assert outcome.state == "complete"
    assert list(outcome.epochs) == epochs
    assert len(epochs) == 2


def test_an_answer_ends_a_trial(worker: TrialWorker) -> None:
    worker.begin(4, {"train.lr": 0.02})
    assert isinstance(worker.receive(), Epoch)
    worker.answer(go_on=False)
    outcome = worker.receive()
    assert isinstance(outcome, TrialOutcome)
    assert outcome.state == "pruned"


def test_one_that_dies_is_a_failed_trial_and_starts_again(worker: TrialWorker) -> None:
    worker.begin(5, {"train.lr": 0.02})
    worker.receive()
    worker._process.kill()
    outcome = worker.receive()
    assert isinstance(outcome, TrialOutcome)
    assert (outcome.state, outcome.reason) == ("failed", "its process ended with status -9")
    worker.begin(6, {"train.lr": 0.02})
    assert len(hear(worker)) == 3


def test_what_would_stop_every_trial_is_raised(worker: TrialWorker, data: Path) -> None:
    digits = data.readlink()
    data.unlink()
    worker.begin(7, {"train.lr": 0.1})
    with pytest.raises(FerryError, match="ferry preprocess"):
        worker.receive()
    data.symlink_to(digits)


ORPHANS = """
import sys, time
from pathlib import Path
from pipeline.config.params import load
from pipeline.training.tuning.workers import TrialJob
from pipeline.training.tuning.workers import workers

if __name__ == "__main__":
    experiment = load(Path("params.yaml")).experiment("digits-mlp")
    job = TrialJob(data=Path("x"), weights=Path("y"), experiment=experiment, neighbours=1)
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


@pytest.fixture
def job(ready: Path, params: Params, tmp_path: Path) -> TrialJob:
    """With the data but its test set."""
    data = tmp_path / "data"
    shutil.copytree(ready / layout.ready("digits"), data)
    for path in data.glob("test_*"):
        path.unlink()
    experiment = searching(params, {"train.lr": (0.1,)}, epochs=3)
    return TrialJob(data=data, weights=tmp_path / "m/w", experiment=experiment, neighbours=1)


def outcome(job: TrialJob, settings: dict[str, Setting], stop_after: int = 99) -> TrialOutcome:
    return run(job, settings, lambda epoch: epoch.epoch < stop_after)


def test_a_training_tells_each_epoch_and_writes_nothing(job: TrialJob) -> None:
    message: list[Epoch] = []
    done = run(job, {"train.lr": 0.02}, lambda epoch: not message.append(epoch))
    assert done.state == "complete"
    assert list(done.epochs) == message
    assert [epoch.epoch for epoch in message] == [1, 2, 3]
    assert (message[-1].validation_accuracy or 0) > 0.5
    assert not job.weights.parent.exists()
    assert done.epochs[-1].loss == outcome(job, {"train.lr": 0.02}).epochs[-1].loss


def test_it_ends_when_it_is_not_worth_going_on(job: TrialJob) -> None:
    assert outcome(job, {"train.lr": 0.02}, 1).state == "pruned"
    assert len(outcome(job, {"train.lr": 0.02}, 2).epochs) == 2
    # There is nothing to save behind the last epoch.
    assert outcome(job, {"train.lr": 0.02}, 3).state == "complete"


def test_a_loss_that_is_no_number_ends_the_trial_alone(job: TrialJob) -> None:
    done = outcome(job, {"train.lr": 1e30, "train.optimizer": "sgd", "train.momentum": 0.9})
    assert done.state == "diverged"
    assert "learning rate" in (done.reason or "")


def test_settings_that_do_not_fit_together_end_the_trial_alone(job: TrialJob) -> None:
    done = outcome(job, {"train.loss": "mean_squared_error"})
    assert (done.state, done.epochs) == ("failed", ())
    assert "mean_squared_error does not fit digits" in (done.reason or "")
