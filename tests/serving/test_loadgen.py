"""MLPerf's load generator, by which benchmarks/scenarios.py checks ferry's own figures."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from steady import Steady

from serving.errors import FerryError
from serving.measuring.system import LoadRun, ServerLoad, System
from serving.runtime.settings import SessionSettings

ONE = SessionSettings(threads=1)
FOUR = SessionSettings(threads=1, parallel=4)
LOAD = ServerLoad(rate_per_second=500.0, num_queries=100, seed=1, limit_ms=None)
PATTERNS = ("stream", "offline", "server")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        yield importlib.import_module("scenarios")


@pytest.fixture
def engines(script: ModuleType) -> dict[str, Any]:
    pytest.importorskip("mlperf_loadgen", reason="mlcommons_loadgen is not installed")
    return dict(script.ENGINES)


def run(engine: Any, pattern: str, system: System) -> LoadRun:
    asked = {"stream": (1, 0.1), "offline": (0.1,), "server": (LOAD,)}[pattern]
    found: LoadRun = getattr(engine, pattern)(system, *asked)
    return found


@pytest.mark.parametrize("pattern", PATTERNS)
def test_both_load_the_system_alike_and_print_nothing(
    engines: dict[str, Any],
    pattern: str,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    batch_size = 4 if pattern == "offline" else 1
    for engine in engines.values():
        subject = Steady(call_ms=2)
        found = run(engine, pattern, System(subject, ONE, batch_size))
        assert {len(rows) for rows in subject.asked} == {batch_size}
        # No call is quicker than its sleep, whoever times it.
        assert found.rows_per_second <= 500 * batch_size
        assert 2 <= found.p50_ms <= found.p90_ms <= found.p99_ms <= found.p999_ms
        assert (
            found.num_queries == {"stream": found.num_queries, "offline": 1, "server": 100}[pattern]
        )
    assert capfd.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [ONE, FOUR])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_error_of_the_subject_comes_out_and_nothing_waits_for_ever(
    engines: dict[str, Any],
    pattern: str,
    settings: SessionSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the tenth call: LoadGen makes it on the slowest of machines too."""
    monkeypatch.setattr(System, "capacity", lambda *_: 1000.0)
    subject = Steady(call_ms=1)
    subject.fail_at = 10
    with pytest.raises(ArithmeticError, match="the subject broke"):
        run(engines["loadgen"], pattern, System(subject, settings, 1))


def test_without_the_package_it_says_what_to_install(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(FerryError, match="pip install mlcommons_loadgen"):
        script.loadgen_stream(System(Steady(call_ms=0), ONE, 1), 1, 0.1)
