"""The method of the benchmark held against systems whose answer is known.

Each test plants something that a careless benchmark gets wrong, and looks whether this one sees it.
"""

import dataclasses
import json
import time
from collections.abc import Callable

import numpy as np
import pytest
import tiny_onnx
from click.testing import CliRunner
from fresh_pages import fresh_pages

from serving.cli import serving
from serving.files import dump_json
from serving.measuring.bench import bench, model_spec
from serving.measuring.meters import growth, resident_bytes
from serving.measuring.pairing import orders, paired_ratio, ratio_of_turns, verdict
from serving.measuring.report import as_csv, as_table, report_from
from serving.measuring.rounds import BenchFindings, BenchOptions, measure
from serving.measuring.subject import Started, SubjectServer
from serving.measuring.timing import (
    Clock,
    Samples,
    WarmUp,
    take_samples,
    time_calls,
    timing_of,
    warm_up,
)
from serving.runtime.settings import SessionSettings

ONE = SessionSettings(threads=1)


class Machine:
    """A clock of our own, and calls that move it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0
        for module in ("timing", "pairing"):
            monkeypatch.setattr(f"serving.measuring.{module}.perf_counter_ns", lambda: self.now)
        clock = Clock(resolution_ns=1, reading_ns=1)
        monkeypatch.setattr("serving.measuring.timing.check_clock", lambda: clock)

    def call(self, duration: Callable[[int], float]) -> Callable[[], None]:
        """A call that takes what `duration` says of the present time, in nanoseconds."""

        def run() -> None:
            self.now += int(duration(self.now))

        return run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def slower_every_second(now: int) -> float:
    """A machine that gets slower and slower, by a third in the end."""
    return 1 + 0.33 * min(1.0, now / 1e9)


def test_a_drift_of_the_machine_is_no_difference_between_two_calls(machine: Machine) -> None:
    first = machine.call(lambda now: 1e6 * slower_every_second(now))
    second = machine.call(lambda now: 1e6 * slower_every_second(now))
    ratio = paired_ratio(first, second, seconds=0.5, seed=1)
    assert abs(ratio.median - 1) < 0.002
    assert verdict(ratio) == "no difference"


def test_a_real_difference_is_seen_through_the_same_drift(machine: Machine) -> None:
    first = machine.call(lambda now: 1.1e6 * slower_every_second(now))
    second = machine.call(lambda now: 1.0e6 * slower_every_second(now))
    ratio = paired_ratio(first, second, seconds=0.5, seed=1)
    assert ratio.median == pytest.approx(1.1, rel=0.005)
    assert verdict(ratio) == "faster"


def test_the_order_within_a_pair_cancels_out(machine: Machine) -> None:
    """Whoever goes first finds cold caches and takes a tenth longer."""
    turn = [0]

    def cold_then_warm(_now: int) -> float:
        turn[0] += 1
        return 1.1e6 if turn[0] % 2 else 1.0e6

    call = machine.call(cold_then_warm)
    ratio = paired_ratio(call, call, seconds=0.4, seed=3)
    assert ratio.low <= 1 <= ratio.high


def test_rare_stalls_do_not_move_the_median_and_stand_in_the_tail(machine: Machine) -> None:
    calls = [0]

    def stalling(_now: int) -> float:
        calls[0] += 1
        return 200e6 if calls[0] % 500 == 0 else 1e6

    timing = time_calls(machine.call(stalling), batch_size=1, seconds=3)
    assert timing.p50_ms == pytest.approx(1.0)
    assert timing.p90_ms == pytest.approx(1.0)
    assert timing.p999_ms > 100
    assert timing.max_ms == pytest.approx(200.0)
    assert timing.rows_per_second < 800, "the time of the stalls counts in the rate"


def test_warm_up_goes_on_until_the_rate_is_steady(machine: Machine) -> None:
    """The first 150 calls get quicker one by one; then all take a millisecond."""
    calls = [0]

    def warming(_now: int) -> float:
        calls[0] += 1
        return 1e6 * (1 + max(0, 150 - calls[0]) / 15)

    call = machine.call(warming)
    warm = warm_up(call, 1.0)
    assert warm.steady
    assert warm.ms > 100
    assert take_samples(call, 0.05).call_ns.max() < 1.6e6


def test_a_warm_up_that_never_ends_is_cut_off_and_told(machine: Machine) -> None:
    calls = [0]

    def restless(_now: int) -> float:
        calls[0] += 1
        return 1e6 * 1.01 ** (calls[0] % 1000)

    warm = warm_up(machine.call(restless), 0.05)
    assert not warm.steady


def test_a_slow_call_is_not_measured_for_ever(machine: Machine) -> None:
    samples = take_samples(machine.call(lambda _: 1e9), 0.1)
    assert 1 <= samples.num_calls <= 3


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c"], list("abcdefg")])
@pytest.mark.parametrize("seed", range(5))
def test_no_one_goes_first_more_often_than_another(names: list[str], seed: int) -> None:
    found = orders(names, 10, np.random.default_rng(seed))
    for one in names:
        places = [order.index(one) for order in found]
        assert np.mean(places) == pytest.approx((len(names) - 1) / 2)


@pytest.mark.parametrize("noise", [0.001, 0.01, 0.05])
def test_a_against_a_is_rarely_a_difference(noise: float) -> None:
    """Of 200 comparisons of equals under that noise at most one in twenty may look like one."""
    rng = np.random.default_rng(7)
    wrong = 0
    for seed in range(200):
        weather = 1 + 0.2 * rng.random(10)
        first = weather * (1 + noise * rng.standard_normal(10))
        second = weather * (1 + noise * rng.standard_normal(10))
        wrong += verdict(ratio_of_turns(first, second, seed=seed)) != "no difference"
    assert wrong <= 10


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_real_difference_is_rarely_missed(factor: float) -> None:
    rng = np.random.default_rng(8)
    seen = 0
    for seed in range(100):
        weather = 1 + 0.2 * rng.random(10)
        first = factor * weather * (1 + 0.02 * rng.standard_normal(10))
        second = weather * (1 + 0.02 * rng.standard_normal(10))
        found = verdict(ratio_of_turns(first, second, seed=seed))
        seen += found == ("faster" if factor > 1 else "slower")
    assert seen >= 99


def test_turns_of_different_lengths_count_by_their_calls() -> None:
    short = Samples(call_ns=np.full(10, 1e6), num_calls=10, elapsed_ns=10_000_000)
    long = Samples(call_ns=np.full(90, 2e6), num_calls=90, elapsed_ns=180_000_000)
    timing = timing_of([short, long], batch_size=1, warm=WarmUp(ms=1.0, steady=True))
    assert timing.p50_ms == 2.0
    assert timing.rows_per_second == pytest.approx(100 / 0.19, rel=1e-4)


# Memory


def test_growth_is_told_apart_from_drift() -> None:
    """An arena that grows with its first large batches, and then stays."""
    arena = []

    def call(size: int) -> Callable[[], None]:
        def run() -> None:
            if len(arena) < size:
                arena.append(fresh_pages(4 * 2**20))

        return run

    found = growth(
        {size: call(size) for size in (1, 2, 4)},
        num_calls=400,
        seed=2,
        before_bytes=resident_bytes(),
    )
    assert found.arena_bytes > 8 * 2**20
    assert found.drift_bytes < 4 * 2**20


# What runs side by side


class Sleeping:
    """A subject whose batches take five milliseconds, however many threads there are."""

    def start(self, _settings: SessionSettings) -> Started:
        return Started(ready_ms=1.0, sha256=None, file_bytes=None, proof=None, fixed_batch=None)

    def call(self, _batch_size: int) -> Callable[[], None]:
        return lambda: time.sleep(0.005)

    def answer(self, rows: object) -> object:
        return rows

    def rows(self, count: int) -> np.ndarray:
        return np.zeros(count)

    def share(self, _batch_size: int) -> None:
        return None

    def gpu_bytes(self) -> None:
        return None


@pytest.mark.parametrize("parallel", [1, 2, 4])
def test_calls_side_by_side_add_up_in_the_rate_and_not_in_the_latency(parallel: int) -> None:
    desk = SubjectServer(Sleeping())
    settings = dataclasses.replace(ONE, parallel=parallel)
    desk.settings = settings
    desk.prepare(1, 0.05)
    desk.turn(0.3)
    timing = desk.timing()
    assert timing["p50_ms"] >= 5
    assert timing["rows_per_second"] <= 200 * parallel
    assert timing["rows_per_second"] > 200 * parallel / timing["p50_ms"]


# A whole report


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    content = tiny_onnx.linear(["batch", 32], tiny_onnx.UINT8)
    return tiny_onnx.write(tmp_path_factory.mktemp("models") / "method.onnx", content)


@pytest.fixture(scope="module")
def report(model):
    options = BenchOptions(
        threads=(1,),
        batch_sizes=(1, 16),
        seconds=0.1,
        num_rounds=4,
        growth_calls=100,
        num_cold_starts=1,
    )
    return bench(model, options, against=model)


def test_every_row_of_a_report_carries_its_proof(report) -> None:
    assert len(report.measured) == 2
    for one in report.measured:
        assert one.proof.share == 1
        assert one.share.share == 1
        assert sum(one.proof.nodes.values()) > 0
        assert one.cores
        assert [row.timing.batch_size for row in one.rows] == [1, 16]


def test_turns_are_as_many_as_rounds_and_speedups_as_many_as_pairs(report) -> None:
    before, now = report.measured
    for row in (*before.rows, *now.rows):
        assert len(row.timing.turns_ms) == report.num_rounds == 4
    assert all(row.speedup is None for row in before.rows)
    for mine, theirs in zip(now.rows, before.rows, strict=True):
        ratios = np.array(theirs.timing.turns_ms) / np.array(mine.timing.turns_ms)
        assert mine.speedup.median == pytest.approx(np.median(ratios), rel=1e-5)


def test_the_table_and_the_csv_say_the_same(report) -> None:
    table, rows = as_table(report), as_csv(report).splitlines()
    assert len(rows) == 1 + 4
    for one in report.measured:
        for row in one.rows:
            assert f"{row.timing.p50_ms:.3f}" in table
            assert any(str(row.timing.p50_ms) in line for line in rows)


def test_the_report_is_the_same_after_json(report) -> None:
    assert report_from(json.loads(dump_json(report))) == report


def test_the_same_seed_takes_the_same_turns(model) -> None:
    def steps(seed: int) -> list[str]:
        message: list[str] = []
        plan = BenchOptions(threads=(1,), batch_sizes=(1,), seconds=0.02, num_rounds=2, seed=seed)
        measure([model_spec("m", model, "cpu", None)], plan, BenchFindings(), message.append)
        return message

    assert steps(1) == steps(1)


def test_the_command_says_what_the_library_says(model) -> None:
    arguments = ["bench", str(model), "--json", "--batch-size", "1", "--seconds", "0.05"]
    result = CliRunner().invoke(serving, [*arguments, "--threads", "1", "--rounds", "2"])
    found = report_from(json.loads(result.stdout))
    assert found.model == str(model)
    assert found.num_rounds == 2
    assert found.measured[0].settings == ONE
