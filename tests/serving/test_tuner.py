import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import psutil
import pytest
from onnx import helper, numpy_helper
from tiny_classifier import classifier
from tiny_kinds import TEXTS, text_classifier
from tiny_onnx import FLOAT, linear, write

from serving.bundles.writing import write_profile
from serving.errors import InputError, MissingInputError, ModelError, UsageError
from serving.files import dump_json, read_record
from serving.measuring.process import SubjectSpec
from serving.measuring.tuning.candidates import Candidate, defaults
from serving.measuring.tuning.screening import ms_per_row, screen
from serving.measuring.tuning.selection import (
    Selection,
    SelectionPlan,
    choose,
    compare,
    measure_best,
)
from serving.measuring.tuning.tuner import (
    SessionTuneReport,
    TuneOptions,
    as_text,
    grid_of,
    profile_of,
    spec_of,
    tune,
)
from serving.model import open_model
from serving.runtime.cores import allowed_cores
from serving.runtime.settings import SessionSettings

SLEEPER = SubjectSpec(name="sleeper", provider="cpu", module="sleeper", setup={})
ONE, TWO = SessionSettings(threads=1), SessionSettings(threads=1, parallel=2)
BROKEN = SessionSettings(threads=1, optimize="none")
MIB = 2**20
SLOW = SessionSettings(threads=2)


@pytest.fixture(autouse=True)
def _sleeper_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def nobody(_: str) -> None:
    """Tell nobody."""


def grid(*pairs: tuple[SessionSettings, int]) -> list[Candidate]:
    return [Candidate(settings=settings, batch_size=size) for settings, size in pairs]


def final(**changes: object) -> SelectionPlan:
    given = {
        "most": 2,
        "seconds": 0.05,
        "slowest_ms": 5.0,
        "memory_limit_bytes": None,
        "seed": 1,
    }
    return SelectionPlan(**(given | changes))


def finals(pairs: list[Candidate], base: Candidate, **changes: object) -> Selection:
    return measure_best(SLEEPER, pairs, base, final(**changes), nobody)


# Screening


def test_the_screening_finds_the_best_and_looks_longer_at_them() -> None:
    """Per row: 0.16, 0.33, 0.35, 0.70, 1.1, 2.2, 3.1 and 6.2 ms."""
    pairs = grid((SLOW, 1), (SLOW, 2), (ONE, 1), (TWO, 1), (ONE, 4), (TWO, 4), (ONE, 16), (TWO, 16))
    trials = screen(SLEEPER, pairs, keep=1, log=nobody)
    assert {trial.candidate for trial in trials} == set(pairs)
    assert trials[0].candidate == pairs[-1]
    assert [trial.looks for trial in trials] == [2, 2, 2, 1, 1, 1, 1, 1]
    assert trials[-1].candidate == pairs[0]
    assert all(trial.p50_ms and trial.skipped is None for trial in trials)


def test_what_cannot_run_is_last_with_its_reason_and_the_others_go_on() -> None:
    """Settings that do not open, a batch that is refused, and a process that dies."""
    pairs = grid((ONE, 1), (BROKEN, 1), (ONE, 13), (ONE, 66), (ONE, 8))
    trials = screen(SLEEPER, pairs, keep=2, log=nobody)
    assert [trial.candidate.batch_size for trial in trials[:2]] == [8, 1]
    message = {trial.candidate: trial.skipped for trial in trials[2:]}
    assert message[pairs[1]] == "these settings cannot be opened"
    assert message[pairs[2]] == "the model refuses 13 rows"
    assert "ended: exit status 3" in (message[pairs[3]] or "")
    assert all(trial.cost == float("inf") for trial in trials[2:])


def test_nothing_runs() -> None:
    (trial,) = screen(SLEEPER, grid((BROKEN, 1)), keep=1, log=nobody)
    assert trial.skipped == "these settings cannot be opened"


def test_rows_of_calls_side_by_side_count_together() -> None:
    one, two = grid((ONE, 4), (TWO, 4))
    assert ms_per_row(one, 8.0) == 2.0
    assert ms_per_row(two, 8.0) == 1.0


# Finals


def test_finalists_are_compared_with_the_defaults_in_turns() -> None:
    best, base, other = grid((TWO, 16), (ONE, 1), (ONE, 2))
    results = finals([best, other], base)
    assert [one.candidate for one in results.measured] == [best, other]
    assert results.defaults.candidate == base
    assert results.defaults.over_defaults.median == 1
    ratio = results.measured[0].over_defaults
    assert ratio.num_pairs == len(results.defaults.timing.turns_ms) == 4
    assert ratio.median > 2 * results.measured[1].over_defaults.median > 2


def test_defaults_among_the_finalists_are_measured_once() -> None:
    best, base = grid((TWO, 16), (ONE, 1))
    results = finals([best, base], base)
    assert [one.candidate for one in results.measured] == [base, best]
    assert results.measured[0] is results.defaults


def test_the_memory_limit_walks_down_the_ranking() -> None:
    largest, large, small, base = grid((TWO, 64), (TWO, 48), (ONE, 4), (ONE, 1))
    (free,) = finals([small], base, most=1).measured
    limit = free.peak_memory_bytes + 30 * MIB
    assert free.keeps(limit)
    assert not free.keeps(limit - 40 * MIB)
    results = finals([large, largest, small], base, memory_limit_bytes=limit)
    assert [one.candidate for one in results.measured] == [small]
    (over,) = results.passed_over  # the larger batch of the same settings is not even tried
    assert over.candidate == large
    assert over.peak_memory_bytes is not None
    assert over.peak_memory_bytes > limit
    assert over.reason.startswith("its peak memory is ")


def test_no_setting_keeps_the_memory_limit() -> None:
    large, small = grid((ONE, 48), (TWO, 1))
    with pytest.raises(InputError) as caught:
        finals([large, small], small, memory_limit_bytes=MIB)
    message = str(caught.value)
    assert message.startswith("no setting keeps the peak under 1 MiB: the least was ")
    assert message.endswith(" MiB with threads 1, parallel 2, batch 1")


def test_a_finalist_that_fails_is_passed_over() -> None:
    broken, good = grid((ONE, 13), (ONE, 4))
    results = finals([broken, good], good)
    assert [one.candidate for one in results.measured] == [good]
    assert [(one.candidate, one.reason) for one in results.passed_over] == [
        (broken, "the model refuses 13 rows")
    ]
    with pytest.raises(InputError, match="none of the best settings can be run: the model refuses"):
        finals([broken], good)


def test_two_candidates_are_compared() -> None:
    slow, fast = grid((ONE, 1), (ONE, 16))
    first, second = compare(SLEEPER, slow, fast, final(), nobody)
    assert (first.candidate, second.candidate) == (slow, fast)
    assert second.over_defaults.median > 2


def test_the_choice_keeps_the_limit_and_is_no_slower_than_what_keeps_it_too() -> None:
    (best,) = finals(grid((TWO, 16)), grid((ONE, 1))[0]).measured
    ratio = best.over_defaults
    slower = dataclasses.replace(best, over_defaults=dataclasses.replace(ratio, median=0.9))
    own = finals(grid((ONE, 1)), grid((ONE, 1))[0]).defaults
    huge = dataclasses.replace(own, peak_memory_bytes=best.peak_memory_bytes + MIB)
    assert choose([best, own], own, None) is best
    assert choose([slower, own], own, None) is own
    assert choose([slower], huge, best.peak_memory_bytes) is slower
    assert choose([huge, slower], huge, best.peak_memory_bytes) is slower
    with pytest.raises(InputError, match="no setting keeps the peak under 1 MiB: the least was"):
        choose([best, huge], own, MIB)


@pytest.mark.parametrize(("ms", "rounds"), [(0.01, 10), (8.0, 8), (10_000.0, 4)])
def test_slow_calls_get_fewer_turns_and_never_an_odd_number(ms: float, rounds: int) -> None:
    assert final(seconds=0.5, slowest_ms=ms).num_rounds == rounds


# The whole


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tuner") / "tiny.onnx", linear(["batch", 8]))


@pytest.fixture(scope="module")
def reports(model: Path) -> dict[str, SessionTuneReport]:
    quick = TuneOptions(batch_sizes=(1, 8), seconds=0.04)
    single = dataclasses.replace(quick, goal="latency", batch_sizes=(4,))
    return {"throughput": tune(model, quick), "latency": tune(model, single)}


@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_the_choice_is_of_the_grid_and_not_under_the_defaults(
    reports: dict[str, SessionTuneReport], model: Path, goal: str
) -> None:
    report = reports[goal]
    choice = Candidate(settings=report.settings, batch_size=report.batch_size)
    sizes = (4,) if goal == "latency" else (1, 8)
    assert choice in grid_of(model, TuneOptions(goal=goal, batch_sizes=sizes))
    assert report.over_defaults.median >= 1
    assert report.defaults.candidate.settings == defaults(allowed_cores())
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


def test_a_batch_size_that_the_model_refuses_is_in_the_report(tmp_path: Path) -> None:
    """Its graph folds rows into fours, which its input does not tell."""
    nodes = [
        helper.make_node("Reshape", ["rows", "fours"], ["folded"]),
        helper.make_node("Reshape", ["folded", "back"], ["logits"]),
    ]
    infos = [
        helper.make_tensor_value_info(name, FLOAT, ["batch", 2]) for name in ("rows", "logits")
    ]
    shapes = [
        numpy_helper.from_array(np.array(axes, np.int64), name)
        for name, axes in (("fours", (-1, 4, 2)), ("back", (-1, 2)))
    ]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], shapes)
    imports = [helper.make_opsetid("", 13)]
    content = helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()
    path = write(tmp_path / "fours.onnx", content)
    report = tune(path, TuneOptions(batch_sizes=(3, 4), seconds=0.02))
    assert report.batch_size == 4
    skipped = [trial for trial in report.trials if trial.skipped]
    assert {trial.candidate.batch_size for trial in skipped} == {3}
    assert "cannot be run" in as_text(report)
    with pytest.raises(InputError, match=r"no settings run .*fours\.onnx: the model refused"):
        tune(path, TuneOptions(goal="latency", batch_sizes=(3,), seconds=0.02))


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
        tune(tmp_path / "none.onnx")
    with pytest.raises(ModelError):
        tune(write(tmp_path / "bad.onnx", b"nothing"))
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
        tune(model, TuneOptions(batch_sizes=(1,), seconds=0.1), log=log)
    assert sorted(model.parent.iterdir()) == before
    measuring = [
        child.pid
        for child in psutil.Process(os.getpid()).children()
        if any("serving.measuring" in word for word in child.cmdline())
    ]
    assert measuring == []


def test_a_spec_is_plain_values(model: Path) -> None:
    spec = spec_of(model, TuneOptions(rows=Path("rows.npy")))
    assert spec.setup == {"model": str(model), "provider": "cpu", "rows": "rows.npy"}
