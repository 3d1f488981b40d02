"""The load patterns on a system of known speed, the search for a rate, and a real model."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_onnx
from steady import Steady, plan

from serving.errors import FerryError, InputError, UnknownNameError, UsageError
from serving.files import read_record
from serving.measuring import scenarios
from serving.measuring.bench import run_scenarios
from serving.measuring.onnx_subject import OnnxSubject
from serving.measuring.scenarios import (
    MIN_QUERIES,
    SCENARIOS,
    Probe,
    ScenarioFigures,
    ScenarioPlan,
    check_plan,
    measure_scenario,
    run_server,
)
from serving.measuring.subject import SubjectSpec
from serving.measuring.system import ScenarioSubject, ServerLoad, System
from serving.runtime.settings import SessionSettings

ONE = SessionSettings(threads=1)


def figures(subject: ScenarioSubject, asked: ScenarioPlan, parallel: int = 1) -> ScenarioFigures:
    settings = SessionSettings(threads=1, parallel=parallel)
    return measure_scenario(System(subject, settings, asked.batch_size), asked)


def load(rate: float, count: int, limit_ms: float | None = None) -> ServerLoad:
    return ServerLoad(rate_per_second=rate, num_queries=count, seed=1, limit_ms=limit_ms)


# Streams and offline


def test_a_single_stream_asks_one_row_after_the_other() -> None:
    subject = Steady(call_ms=2)
    found = figures(subject, plan("single-stream", batch_size=16))
    assert {len(rows) for rows in subject.asked} == {1}
    assert (found.rows_per_query, found.batch_size) == (1, 1)
    assert found.num_queries >= MIN_QUERIES
    assert 2 <= found.p50_ms <= found.p90_ms <= found.p99_ms <= found.p999_ms
    assert found.rows_per_second <= 500
    assert (found.rate_per_second, found.p99_limit_ms, found.probes) == (None, None, ())


def test_a_slow_system_ends_a_stream_before_its_number_of_queries() -> None:
    found = figures(Steady(call_ms=50), plan("single-stream", seconds=0.03))
    assert 1 <= found.num_queries < MIN_QUERIES
    assert found.seconds >= 0.3


def test_a_multi_stream_asks_eight_rows_at_a_time() -> None:
    subject = Steady(call_ms=1, row_ms=0.25)
    found = figures(subject, plan("multi-stream"))
    assert {len(rows) for rows in subject.asked} == {8}
    assert found.rows_per_query == 8
    assert found.p50_ms >= 3, "the latency is that of the whole query"
    assert found.rows_per_second == pytest.approx(8 * found.num_queries / found.seconds, rel=1e-3)


def test_offline_answers_all_rows_in_batches_from_all_threads() -> None:
    one = figures(Steady(call_ms=4), plan("offline", batch_size=32))
    beside = Steady(call_ms=4)
    two = figures(beside, plan("offline", batch_size=32), parallel=2)
    assert (one.num_queries, one.batch_size) == (1, 32)
    assert one.rows_per_query % 32 == 0
    assert one.rows_per_second <= 32 / 0.004
    # Two sleep side by side: more rows than one thread could have answered in calls that long.
    assert two.rows_per_second > 1.3 * 32_000 / np.mean(beside.took_ms)
    assert one.p999_ms == pytest.approx(1000 * one.seconds, rel=1e-3), "the last rows come last"


def test_the_rows_of_the_pool_take_their_turns() -> None:
    subject = Steady(call_ms=0)
    call = System(subject, ONE, 1).call(8)
    for _ in range(1024 // 8 + 1):
        call()
    asked = np.concatenate(subject.asked)[:, 0]
    assert sorted(asked[:1024]) == list(range(1024))
    assert list(asked[1024:]) == list(asked[:8])


def test_bound_memory_is_called_as_it_lies() -> None:
    subject = Steady(call_ms=0)
    settings = SessionSettings(threads=1, binding=True)
    measure_scenario(System(subject, settings, 1), plan("multi-stream", seconds=0.01))
    assert all((rows == -1).all() and len(rows) == 8 for rows in subject.asked)


# Server


def test_at_a_low_rate_nobody_waits() -> None:
    found = figures(
        Steady(call_ms=5), plan("server", rate_per_second=200.0, seconds=0.5), parallel=4
    )
    assert found.num_queries == MIN_QUERIES
    assert found.rate_per_second == 200
    assert 5 <= found.p50_ms < 15
    # 100 of them in about half a second: an open loop does not hurry.
    assert found.seconds > 0.25


def test_latency_counts_from_the_schedule_as_the_backlog_grows() -> None:
    # 10 ms of work every 2 ms: the last of 100 is answered 800 ms after it was due.
    found = run_server(System(Steady(call_ms=10), ONE, 1), load(500, 100))
    assert found.p999_ms > 600
    assert 250 < found.p50_ms < found.p90_ms < found.p99_ms
    assert found.seconds >= 1


def test_a_stall_shows_in_p99_and_not_in_p50() -> None:
    subject = Steady(call_ms=0.5)
    subject.stall_at = 100
    found = run_server(System(subject, ONE, 1), load(200, 400))
    # Some forty queries fell due meanwhile; a closed loop would have made one of them late.
    assert found.p99_ms > 140
    assert found.p50_ms < 50


def test_queries_that_are_due_share_a_call() -> None:
    subject = Steady(call_ms=10)
    found = run_server(System(subject, ONE, 8), load(400, 200))
    sizes = [len(rows) for rows in subject.asked[8:]]  # after one call of each size
    assert sum(sizes) == found.num_queries == 200
    assert max(sizes) <= 8
    assert np.mean(sizes) > 2
    assert found.batch_size == 8
    # 100 calls of one a second would leave 1.5 s of backlog, 100 of several keep up.
    assert found.p99_ms < 1000


def test_a_hopeless_run_is_given_up_and_is_known_to_be_hopeless() -> None:
    subject = Steady(call_ms=5)
    found = run_server(System(subject, ONE, 1), load(2000, 500, limit_ms=20))
    assert found.num_queries < 100
    assert found.p99_ms > 20


def test_an_error_of_the_subject_ends_all_threads() -> None:
    subject = Steady(call_ms=1)
    subject.fail_at = 20
    interval = sys.getswitchinterval()
    with pytest.raises(ArithmeticError, match="the subject broke"):
        run_server(System(subject, SessionSettings(threads=1, parallel=2), 1), load(100, 10_000))
    assert sys.getswitchinterval() == interval


# The highest rate


def test_the_highest_rate_of_a_real_system_is_below_its_capacity_and_near(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By short probes and to a third: how the search goes on is shown by servers of no time."""
    for name, value in {"MIN_PROBE_QUERIES": 60, "LIMITS_LONG": 10, "PRECISION": 1.3}.items():
        monkeypatch.setattr(scenarios, name, value)
    found = figures(Steady(call_ms=3), plan("server", p99_limit_ms=100.0, seconds=0.1))
    assert found.rate_per_second is not None
    # A tenth above what can be done has a backlog of one limit by the end of a probe.
    assert 20 < found.rate_per_second < 1.3 * 1000 / 3
    assert found.p99_ms <= found.p99_limit_ms == 100
    assert found.rate_per_second in {probe.rate_per_second for probe in found.probes if probe.kept}
    assert {probe.kept for probe in found.probes} == {True, False}


# Plans


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scenario": "singel-stream"}, UnknownNameError, "did you mean 'single-stream'"),
        ({"batch_size": 0}, UsageError, "the batch size must be 1 or more, got 0"),
        ({"seconds": 0.0}, UsageError, "the seconds must be above 0, got 0"),
        ({"seconds": float("nan")}, UsageError, "the seconds must be above 0, got nan"),
        ({"rate_per_second": 0.0}, UsageError, "the rate must be above 0 queries/s, got 0"),
        ({"rate_per_second": -2.0}, UsageError, "the rate must be above 0 queries/s, got -2"),
        ({"p99_limit_ms": 0.0}, UsageError, "the p99 limit must be above 0 ms, got 0"),
        ({"p99_limit_ms": float("inf")}, UsageError, "must be above 0 ms, got inf"),
        ({}, UsageError, "one of them, got neither"),
        (
            {"rate_per_second": 5.0, "p99_limit_ms": 2.0},
            UsageError,
            "one of them, got 5 queries/s and 2 ms",
        ),
        (
            {"scenario": "offline", "rate_per_second": 5.0},
            UsageError,
            "a rate or a p99 limit is for server, not for offline",
        ),
        ({"scenario": "multi-stream", "p99_limit_ms": 5.0}, UsageError, "not for multi-stream"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(
    changes: dict[str, Any], error: type[FerryError], message: str
) -> None:
    asked = dataclasses.replace(plan("server"), **changes)
    with pytest.raises(error, match=message):
        check_plan(asked)
    subject = Steady(call_ms=0)
    with pytest.raises(error, match=message):
        figures(subject, asked)
    assert not subject.asked


def test_what_a_scenario_gives_goes_through_json() -> None:
    asked = plan("server", rate_per_second=400, seconds=0.05)
    found = figures(Steady(call_ms=1), asked)
    assert (found.scenario, found.num_queries) == ("server", MIN_QUERIES)
    probed = dataclasses.replace(
        found, probes=(Probe(rate_per_second=400.0, p99_ms=2.0, kept=True),)
    )
    raw = json.loads(json.dumps(dataclasses.asdict(probed)))
    assert read_record(ScenarioFigures, raw, "a scenario") == probed


# A real model in a process of its own


def onnx_spec(model: Path, setup: Mapping[str, Any] | None = None) -> SubjectSpec:
    message = {"model": str(model), "provider": "cpu", "rows": None, **(setup or {})}
    return SubjectSpec(
        name="fp32", provider="cpu", module="serving.measuring.onnx_subject", setup=message
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenarios") / "tiny.onnx"
    return tiny_onnx.write(path, tiny_onnx.linear(["batch", 4]))


@pytest.mark.parametrize("settings", [ONE, SessionSettings(threads=1, parallel=2, binding=True)])
def test_every_scenario_of_a_real_model(model: Path, settings: SessionSettings) -> None:
    streams = [plan(name, seconds=0.05, batch_size=4) for name in SCENARIOS if name != "server"]
    server = plan("server", seconds=0.2, batch_size=4, rate_per_second=400.0)
    message: list[str] = []
    found = list(run_scenarios(onnx_spec(model), settings, [*streams, server], message.append))
    assert [one.scenario for one in found] == list(SCENARIOS)
    assert [one.rows_per_query for one in found[:2]] == [1, 8]
    assert found[3].rate_per_second == 400
    for one in found:
        assert (one.subject, one.provider, one.settings) == ("fp32", "cpu", settings)
        assert one.rows_per_second > 0
        assert 0 < one.p50_ms <= one.p90_ms <= one.p99_ms <= one.p999_ms
    assert message[0] == "starting fp32 · cpu"
    assert message[-1] == "fp32 · cpu, server at 400 queries/s"


def test_what_was_found_before_an_error_is_kept(model: Path) -> None:
    plans = [plan("offline", seconds=0.05), plan("server", seconds=0.02, p99_limit_ms=1e-6)]
    steps: list[str] = []
    results = run_scenarios(onnx_spec(model), ONE, plans, steps.append)
    assert next(results).scenario == "offline"
    with pytest.raises(InputError, match=r"no rate keeps p99 under 1e-06 ms: the best was"):
        next(results)
    assert steps[-1] == "fp32 · cpu, server, the highest rate with p99 under 1e-06 ms"


def test_a_model_of_one_batch_size_says_so(tmp_path: Path) -> None:
    fixed = tiny_onnx.write(tmp_path / "fixed.onnx", tiny_onnx.linear([4, 4]))
    subject = OnnxSubject(fixed, "cpu", None)
    subject.start(ONE)
    with pytest.raises(InputError, match="the model takes batches of 4, not of 8"):
        figures(subject, plan("multi-stream"))
    with pytest.raises(InputError, match="the model refused its input"):
        figures(subject, plan("single-stream"))
