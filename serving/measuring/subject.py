"""A subject: something that answers batches of rows, and the process that measures it.

`serving.measuring.onnx_subject` is a model in ONNX Runtime; the pipeline has PyTorch and MLflow as
baselines. The process is asked by `serving.measuring.process`, by a line of JSON each way. It
measures nothing of its own accord, so that subjects take turns: between its turns it waits for the
next line and takes no processor time. It ends when its standard input does.
"""

import dataclasses
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from serving.errors import FerryError, InputError
from serving.files import read_record
from serving.machine.environment import peak_memory_bytes
from serving.measuring.meters import growth, resident_bytes
from serving.measuring.scenarios.scenarios import run_scenario
from serving.measuring.timing import (
    NS_PER_MS,
    Call,
    Samples,
    WarmUp,
    digits,
    take_samples,
    time_once,
    timing_of,
    warm_up,
)
from serving.runtime.session import ProviderProof
from serving.runtime.settings import SessionSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A subject that is ready to answer."""

    ready_ms: float
    """Time to read, check and optimise the model: of ONNX Runtime the median of three sessions."""
    sha256: str | None
    """Of the model's file; None where there is no single one."""
    file_bytes: int | None
    proof: ProviderProof | None
    """None for what does not run in ONNX Runtime."""
    fixed_batch: int | None
    """The one batch size that the model takes, or None where any will do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Where the time goes, by ONNX Runtime's own profile of some calls."""

    time_us: Mapping[str, float]
    """Microseconds in nodes, per provider."""
    share: float
    """The part, 0 to 1, of that time that was spent on the provider that was asked for."""


class BenchSubject(Protocol):
    """What is measured."""

    def start(self, settings: SessionSettings) -> Started:
        """Make ready, anew each time it is called."""

    def call(self, batch_size: int) -> Call:
        """What runs one batch of so many rows, on inputs made beforehand; InputError if none can.

        Each call of this method gives one that may run beside the others, in a thread of its own.
        """

    def answer(self, rows: npt.NDArray[Any]) -> object:
        """Answer rows of the first input."""

    def rows(self, count: int) -> npt.NDArray[Any]:
        """So many rows of the first input, real ones or made up: what scenarios ask about."""

    def share(self, batch_size: int) -> Share | None:
        """Where the time of a batch goes; None where nothing tells."""

    def gpu_bytes(self) -> int | None:
        """Memory of a GPU that this process holds; None without one."""


def take_parallel_samples(calls: Sequence[Call], seconds: float, *, min_calls: int) -> Samples:
    """Time each of `calls` in a thread of its own for about `seconds`; a single one in this thread.

    So a server with one session would make them.
    """
    if len(calls) == 1:
        return take_samples(calls[0], seconds, min_calls=min_calls)
    together = threading.Barrier(len(calls) + 1)

    def run(call: Call) -> Samples:
        together.wait()
        return take_samples(call, seconds, min_calls=min_calls)

    with ThreadPoolExecutor(len(calls)) as pool:
        waiting = [pool.submit(run, call) for call in calls]
        together.wait()
        start = perf_counter_ns()
        parts = [one.result() for one in waiting]
        elapsed = perf_counter_ns() - start
    return Samples(
        call_ns=np.concatenate([part.call_ns for part in parts]),
        num_calls=sum(part.num_calls for part in parts),
        elapsed_ns=elapsed,
    )


FIRST_CALLS = 2
"""Uncounted at the start of a turn: the process that ran before has the caches."""
MIN_TURN_CALLS = 2

Answer = Mapping[str, Any]


class SubjectServer:
    """Answers the parent process; the name of a request is that of a method."""

    def __init__(self, subject: BenchSubject) -> None:
        """Measure `subject`."""
        self.subject = subject
        self.settings = SessionSettings(threads=1)
        self.ready_bytes = 0
        self.calls: list[Call] = []
        self.batch_size = 0
        self.warm = WarmUp(ms=0.0, steady=False)
        self.turns: list[Samples] = []

    def start(self, settings: Mapping[str, Any], cores: list[int]) -> Answer:
        """Pin this process to `cores` and make the subject ready."""
        pin(cores)
        self.settings = read_record(SessionSettings, settings, "settings")
        started = self.subject.start(self.settings)
        self.ready_bytes = resident_bytes()
        return dataclasses.asdict(started)

    def prepare(self, batch_size: int, seconds: float) -> Answer:
        """Make inputs for a batch size, run the first call and warm up."""
        self.batch_size, self.turns = batch_size, []
        first = self.subject.call(batch_size)
        first_call_ms = digits(time_once(first) / NS_PER_MS)
        others = [self.subject.call(batch_size) for _ in range(self.settings.parallel - 1)]
        self.calls = [first, *others]
        self.warm = warm_up(first, seconds)
        return {"first_call_ms": first_call_ms}

    def turn(self, seconds: float) -> Answer:
        """Measure for `seconds`; the samples are kept here until `timing` is asked for."""
        for call in self.calls:
            for _ in range(FIRST_CALLS):
                call()
        self.turns.append(take_parallel_samples(self.calls, seconds, min_calls=MIN_TURN_CALLS))
        return {}

    def timing(self) -> Answer:
        """The figures of all turns."""
        if not self.turns:
            raise InputError("nothing was measured yet")
        return dataclasses.asdict(timing_of(self.turns, batch_size=self.batch_size, warm=self.warm))

    def glance(self, batch_size: int, seconds: float) -> Answer:
        """A rough figure in little time: the median of a short turn after a call or two."""
        calls = [self.subject.call(batch_size) for _ in range(self.settings.parallel)]
        for call in calls:
            call()
        samples = take_parallel_samples(calls, seconds, min_calls=MIN_TURN_CALLS)
        return {"p50_ms": digits(np.median(samples.call_ns) / NS_PER_MS)}

    def memory(self) -> Answer:
        """The most memory that this process ever held, and what it holds on a GPU."""
        return {"peak_bytes": peak_memory_bytes(), "gpu_bytes": self.subject.gpu_bytes()}

    def share(self, batch_size: int) -> Answer | None:
        """Where the time of a batch goes."""
        found = self.subject.share(batch_size)
        return dataclasses.asdict(found) if found else None

    def growth(self, num_calls: int, batch_sizes: list[int], seed: int) -> Answer:
        """How much memory calls of mixed batch sizes leave behind."""
        calls = {size: self.subject.call(size) for size in batch_sizes}
        found = growth(calls, num_calls=num_calls, seed=seed, before_bytes=self.ready_bytes)
        return dataclasses.asdict(found)

    def scenario(self, **plan: Any) -> Answer:
        """Run a scenario."""
        return run_scenario(self.subject, self.settings, plan)


def pin(cores: list[int]) -> None:
    """Keep this process on `cores`, where the system lets it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def serve(open_subject: Callable[[Mapping[str, Any]], BenchSubject]) -> None:
    """Read requests from stdin until it ends; the first line says what to open.

    Answers go to the file descriptor that the first argument names, and not to stdout, where any
    library may print.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as channel:
        desk: SubjectServer | None = None
        for line in sys.stdin:
            request = json.loads(line)
            try:
                if desk is None:
                    desk, answer = SubjectServer(open_subject(request)), {}
                else:
                    answer = getattr(desk, request.pop("do"))(**request)
            except (FerryError, OSError) as error:
                answer = {"error": type(error).__name__, "message": str(error)}
            channel.write(json.dumps(answer) + "\n")
            channel.flush()
