"""`ferry bench --tune` as a whole: what it chooses, keeps and refuses."""

import dataclasses
import json
import os
from pathlib import Path

import psutil
import pytest
from odd_models import reshaping_to_two_rows
from tiny_classifier import classifier
from tiny_kinds import TEXTS, text_classifier
from tiny_onnx import linear, write

from serving.bundles.writing import write_profile
from serving.errors import InputError, MissingInputError, ModelError, UsageError
from serving.files import dump_json, read_record
from serving.measuring import tuner
from serving.measuring.screening import Candidate, defaults
from serving.measuring.tuner import (
    SessionTuneReport,
    TuneOptions,
    as_text,
    grid_of,
    profile_of,
    tune,
)
from serving.model import open_model
from serving.runtime.cores import allowed_cores

MIB = 2**20


@pytest.fixture
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that there are few candidates: each costs its time."""
    monkeypatch.setattr(tuner, "allowed_cores", lambda: 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tuner") / "tiny.onnx", linear(["batch", 8]))


@pytest.fixture(scope="module")
def reports(model: Path) -> dict[str, SessionTuneReport]:
    """For throughput on all cores, for latency on one: each candidate costs its time."""
    quick = TuneOptions(batch_sizes=(1, 8), seconds=0.02)
    single = dataclasses.replace(quick, goal="latency", batch_sizes=(4,))
    throughput = tune(model, quick)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuner, "allowed_cores", lambda: 1)
        return {"throughput": throughput, "latency": tune(model, single)}


@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_the_choice_is_of_the_grid_and_not_under_the_defaults(
    reports: dict[str, SessionTuneReport], model: Path, goal: str
) -> None:
    report = reports[goal]
    choice = Candidate(settings=report.settings, batch_size=report.batch_size)
    sizes = (4,) if goal == "latency" else (1, 8)
    assert choice in grid_of(model, TuneOptions(goal=goal, batch_sizes=sizes))
    assert report.over_defaults.median >= 1
    cores = allowed_cores() if goal == "throughput" else 1
    assert report.defaults.candidate.settings == defaults(cores)
    assert len(report.trials) == report.num_candidates
    assert {trial.candidate for trial in report.trials} >= {choice}
    medians = [one.over_defaults.median for one in report.measured]
    assert medians == sorted(medians, reverse=True)
    assert min(report.p50_ms, report.rows_per_second, report.peak_memory_bytes) > 0


@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_the_report_goes_through_json(reports: dict[str, SessionTuneReport], goal: str) -> None:
    report = reports[goal]
    assert read_record(SessionTuneReport, json.loads(dump_json(report)), "it") == report


def test_the_text_shows_the_choice_and_the_defaults(reports: dict[str, SessionTuneReport]) -> None:
    text = as_text(reports["throughput"])
    assert text.count("chosen") == 1
    assert text.count("ONNX Runtime's own") == 1
    assert f"{reports['throughput'].num_candidates} candidates in " in text


def test_a_tuning_goes_into_a_bundle_and_is_used(
    reports: dict[str, SessionTuneReport], bundle: Path
) -> None:
    profile = profile_of(reports["throughput"])
    write_profile(bundle, profile)
    model = open_model(bundle)
    assert model.profile == profile
    assert model.session.settings == reports["throughput"].settings
    assert model.batch_rows == reports["throughput"].batch_size


@pytest.mark.usefixtures("_one_core")
def test_a_bundle_is_tuned_within_its_memory(bundle: Path) -> None:
    options = TuneOptions(
        goal="latency", seconds=0.02, memory_limit_bytes=8 * 2**30, allow_reduced_precision=True
    )
    steps: list[str] = []
    report = tune(bundle, options, log=steps.append)
    assert report.peak_memory_bytes <= 8 * 2**30
    assert report.batch_size == 1
    assert any("measuring in full: round 1 of" in step for step in steps)
    with pytest.raises(InputError, match="no setting keeps the peak under 1 MiB: the least was"):
        tune(bundle, dataclasses.replace(options, memory_limit_bytes=MIB))
    assert open_model(bundle).profile is None


@pytest.mark.usefixtures("_one_core")
def test_a_batch_size_that_the_model_refuses_is_in_the_report(tmp_path: Path) -> None:
    """Its graph takes two rows, which its input does not tell."""
    path = write(tmp_path / "two.onnx", reshaping_to_two_rows())
    report = tune(path, TuneOptions(batch_sizes=(3, 2), seconds=0.02))
    assert report.batch_size == 2
    skipped = [trial for trial in report.trials if trial.skipped]
    assert {trial.candidate.batch_size for trial in skipped} == {3}
    assert "cannot be run" in as_text(report)
    with pytest.raises(InputError, match=r"no settings run .*two\.onnx: the model refused"):
        tune(path, TuneOptions(goal="latency", batch_sizes=(3,), seconds=0.02))


@pytest.mark.usefixtures("_one_core")
def test_texts_are_tuned_on_real_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", text_classifier())
    (tmp_path / "rows.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    options = TuneOptions(goal="latency", rows=tmp_path / "rows.txt", seconds=0.02)
    report = tune(path, options)
    assert report.rows == "rows.txt"
    assert not any(trial.candidate.settings.binding for trial in report.trials)
    with pytest.raises(InputError, match="name a file of real rows with --data"):
        tune(path, dataclasses.replace(options, rows=None))


def test_a_model_of_one_batch_size_is_tuned_at_that(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", classifier(batch=4))
    assert {one.batch_size for one in grid_of(path, TuneOptions())} == {4}
    assert {one.batch_size for one in grid_of(path, TuneOptions(goal="latency"))} == {4}
    with pytest.raises(UsageError, match="takes batches of 4 and no other"):
        grid_of(path, TuneOptions(batch_sizes=(1, 4)))


def test_what_cannot_be_tuned(tmp_path: Path, model: Path) -> None:
    with pytest.raises(MissingInputError):
        tune(tmp_path / "none.onnx", TuneOptions())
    with pytest.raises(ModelError):
        tune(write(tmp_path / "bad.onnx", b"nothing"), TuneOptions())
    with pytest.raises(UsageError, match="one batch size, got 1, 2"):
        tune(model, TuneOptions(goal="latency", batch_sizes=(1, 2)))
    with pytest.raises(UsageError, match="a batch size must be 1 or more, got 0"):
        TuneOptions(batch_sizes=(0,))
    with pytest.raises(UsageError, match="seconds must be above 0"):
        TuneOptions(seconds=0.0)


@pytest.mark.parametrize(
    "step", ["look 1, 3", "measuring in full: starting", "measuring in full: round 2"]
)
def test_an_interruption_leaves_no_process_and_writes_nothing(model: Path, step: str) -> None:
    def log(message: str) -> None:
        if message.startswith(step):
            raise KeyboardInterrupt

    before = sorted(model.parent.iterdir())
    with pytest.raises(KeyboardInterrupt):
        tune(model, TuneOptions(batch_sizes=(1,), seconds=0.02), log=log)
    assert sorted(model.parent.iterdir()) == before
    measuring = [
        child.pid
        for child in psutil.Process(os.getpid()).children()
        if any("serving.measuring" in word for word in child.cmdline())
    ]
    assert measuring == []
