"""The full measurement of the best candidates, and the choice among what came out."""

import dataclasses
import os
from pathlib import Path

import psutil
import pytest
from odd_models import reshaping_to_two_rows
from tiny_onnx import linear, write

from serving.errors import InputError, ModelError
from serving.measuring.onnx_subject import model_spec
from serving.measuring.pairing import PairedRatio, ratio_of_turns
from serving.measuring.screening import Candidate
from serving.measuring.subject import SubjectSpec
from serving.measuring.timing import Timing
from serving.measuring.tuner import (
    CandidateMeasurement,
    Selection,
    SelectionPlan,
    choose,
    measure_best,
)
from serving.runtime.settings import SessionSettings

MIB = 2**20
ONE = SessionSettings(threads=1)
BOUND = SessionSettings(threads=1, binding=True)
TWO = SessionSettings(threads=1, parallel=2)
PLAN = SelectionPlan(most=2, seconds=0.04, slowest_ms=5.0, memory_limit_bytes=None, seed=3)
STRICT = dataclasses.replace(PLAN, memory_limit_bytes=MIB)
BASE = Candidate(settings=ONE, batch_size=1)
OWN = Candidate(settings=SessionSettings(threads=2), batch_size=1)
SLEEPER = SubjectSpec(name="sleeper", provider="cpu", module="sleeper", setup={})


def ways(*pairs: tuple[SessionSettings, int]) -> list[Candidate]:
    return [Candidate(settings=settings, batch_size=size) for settings, size in pairs]


def starts(messages: list[str]) -> list[str]:
    """The candidates that were started, as they are told."""
    first = "measuring in full: starting "
    return [line.removeprefix(first) for line in messages if line.startswith(first)]


def ratio_of(first: CandidateMeasurement, second: CandidateMeasurement) -> PairedRatio:
    """How many times as long a row takes with the first as with the second."""
    one, other = (
        [one.candidate.ms_per_row(turn) for turn in one.timing.turns_ms] for one in (first, second)
    )
    return ratio_of_turns(one, other, seed=PLAN.seed)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> SubjectSpec:
    path = write(tmp_path_factory.mktemp("finals") / "tiny.onnx", linear(["batch", 8]))
    return model_spec("tiny", path, "cpu", None)


@pytest.fixture(scope="module")
def messages() -> list[str]:
    """The lines that the round of `results` gave."""
    return []


@pytest.fixture(scope="module")
def results(spec: SubjectSpec, messages: list[str]) -> Selection:
    return measure_best(spec, ways((BOUND, 16), (TWO, 8), (ONE, 4)), BASE, PLAN, messages.append)


# What is measured


def test_the_first_of_the_ranking_enter_and_the_base_with_them(results: Selection) -> None:
    entered = [one.candidate for one in results.measured]
    assert entered == ways((BOUND, 16), (TWO, 8))
    assert results.defaults.candidate == BASE
    assert results.passed_over == ()


def test_no_process_is_started_for_the_rest(results: Selection, messages: list[str]) -> None:
    candidates = [*(one.candidate for one in results.measured), BASE]
    assert starts(messages) == [one.describe() for one in candidates]
    rounds = messages[len(candidates) :]
    assert rounds == [f"measuring in full: round {number} of 4" for number in (1, 2, 3, 4)]


def test_every_candidate_has_a_turn_in_each_round(results: Selection) -> None:
    for one in (*results.measured, results.defaults):
        assert one.timing.batch_size == one.candidate.batch_size
        assert len(one.timing.turns_ms) == PLAN.num_rounds
        assert one.over_defaults.num_pairs == PLAN.num_rounds
        assert 0 < one.timing.p50_ms <= one.timing.max_ms
        assert one.peak_memory_bytes > 10 * MIB
        assert one.gpu_memory_bytes is None


def test_the_ratio_is_of_rows_and_not_of_calls(results: Selection) -> None:
    for one in results.measured:
        assert one.over_defaults == ratio_of(results.defaults, one)
    own = results.defaults.over_defaults
    assert (own.low, own.median, own.high) == (1, 1, 1)


def test_a_candidate_of_known_speed_is_as_much_faster_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Per row: 0.16 and 2.2 ms."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    best, base = ways((TWO, 16), (ONE, 1))
    found = measure_best(SLEEPER, [best], base, PLAN, lambda _: None)
    assert found.measured[0].over_defaults.median > 2


# What is passed over


def test_more_rows_of_what_was_too_large_are_not_tried(spec: SubjectSpec) -> None:
    messages: list[str] = []
    ranking = ways((ONE, 4), (ONE, 8), (ONE, 2), (TWO, 8))
    with pytest.raises(InputError) as caught:
        measure_best(spec, ranking, BASE, STRICT, messages.append)
    assert starts(messages) == [one.describe() for one in ways((ONE, 4), (ONE, 2), (TWO, 8))]
    text = str(caught.value)
    assert text.startswith("no setting keeps the peak under 1 MiB: the least was ")
    assert text.endswith(tuple(starts(messages)))
    assert "\n" not in text


def test_the_memory_limit_walks_down_the_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    largest, large, small, base = ways((TWO, 64), (TWO, 48), (ONE, 4), (ONE, 1))
    (free,) = measure_best(SLEEPER, [small], base, PLAN, lambda _: None).measured
    limit = free.peak_memory_bytes + 30 * MIB
    assert free.keeps(limit)
    assert not free.keeps(limit - 40 * MIB)
    plan = dataclasses.replace(PLAN, memory_limit_bytes=limit)
    results = measure_best(SLEEPER, [large, largest, small], base, plan, lambda _: None)
    assert [one.candidate for one in results.measured] == [small]
    (over,) = results.passed_over  # the larger batch of the same settings is not even tried
    assert over.candidate == large
    assert over.peak_memory_bytes is not None
    assert over.peak_memory_bytes > limit
    assert over.reason.startswith("its peak memory is ")


@pytest.fixture(scope="module")
def two_rows(tmp_path_factory: pytest.TempPathFactory) -> SubjectSpec:
    """A model that refuses every batch but one of two rows."""
    path = write(tmp_path_factory.mktemp("finals") / "two.onnx", reshaping_to_two_rows())
    return model_spec("two", path, "cpu", None)


def test_what_the_model_refuses_leaves_its_place_to_the_next(two_rows: SubjectSpec) -> None:
    (base,) = ways((ONE, 2))
    ranking = ways((ONE, 3), (BOUND, 2), (ONE, 5), (ONE, 2))
    found = measure_best(two_rows, ranking, base, PLAN, lambda _: None)
    # The base was among the best: it is the first, and no other process runs it.
    assert [one.candidate for one in found.measured] == ways((ONE, 2), (BOUND, 2))
    assert [one.candidate for one in found.passed_over] == ways((ONE, 3), (ONE, 5))
    for one in found.passed_over:
        assert "refused" in one.reason
        assert one.peak_memory_bytes is None


def test_none_left_tells_why_the_best_cannot_be_run(two_rows: SubjectSpec) -> None:
    roomy = dataclasses.replace(PLAN, memory_limit_bytes=2**40)
    with pytest.raises(InputError, match=r"none of the best settings can be run: .*refused"):
        measure_best(two_rows, ways((ONE, 3), (ONE, 4)), BASE, roomy, lambda _: None)


def test_memory_is_the_reason_told_where_another_one_failed_otherwise(
    two_rows: SubjectSpec,
) -> None:
    with pytest.raises(InputError, match=r"the least was \d+ MiB with threads 1, batch 2$"):
        measure_best(two_rows, ways((ONE, 3), (ONE, 2)), BASE, STRICT, lambda _: None)


def test_defaults_that_cannot_be_run_end_the_round_and_its_processes(two_rows: SubjectSpec) -> None:
    before = {child.pid for child in psutil.Process(os.getpid()).children()}
    with pytest.raises((InputError, ModelError), match="refused"):
        measure_best(two_rows, ways((ONE, 2)), BASE, PLAN, lambda _: None)
    assert {child.pid for child in psutil.Process(os.getpid()).children()} <= before


# What is chosen, and for how long it is measured


def measurement(
    gain: float, *, peak_mib: int = 70, parallel: int = 2, batch: int = 8
) -> CandidateMeasurement:
    """One that is `gain` times as fast as the defaults."""
    settings = SessionSettings(threads=1, parallel=parallel)
    return CandidateMeasurement(
        candidate=Candidate(settings=settings, batch_size=batch),
        timing=Timing(
            batch_size=batch,
            p50_ms=1.0,
            p90_ms=1.0,
            p99_ms=1.0,
            p999_ms=1.0,
            max_ms=1.0,
            rows_per_second=1000.0,
            num_calls=100,
            warmup_ms=1.0,
            steady=True,
            turns_ms=(1.0, 1.0),
        ),
        peak_memory_bytes=peak_mib * MIB,
        gpu_memory_bytes=None,
        over_defaults=PairedRatio(median=gain, low=gain, high=gain, num_pairs=4),
    )


def defaults(peak_mib: int = 70) -> CandidateMeasurement:
    return dataclasses.replace(measurement(1.0, peak_mib=peak_mib), candidate=OWN)


def test_the_best_is_kept() -> None:
    best, second = measurement(1.8), measurement(1.5, batch=16)
    assert choose([best, second], defaults(), None) == best


def test_never_one_that_is_slower_than_the_defaults() -> None:
    own = defaults()
    assert choose([measurement(0.97)], own, None) == own


def test_as_fast_as_the_defaults_is_fast_enough() -> None:
    even = measurement(1.0)
    assert choose([even], defaults(), None) is even


def test_the_best_that_keeps_the_memory() -> None:
    large, small = measurement(1.8, peak_mib=200), measurement(1.2, peak_mib=60)
    assert choose([large, small], defaults(), 100 * MIB) == small


def test_slower_than_defaults_that_do_not_fit_is_still_the_best() -> None:
    slow = measurement(0.8, peak_mib=60)
    assert choose([slow], defaults(peak_mib=300), 100 * MIB) == slow


def test_a_limit_that_nothing_keeps_names_the_least() -> None:
    with pytest.raises(
        InputError,
        match=r"no setting keeps the peak under 50 MiB: the least was 60 MiB with threads 1",
    ):
        choose([measurement(2.0, peak_mib=90), measurement(1.0, peak_mib=60)], defaults(), 50 * MIB)


@pytest.mark.parametrize(("limit", "keeps"), [(None, True), (70 * MIB, True), (69 * MIB, False)])
def test_memory_that_is_exactly_the_limit_keeps_it(limit: int | None, keeps: bool) -> None:
    assert measurement(1.0, peak_mib=70).keeps(limit) == keeps


def test_the_order_of_the_ranking_decides_between_those_that_keep_it() -> None:
    first, second = measurement(1.2), measurement(1.9, batch=32)
    assert choose([first, second], defaults(), 100 * MIB) == first


def test_rounds_are_even_and_within_bounds_and_fewer_for_slow_calls() -> None:
    slow = [0.01 * 1.1**power for power in range(100)]
    rounds = [dataclasses.replace(PLAN, slowest_ms=ms).num_rounds for ms in slow]
    assert set(rounds) == {4, 6, 8, 10}
    assert rounds == sorted(rounds, reverse=True)


@pytest.mark.parametrize(("calls_ms", "rounds"), [(42, 6), (49, 6), (55, 6), (56, 8), (20, 4)])
def test_a_turn_has_time_for_seven_calls(calls_ms: int, rounds: int) -> None:
    """Of 1 ms; an odd seventh round would favour what went first."""
    plan = dataclasses.replace(PLAN, seconds=calls_ms / 1000, slowest_ms=1.0)
    assert plan.num_rounds == rounds


def test_candidates_are_ranked_by_rows_and_not_by_calls() -> None:
    """Two calls side by side of eight rows: sixteen are in work at a time."""
    two = measurement(1.0).candidate
    assert two.ms_per_row(1.6) == pytest.approx(0.1)
    assert OWN.ms_per_row(1.6) == pytest.approx(1.6)
