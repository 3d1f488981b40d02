"""The process that measures, and the coordinator's end of it."""

import dataclasses
import os
import time

import numpy as np
import pytest
import tiny_onnx
from fresh_pages import fresh_pages
from odd_models import reshaping_to_two_rows

from serving.errors import InputError, MissingInputError, ModelError, UnknownNameError, UsageError
from serving.measuring.onnx_subject import model_spec
from serving.measuring.rounds import BenchFindings, BenchOptions, cores_for, measure
from serving.measuring.subject import (
    FIRST_CALLS,
    Started,
    SubjectProcess,
    SubjectServer,
    SubjectSpec,
    label_of,
)
from serving.runtime.settings import SessionSettings

ONE = SessionSettings(threads=1)
CORES = sorted(os.sched_getaffinity(0))


class Counting:
    """A subject that counts its calls, by batch size."""

    def __init__(self):
        self.calls: dict[int, int] = {}

    def start(self, settings):
        return Started(ready_ms=1.0, sha256=None, file_bytes=None, proof=None, fixed_batch=None)

    def call(self, batch_size):
        if batch_size > 64:
            raise InputError("too large")

        def run():
            self.calls[batch_size] = self.calls.get(batch_size, 0) + 1
            time.sleep(0.001)

        return run

    def answer(self, rows):
        return rows

    def rows(self, count):
        return np.zeros(count)

    def share(self, batch_size):
        return None

    def gpu_bytes(self):
        return None


@pytest.fixture
def desk():
    made = SubjectServer(Counting())
    made.start(dataclasses.asdict(ONE), CORES)
    return made


def test_the_figures_are_of_the_turns_and_not_of_what_goes_before(desk):
    desk.prepare(8, 0.02)
    warming = desk.subject.calls[8]
    assert warming >= 1
    desk.turn(0.02)
    desk.turn(0.02)
    found = desk.timing()
    counted = desk.subject.calls[8] - warming
    # Each turn starts with calls that do not count, and looks three times how long one takes.
    assert found["num_calls"] == counted - 2 * (FIRST_CALLS + 3)
    assert len(found["turns_ms"]) == 2
    assert found["batch_size"] == 8


def test_another_batch_size_starts_anew(desk):
    desk.prepare(8, 0.01)
    desk.turn(0.01)
    desk.prepare(4, 0.01)
    with pytest.raises(InputError, match="nothing was measured yet"):
        desk.timing()


def test_parallel_settings_call_from_several_threads(desk):
    desk.start({**dataclasses.asdict(ONE), "parallel": 3}, CORES)
    desk.prepare(2, 0.01)
    assert len(desk.calls) == 3
    desk.turn(0.05)
    assert desk.timing()["rows_per_second"] > 1000, "three sleepers of 1 ms, two rows each"


def test_memory_and_share_are_told(desk):
    assert desk.memory()["peak_memory_bytes"] > 2**20
    assert desk.memory()["gpu_memory_bytes"] is None
    assert desk.share(1) is None
    assert desk.growth(20, [1, 2], 1)["num_calls"] == 20
    assert desk.subject.calls[1] + desk.subject.calls[2] == 20


def test_growth_counts_from_the_session_that_has_not_been_called(desk):
    """What the first calls of a sweep have filled is no less grown for that."""
    arena = {}
    plain = desk.subject.call

    def filling(batch_size):
        if batch_size not in arena:
            arena[batch_size] = fresh_pages(2**24 * batch_size)
        return plain(batch_size)

    desk.subject.call = filling
    desk.start(dataclasses.asdict(ONE), CORES)
    desk.prepare(4, 0.01)
    found = desk.growth(20, [1, 4], 1)
    assert found["arena_bytes"] > 2**25
    assert found["drift_bytes"] < 2**24


def test_a_process_stays_on_its_cores(desk):
    try:
        desk.start(dataclasses.asdict(ONE), CORES[-1:])
        assert sorted(os.sched_getaffinity(0)) == CORES[-1:]
    finally:
        desk.start(dataclasses.asdict(ONE), CORES)


def test_as_many_cores_as_can_be_busy_and_the_last_ones():
    assert cores_for(ONE) == tuple(CORES[-1:])
    assert cores_for(SessionSettings(threads=1, parallel=len(CORES))) == tuple(CORES)
    assert cores_for(SessionSettings(threads=99)) == tuple(CORES)


# Across the process


@pytest.fixture
def spec(tmp_path):
    path = tiny_onnx.write(tmp_path / "m.onnx", tiny_onnx.linear(["batch", 4]))
    return model_spec("m.onnx", path, "cpu", None)


def test_errors_come_back_as_what_they_were(spec, tmp_path):
    gone = {**spec.setup, "model": str(tmp_path / "gone.onnx")}
    with (
        SubjectProcess(dataclasses.replace(spec, setup=gone)) as worker,
        pytest.raises(MissingInputError, match=r"gone\.onnx is not there"),
    ):
        worker.ask("start", settings=dataclasses.asdict(ONE), cores=CORES)


def test_an_error_leaves_the_process_as_it_was(spec):
    with SubjectProcess(spec) as worker:
        with pytest.raises(InputError):
            worker.ask("timing")
        tf32 = dataclasses.asdict(dataclasses.replace(ONE, tf32=True))
        with pytest.raises(UsageError, match="tf32=on is for cuda"):
            worker.ask("start", settings=tf32, cores=CORES)
        worker.ask("start", settings=dataclasses.asdict(ONE), cores=CORES)
        assert worker.ask("prepare", batch_size=2, seconds=0.01) > 0


def test_a_name_that_is_unknown_there_is_unknown_here(spec):
    unknown = {**spec.setup, "provider": "cdua"}
    with (
        SubjectProcess(dataclasses.replace(spec, setup=unknown)) as worker,
        pytest.raises(UsageError, match="did you mean 'cuda'") as caught,
    ):
        worker.ask("start", settings=dataclasses.asdict(ONE), cores=CORES)
    assert caught.value.exit_code == UnknownNameError.exit_code


def test_a_program_that_does_not_exist_is_told():
    nothing = SubjectSpec(name="x", provider="torch", module="no.such.module", setup={})
    with pytest.raises(ModelError, match=r"measured x ended: .*No module named 'no'"):
        SubjectProcess(nothing)


def test_the_process_is_gone_after_the_block(spec):
    with SubjectProcess(spec) as worker:
        pid = worker._process.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_labels_name_the_provider_of_onnxruntime_alone():
    assert label_of("fp32", "cuda") == "fp32 · cuda"
    assert label_of("PyTorch eager", "torch") == "PyTorch eager"


# Turn by turn


def plan(**changes):
    values = {
        "threads": (1,),
        "batch_sizes": (2, 3),
        "seconds": 0.02,
        "num_rounds": 2,
    }
    return BenchOptions(**{**values, **changes})


def test_what_does_not_take_a_batch_does_not_stop_the_others(spec, tmp_path):
    stubborn = tiny_onnx.write(tmp_path / "two.onnx", reshaping_to_two_rows())
    specs = [model_spec("two.onnx", stubborn, "cpu", None), spec]
    findings, steps = BenchFindings(), []
    measure(specs, plan(), findings, steps.append)
    two, free = findings.measured
    assert [row.timing.batch_size for row in two.rows] == [2]
    assert [batch.batch_size for batch in two.skipped] == [3]
    assert [row.timing.batch_size for row in free.rows] == [2, 3]
    assert free.rows[0].speedup is not None
    assert free.rows[1].speedup is None, "there is nothing to compare with at this batch size"
    assert steps[0] == "starting two.onnx on cpu, threads 1"
    assert isinstance(findings.errors[0], InputError)


def test_what_does_not_start_is_skipped_with_its_reason(spec, tmp_path):
    broken = tiny_onnx.write(tmp_path / "broken.onnx", b"no model")
    specs = [model_spec("broken.onnx", broken, "cpu", None), spec]
    findings = BenchFindings()
    measure(specs, plan(batch_sizes=(1,)), findings, lambda _: None)
    assert [one.subject for one in findings.measured] == ["m.onnx"]
    (skipped,) = findings.skipped
    assert (skipped.subject, skipped.threads) == ("broken.onnx", 1)
    assert "cannot be loaded" in skipped.skipped
    assert isinstance(findings.errors[0], ModelError)
