"""The grid of candidates, and their screening on real models: how often it looks and ranks."""

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from odd_models import reshaping_to_two_rows
from tiny_onnx import linear, recurrent, write

from serving.errors import MissingInputError, UsageError
from serving.measuring.screening import (
    Candidate,
    CandidateTrial,
    ScreenedSubject,
    candidates,
    defaults,
    powers_up_to,
    screen,
)
from serving.measuring.subject import SubjectSpec
from serving.measuring.tuner import SCREENING, TuneOptions, spec_of
from serving.runtime.settings import SessionSettings, check_settings

GOALS = ("latency", "throughput")


def grid(goal: str = "throughput", provider: str = "cpu", **given: Any) -> tuple[Candidate, ...]:
    sizes = given.pop("batch_sizes", (1,) if goal == "latency" else (1, 16))
    usual = {"cores": 2, "bindable": True, "allow_reduced_precision": False}
    return candidates(goal, provider, sizes, **(usual | given))


@pytest.mark.parametrize("provider", ["cpu", "cuda", "tensorrt", "openvino", "coreml"])
@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("cores", [1, 2, 6])
def test_every_candidate_makes_sense_and_none_comes_twice(
    goal: str, provider: str, cores: int
) -> None:
    found = grid(goal, provider, cores=cores, allow_reduced_precision=True)
    assert len(set(found)) == len(found)
    for one in found:
        check_settings(one.settings, provider)
        assert one.settings.cores <= cores


@pytest.mark.parametrize("provider", ["cpu", "cuda", "tensorrt"])
@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("bindable", [True, False])
def test_the_runtimes_own_settings_are_among_them(goal: str, provider: str, bindable: bool) -> None:
    own = SessionSettings(threads=4, spinning=True, binding=False, parallel=1)
    found = grid(goal, provider, cores=4, bindable=bindable)
    assert defaults(4) == own
    sizes = {one.batch_size for one in found if one.settings == own}
    assert sizes == ({1} if goal == "latency" else {1, 16})


def test_two_cores_for_throughput() -> None:
    found = {(s.threads, s.parallel, s.spinning, s.binding) for s in (c.settings for c in grid())}
    assert found == {
        (threads, parallel, spinning, binding)
        for threads, parallel, spinning in (
            (1, 1, True),
            (1, 2, True),
            (2, 1, True),
            (2, 1, False),
        )
        for binding in (True, False)
    }
    assert len(grid()) == 16


def test_a_latency_is_that_of_one_call_alone() -> None:
    found = grid("latency", cores=8)
    assert {one.settings.parallel for one in found} == {1}
    assert {one.batch_size for one in found} == {1}
    assert {one.settings.threads for one in found} == {1, 2, 4, 8}
    assert {one.batch_size for one in grid("latency", batch_sizes=(4,))} == {4}
    with pytest.raises(UsageError, match="one batch size, got 1, 4; name one"):
        grid("latency", batch_sizes=(1, 4))


def test_one_thread_has_nobody_to_spin_for() -> None:
    assert all(one.settings.spinning for one in grid(cores=8) if one.settings.threads == 1)


def test_what_cannot_be_bound_is_not() -> None:
    assert not any(one.settings.binding for one in grid(bindable=False))
    assert not any(one.settings.cuda_graph for one in grid(provider="cuda", bindable=False))


@pytest.mark.parametrize("provider", ["cpu", "cuda", "tensorrt"])
def test_the_arithmetic_stays_the_models_own_unless_allowed(provider: str) -> None:
    found = grid(provider=provider)
    assert not any(one.settings.tf32 or one.settings.fp16 for one in found)
    allowed = grid(provider=provider, allow_reduced_precision=True)
    assert any(one.settings.tf32 for one in allowed) == (provider == "cuda")
    assert any(one.settings.fp16 for one in allowed) == (provider == "tensorrt")
    assert set(found) <= set(allowed)


def test_a_gpu_has_its_own_knobs() -> None:
    found = [one.settings for one in grid(provider="cuda", cores=16)]
    assert {(one.nhwc, one.conv_search) for one in found} == {
        (nhwc, search) for nhwc in (True, False) for search in ("exhaustive", "heuristic")
    }
    # A captured graph lies in one caller's memory.
    assert {one.parallel for one in found if one.cuda_graph} == {1}
    assert {one.parallel for one in found} == {1, 2}
    assert {one.threads for one in found} == {1, 16}


def test_candidates_of_one_session_stand_side_by_side() -> None:
    """The screening opens a session once for all that differ in batch size and binding."""
    sessions = [
        (one.settings.threads, one.settings.parallel, one.settings.spinning)
        for one in grid(cores=4)[2:]  # after the defaults
    ]
    changes = sum(first != second for first, second in itertools.pairwise(sessions))
    assert changes == len(set(sessions)) - 1


def test_powers() -> None:
    assert powers_up_to(1) == [1]
    assert powers_up_to(8) == [1, 2, 4, 8]
    assert powers_up_to(6) == [1, 2, 4, 6]


def test_a_candidate_tells_what_it_is() -> None:
    settings = SessionSettings(threads=1, parallel=2, binding=True)
    one = Candidate(settings=settings, batch_size=16)
    assert one.describe() == "threads 1, parallel 2, binding on, batch 16"


# The screening

Array = npt.NDArray[Any]

ONE = SessionSettings(threads=1)
BOUND = SessionSettings(threads=1, binding=True)
TWO = SessionSettings(threads=1, parallel=2)


def spec_for(model: Path, rows: Path | None = None) -> SubjectSpec:
    return spec_of(model, TuneOptions(rows=rows), SCREENING)


def ways(settings: SessionSettings, *sizes: int) -> list[Candidate]:
    return [Candidate(settings=settings, batch_size=size) for size in sizes]


def looked(spec: SubjectSpec, grid: list[Candidate], keep: int = 1) -> tuple[CandidateTrial, ...]:
    return screen(spec, grid, keep=keep, log=lambda _: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("screening") / "tiny.onnx", linear(["batch", 8]))


@pytest.fixture(scope="module")
def two_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that refuses every batch but one of two rows."""
    path = tmp_path_factory.mktemp("screening") / "two.onnx"
    return write(path, reshaping_to_two_rows())


# A subject of known speed


SLEEPER = SubjectSpec(name="sleeper", provider="cpu", module="sleeper", setup={})
BROKEN = SessionSettings(threads=1, optimize="none")
SLOW = SessionSettings(threads=2)


def pairs_of(*pairs: tuple[SessionSettings, int]) -> list[Candidate]:
    return [Candidate(settings=settings, batch_size=size) for settings, size in pairs]


@pytest.fixture
def _sleeper_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.mark.usefixtures("_sleeper_on_path")
def test_the_screening_finds_the_best_and_looks_longer_at_them() -> None:
    """Per row: 0.16, 0.33, 0.35, 0.70, 1.1, 2.2, 3.1 and 6.2 ms."""
    pairs = pairs_of(
        (SLOW, 1), (SLOW, 2), (ONE, 1), (TWO, 1), (ONE, 4), (TWO, 4), (ONE, 16), (TWO, 16)
    )
    trials = screen(SLEEPER, pairs, keep=1, log=lambda _: None)
    assert {trial.candidate for trial in trials} == set(pairs)
    assert trials[0].candidate == pairs[-1]
    assert [trial.looks for trial in trials] == [2, 2, 2, 1, 1, 1, 1, 1]
    assert all(trial.p50_ms and trial.skipped is None for trial in trials)


@pytest.mark.usefixtures("_sleeper_on_path")
def test_what_cannot_run_is_last_with_its_reason_and_the_others_go_on() -> None:
    """Settings that do not open, a batch that is refused, and a process that dies."""
    pairs = pairs_of((ONE, 1), (BROKEN, 1), (ONE, 13), (ONE, 66), (ONE, 8))
    trials = screen(SLEEPER, pairs, keep=2, log=lambda _: None)
    assert [trial.candidate.batch_size for trial in trials[:2]] == [8, 1]
    message = {trial.candidate: trial.skipped for trial in trials[2:]}
    assert message[pairs[1]] == "these settings cannot be opened"
    assert message[pairs[2]] == "the model refuses 13 rows"
    assert "ended: exit status 3" in (message[pairs[3]] or "")
    assert all(trial.cost == float("inf") for trial in trials[2:])


# Ranking


@pytest.mark.parametrize(
    ("num", "keep", "looks"),
    [
        (10, 1, [3, 3, 2, 2, 1, 1, 1, 1, 1, 1]),  # 10, 4, 2, and the best of these
        (9, 1, [2, 2, 2, 1, 1, 1, 1, 1, 1]),
        (9, 4, [1] * 9),  # a look leaves four, as many as are wanted
        (3, 3, [1, 1, 1]),
    ],
)
def test_a_third_goes_on_until_few_are_left(
    model: Path, num: int, keep: int, looks: list[int]
) -> None:
    message: list[str] = []
    grid = ways(ONE, *range(1, num + 1))
    trials = screen(spec_for(model), grid, keep=keep, log=message.append)
    assert [trial.looks for trial in trials] == looks
    assert len(message) == sum(looks)
    assert message[0] == f"look 1, 1 of {num}: threads 1, batch 1"


def test_the_rank_is_how_far_it_went_and_then_its_cost(model: Path) -> None:
    grid = [*ways(ONE, 1, 4, 16), *ways(BOUND, 1, 4, 16), *ways(TWO, 1, 4, 16)]
    trials = looked(spec_for(model), grid)
    assert sorted(map(grid.index, (trial.candidate for trial in trials))) == list(range(9))
    for first, second in itertools.pairwise(trials):
        assert (-first.looks, first.cost) <= (-second.looks, second.cost)


def test_an_empty_grid_has_no_trials(model: Path) -> None:
    assert looked(spec_for(model), []) == ()


# What cannot run


def test_a_batch_that_the_model_refuses_comes_last(two_rows: Path) -> None:
    """The session stays good for the batches after it."""
    trials = looked(spec_for(two_rows), [*ways(ONE, 3, 2, 5), *ways(BOUND, 3, 2)], keep=2)
    assert {trial.candidate for trial in trials[:2]} == {*ways(ONE, 2), *ways(BOUND, 2)}
    assert [trial.candidate for trial in trials[2:]] == [*ways(ONE, 3, 5), *ways(BOUND, 3)]
    for trial in trials[2:]:
        assert trial.p50_ms is None
        assert trial.cost == float("inf")
        assert "refused" in (trial.skipped or "")
        assert trial.looks == 1  # what cannot run is not looked at again


def test_the_one_that_runs_is_found_among_those_that_do_not(two_rows: Path) -> None:
    trials = looked(spec_for(two_rows), ways(ONE, 2, 3, 4, 5, 6, 7), keep=2)
    assert [trial.candidate.batch_size for trial in trials] == [2, 3, 4, 5, 6, 7]
    assert [bool(trial.skipped) for trial in trials] == [False] + [True] * 5


def test_a_file_that_is_no_model_gives_each_candidate_the_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.onnx", b"nothing")
    trials = looked(spec_for(path), [*ways(ONE, 1), *ways(TWO, 1)])
    assert [trial.candidate for trial in trials] == [*ways(ONE, 1), *ways(TWO, 1)]
    assert all("bad.onnx" in (trial.skipped or "") for trial in trials)


def test_no_process_is_left(two_rows: Path) -> None:
    before = {child.pid for child in psutil.Process(os.getpid()).children()}
    looked(spec_for(two_rows), ways(ONE, 2, 3))
    assert {child.pid for child in psutil.Process(os.getpid()).children()} <= before


# Rows


def test_free_axes_need_real_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "lstm.onnx", recurrent())
    (without,) = looked(spec_for(path), ways(ONE, 2))
    assert "--data" in (without.skipped or "")
    np.save(tmp_path / "rows.npy", np.ones((5, 7, 2), np.float32))
    (with_rows,) = looked(spec_for(path, tmp_path / "rows.npy"), ways(ONE, 2))
    assert with_rows.skipped is None
    assert 0 < with_rows.cost < float("inf")


def test_rows_that_are_not_there_are_told(model: Path, tmp_path: Path) -> None:
    subject = ScreenedSubject(model, "cpu", tmp_path / "none.npy")
    with pytest.raises(MissingInputError, match=r"none\.npy"):
        subject.start(ONE)
    (trial,) = looked(spec_for(model, tmp_path / "none.npy"), ways(ONE, 1))
    assert "none.npy" in (trial.skipped or "")


# The session


def logits_of(subject: ScreenedSubject, rows: Array) -> Array:
    answer = subject.answer(rows)
    assert isinstance(answer, dict)
    logits: Array = answer["logits"]
    return logits


def test_a_session_is_kept_where_only_binding_differs(model: Path) -> None:
    subject = ScreenedSubject(model, "cpu", None)
    subject.start(ONE)
    assert subject.session is not None
    raw = subject.session.raw
    subject.start(BOUND)
    assert subject.session.raw is raw
    assert subject.session.settings == BOUND
    subject.start(SessionSettings(threads=1, spinning=False))
    assert subject.session.raw is not raw


def test_both_ways_of_a_kept_session_give_the_same_answers(model: Path) -> None:
    subject = ScreenedSubject(model, "cpu", None)
    subject.start(ONE)
    rows = subject.rows(6)
    unbound = logits_of(subject, rows)
    subject.start(BOUND)
    np.testing.assert_array_equal(logits_of(subject, rows), unbound)


def test_a_start_tells_of_the_model_what_a_full_one_does(model: Path, tmp_path: Path) -> None:
    started = ScreenedSubject(model, "cpu", None).start(ONE)
    fixed = ScreenedSubject(write(tmp_path / "four.onnx", linear([4, 8])), "cpu", None).start(ONE)
    assert (started.fixed_batch, fixed.fixed_batch) == (None, 4)
    assert len(started.sha256 or "") == 64
    assert started.sha256 != fixed.sha256
