"""Searches that really train: what they find, how they go on, and what is left of a killed one."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from project import REPOSITORY
from training import searching

from pipeline.cli import ferry
from pipeline.config import layout
from pipeline.config.experiment import Experiment, Interval, Params, TeacherConfig
from pipeline.errors import ConfigError
from pipeline.records.tune import TuneReport, as_table
from pipeline.tracking.store import store_uri
from pipeline.training.tuning.study import SearchPlan
from pipeline.training.tuning.tune import BEST, as_fragment, tune
from serving.errors import FerryError, MissingInputError

GRID = SearchPlan(trials=99, sampler="grid")
HOPELESS = 1e-9


@pytest.fixture
def listed(params: Params) -> Experiment:
    return searching(params, {"train.lr": (HOPELESS, 0.02), "model.hidden": ((4,), (8, 8))})


def search(
    root: Path, folder: Path, experiment: Experiment, plan: SearchPlan, track: bool = False
) -> TuneReport:
    data = root / layout.ready(experiment.dataset)
    weights = folder.parent / "model.safetensors"
    return tune(data, weights, folder, experiment=experiment, plan=plan, track=track)


def test_a_grid_is_tried_whole_and_the_best_is_written(
    ready: Path, listed: Experiment, tmp_path: Path
) -> None:
    report = search(ready, tmp_path / "tune", listed, GRID)
    assert len(report.trials) == 4
    assert report.exhausted
    assert report.states == {"complete": 4, "interrupted": 0}
    assert report.best
    assert report.best_settings["train.lr"] == 0.02
    assert report.best_value == max(trial.validation_accuracy or 0 for trial in report.trials)
    text = (tmp_path / "tune" / BEST).read_text()
    assert text == as_fragment(report)
    part = yaml.safe_load(text)["experiments"]["digits-mlp"]
    assert part["train"] == {"lr": 0.02}
    assert part["model"]["hidden"] == list(report.best_settings["model.hidden"])  # type: ignore[arg-type]
    header, first, *_ = as_table(report).splitlines()
    assert header.split()[:4] == ["trial", "state", "validation", "accuracy"]
    assert first.split()[0] == str(report.best.number)
    assert not (tmp_path / "model.safetensors").exists()


def test_more_trials_go_on_with_a_study(ready: Path, params: Params, tmp_path: Path) -> None:
    experiment = searching(params, {"train.lr": Interval(low=1e-3, high=1e-1, log=True)})
    first = search(ready, tmp_path, experiment, SearchPlan(trials=2, sampler="random"))
    again = search(ready, tmp_path, experiment, SearchPlan(trials=2, sampler="random"))
    assert again.trials == first.trials
    more = search(ready, tmp_path, experiment, SearchPlan(trials=3, sampler="random"))
    assert more.trials[:2] == first.trials
    assert len(more.trials) == 3
    # With other settings it is another study, and each can be forgotten for itself.
    longer = replace(experiment, epochs=2)
    other = search(ready, tmp_path, longer, SearchPlan(trials=1, sampler="random"))
    assert (len(other.trials), other.study == first.study) == (1, False)
    fresh = search(ready, tmp_path, experiment, SearchPlan(trials=1, sampler="random", fresh=True))
    assert (len(fresh.trials), fresh.study) == (1, first.study)


def test_a_hopeless_learning_rate_is_cut_short(ready: Path, params: Params, tmp_path: Path) -> None:
    rates = (0.02, 0.021, 0.022, 0.023, 0.024, HOPELESS)
    experiment = searching(params, {"train.lr": rates}, epochs=3)
    report = search(ready, tmp_path, experiment, GRID)
    (pruned,) = [trial for trial in report.trials if trial.state == "pruned"]
    assert pruned.settings == {"train.lr": HOPELESS}
    assert pruned.epochs < 3
    unpruned = replace(GRID, pruner="none", fresh=True)
    report = search(ready, tmp_path, experiment, unpruned)
    assert report.states["complete"] == 6


def test_time_that_is_over_begins_no_trial(ready: Path, listed: Experiment, tmp_path: Path) -> None:
    report = search(ready, tmp_path, listed, replace(GRID, trials=1))
    assert len(report.trials) == 1
    over = search(ready, tmp_path, listed, replace(GRID, timeout=0))
    assert over.trials == report.trials


def test_when_no_trial_ends_well_the_reason_is_told(
    ready: Path, params: Params, tmp_path: Path
) -> None:
    experiment = searching(params, {"train.lr": (1e28, 1e29)})
    wild = replace(experiment, train=replace(experiment.train, optimizer="sgd"))
    with pytest.raises(FerryError, match=r"none of the 2 trials .*trial 0: .*the loss is nan"):
        search(ready, tmp_path, wild, GRID)
    assert not (tmp_path / BEST).exists()


def test_what_is_wrong_is_told_before_anything_is_written(
    ready: Path, params: Params, listed: Experiment, tmp_path: Path
) -> None:
    folder = tmp_path / "tune"
    with pytest.raises(ConfigError, match="no setting of the training"):
        search(ready, folder, searching(params, {"lr": (1, 2)}), GRID)
    interval = searching(params, {"train.lr": Interval(low=0.1, high=0.2, log=False)})
    with pytest.raises(ConfigError, match="which has no grid"):
        search(ready, folder, interval, GRID)
    with pytest.raises(MissingInputError, match="`ferry preprocess digits` makes it"):
        search(tmp_path, folder, listed, GRID)
    later = replace(listed, train=replace(listed.train, init_from="digits-cnn"))
    with pytest.raises(MissingInputError, match="`ferry train digits-cnn` makes it"):
        search(ready, folder, later, GRID)
    teacher = TeacherConfig(experiment="digits-cnn", temperature=1, weight=1, views=1)
    later = replace(listed, train=replace(listed.train, teacher=teacher))
    with pytest.raises(MissingInputError, match="`ferry teach digits-mlp` makes it"):
        search(ready, folder, later, GRID)
    assert not folder.exists()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(ready: Path, listed: Experiment, tmp_path: Path) -> None:
    one = search(ready, tmp_path / "one", listed, GRID)
    two = search(ready, tmp_path / "two", listed, replace(GRID, jobs=2))
    reached = [
        {str(trial.settings): trial.validation_accuracy for trial in report.trials}
        for report in (one, two)
    ]
    assert reached[0].keys() == reached[1].keys()
    assert two.best_settings["train.lr"] == 0.02


# MLflow


@pytest.mark.slow
def test_a_study_is_a_run_and_each_trial_a_run_inside_of_it(
    ready: Path, listed: Experiment, store: Path
) -> None:
    search(ready, store, listed, replace(GRID, trials=1), track=True)
    report = search(ready, store, listed, replace(GRID, trials=2), track=True)
    client = MlflowClient(store_uri())
    experiment = client.get_experiment_by_name(listed.name)
    (parent,) = client.search_runs(
        [experiment.experiment_id], f"tags.`ferry.run` = '{report.run_id}'"
    )
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "digits-mlp · tune"
    assert parent.data.metrics["best_validation_accuracy"] == report.best_value
    trials = client.search_runs(
        [parent.info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'",
        order_by=["attributes.start_time"],
    )
    assert [run.info.run_name for run in trials] == ["trial 0", "trial 1"]
    assert trials[0].data.params == {"train.lr": "1e-09", "model.hidden": "(4,)"}
    (point,) = client.get_metric_history(trials[0].info.run_id, "train/validation_accuracy")
    assert (point.step, point.value) == (1, report.trials[0].validation_accuracy)
    assert trials[0].info.status == "FINISHED"


# The command


@pytest.fixture
def folder(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml, whose digits-mlp is small, and the digits."""
    text = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    section = text["experiments"]["digits-mlp"]
    section |= {"epochs": 1, "search": {"train.lr": {"low": 1.0e-3, "high": 0.1, "log": True}}}
    section["model"]["hidden"] = [8]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(text))
    (tmp_path / "data").symlink_to(ready / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FERRY_TRACK", "0")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(ferry, ["tune", *arguments], prog_name="ferry")


def test_the_command_tells_its_progress_and_its_result(folder: Path) -> None:
    done = invoke("digits-mlp", "--trials", "2", "--sampler", "random", "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["states"] == {"complete": 2, "interrupted": 0}
    message = done.stderr.splitlines()
    assert message[0].startswith("trial 0 complete: ")
    assert f"with train.lr {report['trials'][0]['settings']['train.lr']}; best " in message[0]
    assert message[1].startswith("trial 1 complete: ")
    shown = invoke("digits-mlp", "--trials", "2")
    assert shown.exit_code == 0
    assert shown.stdout.endswith((folder / "models/digits-mlp/tune" / BEST).read_text())
    assert "# dvc exp run -S ++experiments.digits-mlp.train.lr=" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["digits-cnn"],
            "Error: experiments.digits-cnn.search is missing: it says what may change",
        ),
        (["digits-mlp", "--sampler", "grid"], "search.train.lr is an interval, which has no grid"),
        (["digits-mlp", "--trials", "0"], "Invalid value for '--trials'"),
        (["digits-mpl"], "did you mean 'digits-mlp'?"),
    ],
)
def test_wrong_usage(folder: Path, arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not (folder / "models").exists()


def start(folder: Path, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "tune", "digits-mlp", *options, "--json"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stopped(folder: Path, sent: signal.Signals, *options: str) -> "subprocess.Popen[str]":
    """A search that gets a signal as soon as its first trial has ended."""
    process = start(folder, "--trials", "5000", *options)
    assert process.stderr
    assert process.stderr.readline().startswith("trial ")
    time.sleep(0.3)
    os.killpg(process.pid, sent)
    process.communicate(timeout=60)
    return process


def is_gone(group: int) -> bool:
    """Whether nobody is left of a group of processes, soon."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on(folder: Path) -> None:
    assert stopped(folder, signal.SIGKILL).returncode != 0
    done = invoke("digits-mlp", "--trials", "1", "--json")
    assert done.exit_code == 0, done.stderr
    kept = json.loads(done.stdout)
    count = len(kept["trials"])
    assert count >= 1
    more = invoke("digits-mlp", "--trials", str(count + 2), "--json")
    report = json.loads(more.stdout)
    assert report["trials"][:count] == kept["trials"]
    assert len(report["trials"]) == count + 2
    assert report["states"]["interrupted"] <= 1


@pytest.mark.slow
def test_several_processes_stop_together(folder: Path) -> None:
    process = stopped(folder, signal.SIGINT, "--jobs", "2")
    assert process.returncode == 130
    assert is_gone(process.pid)
    done: dict[str, Any] = json.loads(invoke("digits-mlp", "--trials", "1", "--json").stdout)
    assert 1 <= done["states"]["interrupted"] <= 2
