"""One training of a search: how it ends, and that it neither reads the test set nor writes."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from searches import searching

from pipeline import layout
from pipeline.config.experiment import Params
from pipeline.records.train import Epoch
from pipeline.records.tune import Setting
from pipeline.training.tuning.workers import Job, Outcome, run
from serving.errors import MissingInputError


@pytest.fixture
def job(ready: Path, params: Params, tmp_path: Path) -> Job:
    """With the data but its test set."""
    data = tmp_path / "data"
    shutil.copytree(ready / layout.ready("digits"), data)
    for path in data.glob("test_*"):
        path.unlink()
    experiment = searching(params, {"train.lr": (0.1,)}, epochs=3)
    return Job(data=data, weights=tmp_path / "m/w", experiment=experiment, neighbours=1)


def outcome(job: Job, settings: dict[str, Setting], stop_after: int = 99) -> Outcome:
    return run(job, settings, lambda epoch: epoch.epoch < stop_after)


def test_a_training_tells_each_epoch_and_writes_nothing(job: Job) -> None:
    message: list[Epoch] = []
    done = run(job, {"train.lr": 0.02}, lambda epoch: not message.append(epoch))
    assert done.state == "complete"
    assert list(done.epochs) == message
    assert [epoch.epoch for epoch in message] == [1, 2, 3]
    assert (message[-1].validation_accuracy or 0) > 0.5
    assert not job.weights.parent.exists()
    assert done.epochs[-1].loss == outcome(job, {"train.lr": 0.02}).epochs[-1].loss


def test_it_ends_when_it_is_not_worth_going_on(job: Job) -> None:
    assert outcome(job, {"train.lr": 0.02}, 1).state == "pruned"
    assert len(outcome(job, {"train.lr": 0.02}, 2).epochs) == 2
    # There is nothing to save behind the last epoch.
    assert outcome(job, {"train.lr": 0.02}, 3).state == "complete"


def test_a_loss_that_is_no_number_ends_the_trial_alone(job: Job) -> None:
    done = outcome(job, {"train.lr": 1e30, "train.optimizer": "sgd", "train.momentum": 0.9})
    assert done.state == "diverged"
    assert "learning rate" in (done.reason or "")


def test_settings_that_do_not_fit_together_end_the_trial_alone(job: Job) -> None:
    done = outcome(job, {"train.loss": "mean_squared_error"})
    assert (done.state, done.epochs) == ("failed", ())
    assert "mean_squared_error does not fit mlp" in (done.reason or "")


def test_data_that_is_not_there_ends_the_search(job: Job, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        outcome(replace(job, data=tmp_path / "nowhere"), {"train.lr": 0.1})
