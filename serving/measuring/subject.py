"""A subject, something that answers batches of rows, and the process that it is measured in.

`serving.measuring.onnx_subject` is a model in ONNX Runtime; the pipeline has PyTorch and MLflow as
baselines. The parent asks by `SubjectProcess`, and `SubjectServer` answers there: a line of JSON
each way. The process measures nothing of its own accord, so that subjects take turns: between its
turns it waits for the next line and takes no processor time. It ends when its input does.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Protocol, Self

import numpy as np

from serving import errors
from serving.errors import FerryError, InputError, ModelError, UnknownNameError, UsageError
from serving.files import read_record
from serving.machine.environment import peak_memory_bytes
from serving.measuring.meters import growth, resident_bytes
from serving.measuring.scenarios import ScenarioPlan, measure_scenario
from serving.measuring.system import ScenarioSubject, System
from serving.measuring.timing import (
    NS_PER_MS,
    Call,
    Samples,
    Timing,
    WarmUp,
    digits,
    take_samples,
    time_once,
    timing_of,
    warm_up,
)
from serving.runtime import guard
from serving.runtime.session import ProviderProof
from serving.runtime.settings import SessionSettings

FIRST_CALLS = 2
"""Uncounted at the start of a turn: the process that ran before has the caches."""
MIN_TURN_CALLS = 2
RATE_TRIES = 40
"""As many times the seconds asked for, and more, the search for a rate takes."""
ENDING_SECONDS = 10
TORCH = "torch"
"""What stands for a provider where ONNX Runtime does not run."""

Answer = Mapping[str, Any]


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


class BenchSubject(ScenarioSubject, Protocol):
    """What is measured."""

    def start(self, settings: SessionSettings) -> Started:
        """Make ready, anew each time it is called."""

    def share(self, batch_size: int) -> Share | None:
        """Where the time of a batch goes; None where nothing tells."""

    def gpu_bytes(self) -> int | None:
        """Memory of a GPU that this process holds; None without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectSpec:
    """What a process is to measure."""

    name: str
    """In tables and records, for instance "fp32" or "PyTorch eager"."""
    provider: str
    """A key of `serving.runtime.session.PROVIDERS`, or "torch"."""
    module: str
    """Its program: `python -m module`."""
    setup: Mapping[str, Any]
    """What the program reads first: plain values."""

    @property
    def label(self) -> str:
        """The name, with the provider where that is one of ONNX Runtime's."""
        return label_of(self.name, self.provider)


def label_of(name: str, provider: str) -> str:
    """How tables call a subject on a provider: "fp32 · cpu", or "PyTorch eager"."""
    return name if provider in ("", TORCH) else f"{name} · {provider}"


class SubjectProcess:
    """A process that measures a subject, ended when the block is left."""

    def __init__(self, spec: SubjectSpec) -> None:
        """Start the process and have it open its subject; raises what that raises there."""
        self.spec = spec
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        reading, writing = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", spec.module, str(writing)],
            stdin=subprocess.PIPE,
            stdout=self._printed,
            stderr=self._printed,
            pass_fds=(writing,),
            env=child_environment(),
        )
        os.close(writing)
        self._answers = os.fdopen(reading, encoding="utf-8")
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._send(spec.setup)
            undo.pop_all()  # it runs: the block that it is used in ends it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, do: str, **arguments: Any) -> Any:
        """Have a method of `SubjectServer` called there; raises what that does, or ModelError."""
        tries = RATE_TRIES if arguments.get("p99_limit_ms") else 2
        guard.step(seconds=tries * arguments.get("seconds", 0) + arguments.get("num_calls", 0))
        return self._send({"do": do, **arguments})

    def start(self, settings: SessionSettings) -> Started:
        """Make the subject ready, on the cores that `settings` can keep busy."""
        cores = list(cores_for(settings))
        answer = self.ask("start", settings=dataclasses.asdict(settings), cores=cores)
        return read_record(Started, answer, self.spec.name)

    def timing(self) -> Timing:
        """The figures of all turns since the batch size was prepared."""
        return read_record(Timing, self.ask("timing"), self.spec.name)

    def close(self) -> None:
        """End the process, in the middle of a turn too."""
        self._process.terminate()
        try:
            self._process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._answers.close()
        self._printed.close()

    def _send(self, request: Mapping[str, Any]) -> Any:
        try:
            if self._process.stdin:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        guard.step()
        if not line:
            raise ModelError(self._why_dead())
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise _error(answer["error"], answer["message"])
        return answer

    def _why_dead(self) -> str:
        code = self._process.wait()
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").strip().splitlines()
        if code < 0:
            name = signal.Signals(-code).name
            return f"the process that measured {self.spec.name} was ended by {name}"
        message = lines[-1] if lines else f"exit status {code}"
        return f"the process that measured {self.spec.name} ended: {message}"


def cores_for(settings: SessionSettings) -> tuple[int, ...]:
    """The cores to pin to: as many as can be busy, the last ones that this process may use.

    The first core of a machine answers most of its interrupts.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    return tuple(allowed[-settings.cores :])


def child_environment() -> dict[str, str]:
    """This process's environment, with `serving` on the path and no options of `ferry bench`."""
    kept = {name: value for name, value in os.environ.items() if name[:12] != "FERRY_BENCH_"}
    home = str(Path(__file__).resolve().parents[2])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}


def _error(kind: str, message: str) -> FerryError:
    """The exception of that name that was raised in the process."""
    if kind == UnknownNameError.__name__:  # which makes its message of parts; this one is made
        return UsageError(message)
    known: type[FerryError] = getattr(errors, kind, ModelError)
    return known(message)


def take_parallel_samples(calls: Sequence[Call], seconds: float) -> Samples:
    """Time `calls` for about `seconds`, each in a thread of its own as a server makes them."""
    if len(calls) == 1:
        return take_samples(calls[0], seconds, min_calls=MIN_TURN_CALLS)
    together = threading.Barrier(len(calls) + 1)

    def run(call: Call) -> Samples:
        together.wait()
        return take_samples(call, seconds, min_calls=MIN_TURN_CALLS)

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


class SubjectServer:
    """Answers the parent process; the name of a request is that of a method."""

    def __init__(self, subject: BenchSubject) -> None:
        self.subject = subject
        self.settings = SessionSettings(threads=1)
        self.ready_bytes = 0
        self.calls: list[Call] = []
        self.batch_size = 0
        self.warm = WarmUp(ms=0.0, steady=False)
        self.turns: list[Samples] = []

    def start(self, settings: Mapping[str, Any], cores: list[int]) -> Answer:
        """Pin this process to `cores` and make the subject ready."""
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        self.settings = read_record(SessionSettings, settings, "settings")
        started = self.subject.start(self.settings)
        self.ready_bytes = resident_bytes()
        return dataclasses.asdict(started)

    def prepare(self, batch_size: int, seconds: float) -> float:
        """Make inputs for a batch size and warm up; returns the milliseconds of the first call."""
        self.batch_size, self.turns = batch_size, []
        first = self.subject.call(batch_size)
        first_call_ms = digits(time_once(first) / NS_PER_MS)
        others = [self.subject.call(batch_size) for _ in range(self.settings.parallel - 1)]
        self.calls = [first, *others]
        self.warm = warm_up(first, seconds)
        return first_call_ms

    def turn(self, seconds: float) -> None:
        """Measure for `seconds`; the samples are kept here until `timing` is asked for."""
        for call in self.calls:
            for _ in range(FIRST_CALLS):
                call()
        self.turns.append(take_parallel_samples(self.calls, seconds))

    def timing(self) -> Answer:
        """The figures of all turns."""
        if not self.turns:
            raise InputError("nothing was measured yet")
        return dataclasses.asdict(timing_of(self.turns, batch_size=self.batch_size, warm=self.warm))

    def glance(self, batch_size: int, seconds: float) -> float:
        """A rough figure in little time: the median of a short turn, in milliseconds."""
        calls = [self.subject.call(batch_size) for _ in range(self.settings.parallel)]
        for call in calls:
            call()
        samples = take_parallel_samples(calls, seconds)
        return digits(np.median(samples.call_ns) / NS_PER_MS)

    def memory(self) -> Answer:
        """The most memory that this process ever held, and what it holds on a GPU."""
        return {
            "peak_memory_bytes": peak_memory_bytes(),
            "gpu_memory_bytes": self.subject.gpu_bytes(),
        }

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
        asked = read_record(ScenarioPlan, plan, "the scenario")
        system = System(self.subject, self.settings, asked.batch_size)
        return dataclasses.asdict(measure_scenario(system, asked))


def serve(open_subject: Callable[[Mapping[str, Any]], BenchSubject]) -> None:
    """Read requests from stdin until it ends; the first line says what to open.

    Answers go to the file descriptor of the first argument: any library may print on stdout.
    """
    guard.be_killed_with_parent()  # in a call that does not end as well
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as channel:
        desk: SubjectServer | None = None
        for line in sys.stdin:
            request = json.loads(line)
            try:
                if desk is None:
                    desk, answer = SubjectServer(open_subject(request)), None
                else:
                    answer = getattr(desk, request.pop("do"))(**request)
            except (FerryError, OSError) as error:
                answer = {"error": type(error).__name__, "message": str(error)}
            channel.write(json.dumps(answer) + "\n")
            channel.flush()
