"""The parts of a measuring process: parallel calls, memory, load, energy and cold starts."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fresh_pages import fresh_pages

from serving.errors import ModelError
from serving.measuring import meters
from serving.measuring.bench import cold_starts
from serving.measuring.meters import (
    LoadMeter,
    energy_meter,
    gpu_joules,
    growth,
    own_gpu_bytes,
    resident_bytes,
)
from serving.measuring.subject import take_parallel_samples

# Calls at a time


def test_calls_of_several_threads_run_at_the_same_time():
    seen: set[int] = set()
    meeting, met = threading.Barrier(2, timeout=60), threading.Event()

    def call():
        seen.add(threading.get_ident())
        if not met.is_set():
            meeting.wait()  # passes only when both are in here
            met.set()
        time.sleep(0.001)  # longer than the clock needs to time a single call

    samples = take_parallel_samples([call, call], 0.05)
    assert len(seen) == 2
    assert samples.num_calls >= 10
    assert len(samples.call_ns) == samples.num_calls


def test_the_rate_of_parallel_calls_is_that_of_all():
    samples = take_parallel_samples([lambda: time.sleep(0.01)] * 3, 0.2)
    rate = samples.num_calls / (samples.elapsed_ns / 1e9)
    assert 120 < rate <= 300
    assert samples.call_ns.min() >= 10e6


def test_a_failure_in_a_thread_is_ours():
    def call():
        raise ModelError("no")

    with pytest.raises(ModelError, match="no"):
        take_parallel_samples([call, call], 0.05)


# Memory


def test_a_leak_is_a_drift_and_a_full_arena_is_not():
    kept = []
    leaking = growth(
        {1: lambda: kept.append(fresh_pages(2**17))},
        num_calls=200,
        seed=1,
        before_bytes=resident_bytes(),
    )
    assert leaking.drift_bytes > 10 * 2**20
    arena = []

    def fill():
        if not arena:
            arena.append(fresh_pages(2**25))

    filled = growth({1: fill, 2: fill}, num_calls=200, seed=1, before_bytes=resident_bytes())
    assert filled.arena_bytes > 20 * 2**20
    assert filled.drift_bytes < 2**20
    assert filled.batch_sizes == (1, 2)


def test_every_batch_size_is_called_in_an_order_of_the_seed():
    def order(seed):
        called: list[int] = []
        growth(
            {n: lambda n=n: called.append(n) for n in (1, 8, 64)},
            num_calls=60,
            seed=seed,
            before_bytes=resident_bytes(),
        )
        return called

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert set(order(1)) == {1, 8, 64}
    assert len(order(1)) == 60


# Load


def test_our_own_work_is_not_that_of_others():
    meter = LoadMeter()
    subprocess.run([sys.executable, "-c", "sum(range(20_000_000))"], check=True)
    found = meter.read()
    assert found.own_cores * found.seconds > 0.1
    assert found.seconds > 0


def test_work_of_others_is_told(monkeypatch):
    """On a machine whose counters we set: 2 s busy and 1 s stolen in 1 s, 0.5 s of it our own."""
    machine, own = iter([(10.0, 0.0), (12.0, 1.0)]), iter([1.0, 1.5])
    now = iter([0.0, 1.0])
    monkeypatch.setattr(meters, "_machine_seconds", lambda: next(machine))
    monkeypatch.setattr(meters, "_own_seconds", lambda: next(own))
    monkeypatch.setattr(meters, "perf_counter", lambda: next(now))
    monkeypatch.setattr(meters.os, "cpu_count", lambda: 4)
    found = LoadMeter().read()
    assert (found.own_cores, found.other_cores, found.stolen_cores) == (0.5, 1.5, 1.0)
    assert found.warning == (
        "other programs kept 1.5 of 4 cores busy and the host of this virtual machine took 1.0 "
        "cores away: distrust the figures"
    )


def test_a_quiet_machine_is_no_warning(monkeypatch):
    machine, own = iter([(10.0, 0.0), (11.0, 0.0)]), iter([1.0, 1.9])
    monkeypatch.setattr(meters, "_machine_seconds", lambda: next(machine))
    monkeypatch.setattr(meters, "_own_seconds", lambda: next(own))
    monkeypatch.setattr(meters, "perf_counter", iter([0.0, 1.0]).__next__)
    assert LoadMeter().read().warning is None


# Energy


def counter(folder: Path, name: str, microjoules: int) -> Path:
    (folder / name).mkdir()
    path = folder / name / "energy_uj"
    path.write_text(f"{microjoules}\n")
    return path


def test_the_energy_of_all_packages_is_added_up(tmp_path):
    first = counter(tmp_path, "intel-rapl:0", 1_000_000)
    counter(tmp_path, "intel-rapl:1", 500_000)
    counter(tmp_path, "intel-rapl:0:0", 900_000)  # a part of the first package
    meter = energy_meter("cpu", tmp_path)
    assert meter.source == "intel-rapl:0 + intel-rapl:1"
    assert meter.joules() == 1.5
    first.write_text("2000000\n")
    assert meter.joules() == 2.5


def test_without_a_counter_there_is_a_reason(tmp_path):
    meter = energy_meter("cpu", tmp_path)
    assert meter.source == ""
    assert "has no counter of energy (RAPL)" in meter.reason
    assert meter.joules() == 0


def test_a_counter_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "intel-rapl:0" / "energy_uj").mkdir(parents=True)
    assert "intel-rapl:0/energy_uj: Is a directory" in energy_meter("cpu", tmp_path).reason


def test_without_a_card_nothing_is_told_of_one():
    if gpu_joules() is not None:
        pytest.skip("there is a card here that counts its energy")
    assert "NVML tells no energy" in energy_meter("cuda").reason
    assert not own_gpu_bytes()


@pytest.mark.gpu
def test_a_card_counts_its_energy():
    joules = gpu_joules()
    if joules is None:
        pytest.skip("no card here counts its energy")
    before = joules()
    time.sleep(0.3)
    assert joules() > before


# Cold starts


ANSWER = "print('answered', flush=True)"


def test_a_cold_start_ends_with_the_answer_and_not_with_the_process():
    slow = f"import time\nprint('noise')\ntime.sleep(0.4)\n{ANSWER}\ntime.sleep(60)"
    programs = {"slow": ("-c", slow), "quick": ("-c", ANSWER)}
    steps: list[str] = []
    found, skipped = cold_starts(programs, 2, steps.append, seed=1)
    assert skipped == ()
    by_name = {one.subject: one for one in found}
    assert 400 <= by_name["slow"].p50_ms < 30_000
    assert by_name["quick"].p50_ms < by_name["slow"].p50_ms
    assert [len(one.runs_ms) for one in found] == [2, 2]
    assert steps[-1] == "cold starts, round 2 of 2"


def test_a_program_without_an_answer_is_skipped_and_the_others_are_not():
    programs = {"silent": ("-c", "print('bye')"), "quick": ("-c", ANSWER)}
    found, (skipped,) = cold_starts(programs, 1, lambda _: None, seed=1)
    assert [one.subject for one in found] == ["quick"]
    assert (skipped.subject, skipped.skipped) == (
        "silent",
        "its cold start ended without an answer",
    )
