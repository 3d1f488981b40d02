"""Our figures beside those of MLPerf's load generator, on the same system under test.

The system knows how long each of its calls really took. Both engines' figures are divided by what
follows from that, so that a machine that is busy in one run and idle in the next does not matter.
"""

import dataclasses
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from steady import Steady, plan

from serving.errors import FerryError
from serving.measuring.scenarios.records import Run, ScenarioPlan
from serving.measuring.scenarios.scenarios import FERRY, check_plan, measure_scenario
from serving.measuring.scenarios.system import Engine, ServerLoad, System
from serving.runtime.settings import SessionSettings

AGREEMENT = 0.03
MOST_PAIRS = 5
ONE = SessionSettings(threads=1)
FOUR = SessionSettings(threads=1, parallel=4)
SIXTEEN = SessionSettings(threads=1, parallel=16)
PERCENTILES = {"p50_ms": 50, "p90_ms": 90}


@pytest.fixture
def loadgen() -> Engine:
    pytest.importorskip("mlperf_loadgen", reason="mlcommons_loadgen is not installed")
    from serving.measuring.scenarios.loadgen import LOADGEN

    return LOADGEN


def agree(
    load: Callable[[Engine, System], Run],
    figures: Callable[[Run, list[float]], dict[str, float]],
    system: Callable[[], tuple[Steady, System]],
    loadgen: Engine,
) -> None:
    """The median of paired ratios is within 3 % of 1, after as many pairs as that takes."""
    ratios: dict[str, list[float]] = {}
    for _ in range(MOST_PAIRS):
        ours, theirs = (relative(load, figures, system(), one) for one in (FERRY, loadgen))
        for name in ours:
            ratios.setdefault(name, []).append(ours[name] / theirs[name])
        if all(abs(statistics.median(found) - 1) < AGREEMENT for found in ratios.values()):
            return
    pytest.fail(f"ferry's figures over loadgen's: {ratios}")


def relative(
    load: Callable[[Engine, System], Run],
    figures: Callable[[Run, list[float]], dict[str, float]],
    under_test: tuple[Steady, System],
    engine: Engine,
) -> dict[str, float]:
    """An engine's figures, divided by what the system itself says."""
    subject, system = under_test
    return figures(load(engine, system), subject.took_ms)


def latencies(run: Run, took_ms: list[float]) -> dict[str, float]:
    """Of the queries that counted, which were the last ones."""
    own = took_ms[-run.num_queries :]
    return {
        name: getattr(run, name) / float(np.percentile(own, percentile, method="higher"))
        for name, percentile in PERCENTILES.items()
    }


def make(
    settings: SessionSettings, batch_size: int = 1, **speed: float
) -> Callable[[], tuple[Steady, System]]:
    def system() -> tuple[Steady, System]:
        subject = Steady(**speed)
        return subject, System(subject, settings, batch_size)

    return system


def test_a_single_stream_agrees(loadgen: Engine) -> None:
    agree(lambda one, system: one.stream(system, 1, 0.5), latencies, make(ONE, call_ms=10), loadgen)


def test_a_multi_stream_agrees(loadgen: Engine) -> None:
    slow = make(ONE, call_ms=2, row_ms=1)
    agree(lambda one, system: one.stream(system, 8, 0.5), latencies, slow, loadgen)


@pytest.mark.parametrize("settings", [ONE, FOUR])
def test_the_offline_rate_agrees(loadgen: Engine, settings: SessionSettings) -> None:
    def rate(run: Run, took_ms: list[float]) -> dict[str, float]:
        own = statistics.fmean(took_ms[-run.rows_per_query // 8 :])
        return {"rows_per_second": run.rows_per_second / (8000 / own * settings.parallel)}

    slow = make(settings, 8, call_ms=2, row_ms=1)
    agree(lambda one, system: one.offline(system, 1.0), rate, slow, loadgen)


def test_the_latency_of_a_server_agrees(loadgen: Engine) -> None:
    # Four of sixteen threads are busy on average: hardly a query waits for another.
    low = ServerLoad(rate_per_second=40.0, num_queries=80, seed=1, limit_ms=None)
    slow = make(SIXTEEN, call_ms=100)
    agree(lambda one, system: one.server(system, low), latencies, slow, loadgen)


def test_both_engines_load_the_system_alike(loadgen: Engine) -> None:
    for scenario, changes in (
        ("single-stream", {}),
        ("multi-stream", {}),
        ("offline", {"batch_size": 8}),
        ("server", {"batch_size": 4, "rate_per_second": 200.0}),
    ):
        ours, theirs = (
            measured(plan(scenario, engine=engine, **changes)) for engine in ("ferry", "loadgen")
        )
        assert ours[1] == theirs[1], f"{scenario}: rows of the calls"
        same = ("scenario", "batch_size", "rate_per_second", "p99_limit_ms", "probes")
        for name in same:
            assert getattr(ours[0], name) == getattr(theirs[0], name), (scenario, name)
        assert theirs[0].engine == "loadgen"
        assert theirs[0].rows_per_second > 0
        if scenario == "server":
            assert theirs[0].num_queries == ours[0].num_queries == 100
        if scenario != "offline":
            assert ours[0].rows_per_query == theirs[0].rows_per_query


def measured(asked: ScenarioPlan) -> tuple:
    subject = Steady(call_ms=2)
    figures = measure_scenario(System(subject, ONE, asked.batch_size), asked)
    sizes = {len(rows) for rows in subject.asked}
    return figures, sizes if asked.scenario != "server" else max(sizes)


def test_loadgen_counts_a_stall_as_we_do(loadgen: Engine) -> None:
    load = ServerLoad(rate_per_second=200.0, num_queries=400, seed=1, limit_ms=None)
    for engine in (FERRY, loadgen):
        subject = Steady(call_ms=0.5)
        subject.stall_at = 100
        found = engine.server(System(subject, ONE, 1), load)
        assert found.p99_ms > 140
        assert found.p50_ms < 50


def test_the_rate_is_searched_with_loadgen_too(loadgen: Engine) -> None:
    asked = plan("server", engine="loadgen", p99_limit_ms=60.0, seconds=0.3)
    found, _ = measured(asked)
    assert 80 < found.rate_per_second < 500
    assert found.p99_ms <= 60
    assert found.probes


def test_nothing_is_printed_and_nothing_is_left(
    loadgen: Engine,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    loadgen.stream(System(Steady(call_ms=1), ONE, 1), 1, 0.1)
    loadgen.offline(System(Steady(call_ms=1), ONE, 4), 0.1)
    assert capfd.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [ONE, FOUR])
def test_an_error_of_the_subject_comes_out_and_nothing_waits_for_ever(
    loadgen: Engine, settings: SessionSettings
) -> None:
    load = ServerLoad(rate_per_second=500.0, num_queries=100, seed=1, limit_ms=None)
    for run in (
        lambda system: loadgen.stream(system, 1, 0.1),
        lambda system: loadgen.offline(system, 0.1),
        lambda system: loadgen.server(system, load),
    ):
        subject = Steady(call_ms=1)
        subject.fail_at = 60
        with pytest.raises(ArithmeticError, match="the subject broke"):
            run(System(subject, settings, 1))


def test_without_the_package_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    asked = plan("single-stream", engine="loadgen")
    with pytest.raises(FerryError) as caught:
        check_plan(asked)
    assert str(caught.value) == (
        "the engine loadgen needs mlcommons_loadgen: pip install 'onnx-ferry[loadgen]'"
    )
    check_plan(dataclasses.replace(asked, engine="ferry"))
