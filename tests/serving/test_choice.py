"""Which of the finalists a tuner keeps, and how many turns they get."""

import dataclasses

import pytest

from serving.errors import InputError
from serving.measuring.pairing import PairedRatio
from serving.measuring.timing import Timing
from serving.measuring.tuning.candidates import Candidate
from serving.measuring.tuning.screening import CandidateTrial, ms_per_row
from serving.measuring.tuning.selection import CandidateMeasurement, SelectionPlan, choose
from serving.runtime.settings import SessionSettings

MIB = 2**20
OWN = Candidate(settings=SessionSettings(threads=2), batch_size=1)
FINAL = SelectionPlan(most=3, seconds=0.3, slowest_ms=0.1, memory_limit_bytes=None, seed=1)


def finalist(
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
    return dataclasses.replace(finalist(1.0, peak_mib=peak_mib), candidate=OWN)


def test_the_best_is_kept() -> None:
    best, second = finalist(1.8), finalist(1.5, batch=16)
    assert choose([best, second], defaults(), None) == best


def test_never_one_that_is_slower_than_the_defaults() -> None:
    own = defaults()
    assert choose([finalist(0.97)], own, None) == own


def test_the_best_that_keeps_the_memory() -> None:
    large, small = finalist(1.8, peak_mib=200), finalist(1.2, peak_mib=60)
    assert choose([large, small], defaults(), 100 * MIB) == small


def test_slower_than_defaults_that_do_not_fit_is_still_the_best() -> None:
    slow = finalist(0.8, peak_mib=60)
    assert choose([slow], defaults(peak_mib=300), 100 * MIB) == slow


def test_a_limit_that_nothing_keeps_names_the_least() -> None:
    with pytest.raises(
        InputError,
        match=r"no setting keeps the peak under 50 MiB: the least was 60 MiB with threads 1",
    ):
        choose([finalist(2.0, peak_mib=90), finalist(1.0, peak_mib=60)], defaults(), 50 * MIB)


@pytest.mark.parametrize(("slowest_ms", "rounds"), [(0.01, 10), (7.0, 6), (1000.0, 4)])
def test_slow_calls_get_fewer_turns_and_always_an_even_number(
    slowest_ms: float, rounds: int
) -> None:
    assert dataclasses.replace(FINAL, slowest_ms=slowest_ms).num_rounds == rounds


def test_candidates_are_ranked_by_rows_and_not_by_calls() -> None:
    """Two calls side by side of eight rows: sixteen are in work at a time."""
    two = finalist(1.0).candidate
    assert two.rows_at_a_time == 16
    assert ms_per_row(two, 1.6) == pytest.approx(0.1)
    assert ms_per_row(OWN, 1.6) == pytest.approx(1.6)


def test_what_cannot_run_is_ranked_last() -> None:
    ran = CandidateTrial(candidate=OWN, looks=1, p50_ms=900.0, skipped=None)
    failed = CandidateTrial(candidate=OWN, looks=1, p50_ms=None, skipped="refused its input")
    assert failed.cost > ran.cost
    assert sorted([failed, ran], key=lambda trial: trial.cost) == [ran, failed]


@pytest.mark.parametrize(("limit", "keeps"), [(None, True), (70 * MIB, True), (69 * MIB, False)])
def test_memory_that_is_exactly_the_limit_keeps_it(limit: int | None, keeps: bool) -> None:
    assert finalist(1.0, peak_mib=70).keeps(limit) == keeps


def test_the_order_of_the_ranking_decides_between_those_that_keep_it() -> None:
    first, second = finalist(1.2), finalist(1.9, batch=32)
    assert choose([first, second], defaults(), 100 * MIB) == first


def test_the_same_settings_with_more_rows_are_ranked_by_the_row() -> None:
    """A batch of 64 in ten times the time of one row is far better than one row."""
    settings = SessionSettings(threads=1)
    one, many = (Candidate(settings=settings, batch_size=size) for size in (1, 64))
    assert ms_per_row(many, 10.0) < ms_per_row(one, 1.0)


def test_an_empty_ranking_is_not_a_choice() -> None:
    with pytest.raises((InputError, ValueError)):
        choose([], defaults(), 50 * MIB)
