"""The last round of a tuning on real models: who enters it, and how its figures hang together."""

import dataclasses
import os

import psutil
import pytest
from odd_models import reshaping_to_two_rows
from tiny_onnx import linear, write

from serving.errors import InputError, ModelError
from serving.measuring.bench import model_spec
from serving.measuring.pairing import PairedRatio, ratio_of_turns
from serving.measuring.process import SubjectSpec
from serving.measuring.tuning.candidates import Candidate
from serving.measuring.tuning.selection import (
    CandidateMeasurement,
    Selection,
    SelectionPlan,
    choose,
    compare,
    measure_best,
)
from serving.runtime.settings import SessionSettings

MIB = 2**20
ONE = SessionSettings(threads=1)
BOUND = SessionSettings(threads=1, binding=True)
TWO = SessionSettings(threads=1, parallel=2)
FINAL = SelectionPlan(most=2, seconds=0.04, slowest_ms=5.0, memory_limit_bytes=None, seed=3)
BASE = Candidate(settings=ONE, batch_size=1)


def ways(*pairs: tuple[SessionSettings, int]) -> list[Candidate]:
    return [Candidate(settings=settings, batch_size=size) for settings, size in pairs]


def starts(messages: list[str]) -> list[str]:
    """The candidates that were started, as they are told."""
    first = "measuring in full: starting "
    return [line.removeprefix(first) for line in messages if line.startswith(first)]


def ratio_of(first: CandidateMeasurement, second: CandidateMeasurement) -> PairedRatio:
    """How many times as long a row takes with the first as with the second."""
    one, other = (
        [turn / finalist.candidate.rows_at_a_time for turn in finalist.timing.turns_ms]
        for finalist in (first, second)
    )
    return ratio_of_turns(one, other, seed=FINAL.seed)


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
    return measure_best(spec, ways((BOUND, 16), (TWO, 8), (ONE, 4)), BASE, FINAL, messages.append)


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


def test_every_finalist_has_a_turn_in_each_round(results: Selection) -> None:
    for one in (*results.measured, results.defaults):
        assert one.timing.batch_size == one.candidate.batch_size
        assert len(one.timing.turns_ms) == FINAL.num_rounds
        assert one.over_defaults.num_pairs == FINAL.num_rounds
        assert 0 < one.timing.p50_ms <= one.timing.max_ms
        assert one.peak_memory_bytes > 10 * MIB
        assert one.gpu_memory_bytes is None


def test_the_ratio_is_of_rows_and_not_of_calls(results: Selection) -> None:
    for one in results.measured:
        assert one.over_defaults == ratio_of(results.defaults, one)
    own = results.defaults.over_defaults
    assert (own.low, own.median, own.high) == (1, 1, 1)


def test_the_second_of_two_is_compared_with_the_first(spec: SubjectSpec) -> None:
    first, second = compare(spec, *ways((ONE, 1), (TWO, 4)), FINAL, lambda _: None)
    assert second.over_defaults == ratio_of(first, second)
    assert first.over_defaults.median == 1
    assert (first.candidate, second.candidate) == tuple(ways((ONE, 1), (TWO, 4)))


def test_one_way_compared_with_itself_has_two_processes(spec: SubjectSpec) -> None:
    messages: list[str] = []
    first, second = compare(spec, BASE, BASE, FINAL, messages.append)
    assert starts(messages) == [BASE.describe()] * 2
    assert first.candidate == second.candidate == BASE


def test_a_comparison_has_no_memory_limit(spec: SubjectSpec) -> None:
    strict = dataclasses.replace(FINAL, memory_limit_bytes=MIB)
    pair = compare(spec, *ways((ONE, 1), (ONE, 2)), strict, lambda _: None)
    assert not any(one.keeps(MIB) for one in pair)


# What is passed over


def test_more_rows_of_what_was_too_large_are_not_tried(spec: SubjectSpec) -> None:
    messages: list[str] = []
    ranking = ways((ONE, 4), (ONE, 8), (ONE, 2), (TWO, 8))
    strict = dataclasses.replace(FINAL, memory_limit_bytes=MIB)
    with pytest.raises(InputError) as caught:
        measure_best(spec, ranking, BASE, strict, messages.append)
    assert starts(messages) == [one.describe() for one in ways((ONE, 4), (ONE, 2), (TWO, 8))]
    text = str(caught.value)
    assert text.startswith("no setting keeps the peak under 1 MiB: the least was ")
    assert text.endswith(tuple(starts(messages)))
    assert "\n" not in text


def test_a_limit_that_all_keep_changes_nothing(spec: SubjectSpec, results: Selection) -> None:
    roomy = dataclasses.replace(FINAL, memory_limit_bytes=2**40)
    found = measure_best(spec, ways((BOUND, 16), (TWO, 8)), BASE, roomy, lambda _: None)
    entered = [one.candidate for one in found.measured]
    assert entered == [one.candidate for one in results.measured]
    assert found.passed_over == ()
    assert all(one.keeps(roomy.memory_limit_bytes) for one in found.measured)


@pytest.fixture(scope="module")
def two_rows(tmp_path_factory: pytest.TempPathFactory) -> SubjectSpec:
    """A model that refuses every batch but one of two rows."""
    path = write(tmp_path_factory.mktemp("finals") / "two.onnx", reshaping_to_two_rows())
    return model_spec("two", path, "cpu", None)


def test_what_the_model_refuses_leaves_its_place_to_the_next(two_rows: SubjectSpec) -> None:
    (base,) = ways((ONE, 2))
    ranking = ways((ONE, 3), (BOUND, 2), (ONE, 5), (ONE, 2))
    found = measure_best(two_rows, ranking, base, FINAL, lambda _: None)
    # The base was among the best: it is the first, and no other process runs it.
    assert [one.candidate for one in found.measured] == ways((ONE, 2), (BOUND, 2))
    assert [one.candidate for one in found.passed_over] == ways((ONE, 3), (ONE, 5))
    for one in found.passed_over:
        assert "refused" in one.reason
        assert one.peak_memory_bytes is None


def test_none_left_tells_why_the_best_cannot_be_run(two_rows: SubjectSpec) -> None:
    roomy = dataclasses.replace(FINAL, memory_limit_bytes=2**40)
    with pytest.raises(InputError, match=r"none of the best settings can be run: .*refused"):
        measure_best(two_rows, ways((ONE, 3), (ONE, 4)), BASE, roomy, lambda _: None)


def test_memory_is_the_reason_told_where_another_one_failed_otherwise(
    two_rows: SubjectSpec,
) -> None:
    strict = dataclasses.replace(FINAL, memory_limit_bytes=MIB)
    with pytest.raises(InputError, match=r"the least was \d+ MiB with threads 1, batch 2$"):
        measure_best(two_rows, ways((ONE, 3), (ONE, 2)), BASE, strict, lambda _: None)


def test_defaults_that_cannot_be_run_end_the_round_and_its_processes(two_rows: SubjectSpec) -> None:
    before = {child.pid for child in psutil.Process(os.getpid()).children()}
    with pytest.raises((InputError, ModelError), match="refused"):
        measure_best(two_rows, ways((ONE, 2)), BASE, FINAL, lambda _: None)
    assert {child.pid for child in psutil.Process(os.getpid()).children()} <= before


# What is chosen, and for how long it is measured


def test_the_choice_among_measured_ones_is_one_of_them(results: Selection) -> None:
    best_first = sorted(results.measured, key=lambda one: -one.over_defaults.median)
    chosen = choose(best_first, results.defaults, None)
    assert chosen in (best_first[0], results.defaults)
    assert chosen.over_defaults.median >= 1


def test_as_fast_as_the_defaults_is_fast_enough(results: Selection) -> None:
    even = PairedRatio(median=1.0, low=0.9, high=1.1, num_pairs=4)
    one = dataclasses.replace(results.measured[0], over_defaults=even)
    assert choose([one], results.defaults, None) is one


def test_rounds_are_even_and_within_bounds_and_fewer_for_slow_calls() -> None:
    slow = [0.01 * 1.1**power for power in range(100)]
    rounds = [dataclasses.replace(FINAL, slowest_ms=ms).num_rounds for ms in slow]
    assert set(rounds) == {4, 6, 8, 10}
    assert rounds == sorted(rounds, reverse=True)


@pytest.mark.parametrize(("calls_ms", "rounds"), [(42, 6), (49, 6), (55, 6), (56, 8), (20, 4)])
def test_a_turn_has_time_for_seven_calls(calls_ms: int, rounds: int) -> None:
    """Of 1 ms; an odd seventh round would favour what went first."""
    final = dataclasses.replace(FINAL, seconds=calls_ms / 1000, slowest_ms=1.0)
    assert final.num_rounds == rounds
