"""Measure several subjects against each other: each in its process, in turns, batch by batch.

For each of the settings all processes are started. For each batch size they warm up, then take
short turns in a shuffled order, and the medians of their turns are compared pair by pair.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field

import numpy as np

from serving.errors import FerryError, InputError
from serving.files import read_record
from serving.measuring.meters import EnergyMeter, Growth, energy_meter
from serving.measuring.pairing import PairedRatio, orders, ratio_of_turns
from serving.measuring.process import TORCH, SubjectProcess, SubjectSpec
from serving.measuring.report import BenchRow, Measurement, SkippedBatch, SkippedSubject
from serving.measuring.subject import Share, Started
from serving.measuring.timing import Timing, digits
from serving.runtime.settings import SessionSettings

Log = Callable[[str], None]
"""Is given a line before each step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What is measured, and for how long."""

    settings: tuple[SessionSettings, ...]
    batch_sizes: tuple[int, ...]
    seconds: float
    """For each subject at each batch size, all turns together, after warm-up."""
    num_rounds: int
    """Turns that each subject gets."""
    growth_calls: int
    """Calls of mixed batch sizes after which memory is looked at, in ONNX Runtime and with the
    first of the settings alone; 0 for none."""
    seed: int


@dataclass(slots=True, kw_only=True)
class BenchFindings:
    """What was measured so far: what an interrupted run keeps."""

    measured: list[Measurement] = field(default_factory=list)
    skipped: list[SkippedSubject] = field(default_factory=list)
    errors: list[FerryError] = field(default_factory=list)
    """Why subjects and batches were skipped, as they were raised."""


@dataclass(slots=True, kw_only=True)
class _RunningSubject:
    """A subject's process, and what was measured of it so far."""

    process: SubjectProcess
    started: Started
    settings: SessionSettings
    cores: tuple[int, ...]
    meter: EnergyMeter
    first_call_ms: float = 0.0
    joules: float = 0.0
    rows: list[BenchRow] = field(default_factory=list)
    skipped: list[SkippedBatch] = field(default_factory=list)
    errors: list[FerryError] = field(default_factory=list)
    peak_bytes: int = 0
    gpu_bytes: int | None = None
    share: Share | None = None
    growth: Growth | None = None

    @property
    def name(self) -> str:
        return _name(self.process.spec)

    def skip(self, batch_size: int, error: FerryError) -> None:
        self.skipped.append(SkippedBatch(batch_size=batch_size, skipped=str(error)))
        self.errors.append(error)

    def measured(self) -> Measurement:
        return Measurement(
            subject=self.process.spec.name,
            provider=self.process.spec.provider,
            settings=self.settings,
            cores=self.cores,
            sha256=self.started.sha256,
            file_bytes=self.started.file_bytes,
            proof=self.started.proof,
            share=self.share,
            ready_ms=self.started.ready_ms,
            peak_memory_bytes=self.peak_bytes,
            gpu_memory_bytes=self.gpu_bytes,
            growth=self.growth,
            rows=tuple(self.rows),
            skipped=tuple(self.skipped),
        )


def measure(
    specs: Sequence[SubjectSpec], plan: BenchPlan, findings: BenchFindings, log: Log
) -> None:
    """Measure all of `specs` under all settings of the plan, adding to `findings` as it goes.

    Speedups are over the first of `specs`, where that runs. One that does not start with some
    settings is among the skipped ones, with its reason, and so is a batch size that it does not
    take. When the run is interrupted, `findings` has what was measured until then.
    """
    for settings in plan.settings:
        running: list[_RunningSubject] = []
        with ExitStack() as stack:
            try:
                for spec in specs:
                    log(f"starting {_name(spec)}, threads {settings.threads}")
                    try:
                        running.append(_start(spec, settings, stack))
                    except FerryError as error:
                        findings.errors.append(error)
                        findings.skipped.append(_skipped(spec, settings, error))
                for batch_size in plan.batch_sizes:
                    _measure_batch(running, _name(specs[0]), batch_size, plan, log)
                for one in running:
                    log(f"memory of {one.name}")
                    _look_at_memory(one, plan)
            finally:
                findings.measured += [one.measured() for one in running if one.rows]
                findings.skipped += [_never_measured(one) for one in running if not one.rows]
                findings.errors += [error for one in running for error in one.errors]


def cores_for(settings: SessionSettings) -> tuple[int, ...]:
    """The cores to pin to: as many as can be busy, the last ones that this process may use.

    The first core of a machine answers most of its interrupts.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    return tuple(allowed[-settings.cores :])


def _name(spec: SubjectSpec) -> str:
    """What tells one process of a plan from the others."""
    return f"{spec.name} on {spec.provider}"


def _start(spec: SubjectSpec, settings: SessionSettings, stack: ExitStack) -> _RunningSubject:
    process = stack.enter_context(SubjectProcess(spec))
    cores = cores_for(settings)
    started = process.ask("start", settings=asdict(settings), cores=list(cores))
    return _RunningSubject(
        process=process,
        started=read_record(Started, started, spec.name),
        settings=settings,
        cores=cores,
        meter=energy_meter(spec.provider),
    )


def _measure_batch(
    running: Sequence[_RunningSubject], baseline: str, batch_size: int, plan: BenchPlan, log: Log
) -> None:
    """One batch size of every subject that takes it: warm up, then take turns."""
    ready: dict[str, _RunningSubject] = {}
    for one in running:
        log(f"{one.name}, batch {batch_size}, warming up")
        if _prepare(one, batch_size, plan.seconds):
            ready[one.name] = one
    rounds = orders(list(ready), plan.num_rounds, np.random.default_rng(plan.seed))
    turn_seconds = plan.seconds / plan.num_rounds
    for number, order in enumerate(rounds, start=1):
        log(f"batch {batch_size}, round {number} of {plan.num_rounds}")
        for name in order:
            if name in ready and not _take_turn(ready[name], batch_size, turn_seconds):
                del ready[name]
    timings = {
        name: read_record(Timing, one.process.ask("timing"), name) for name, one in ready.items()
    }
    for name, timing in timings.items():
        against = timings.get(baseline) if name != baseline else None
        ready[name].rows.append(_row(ready[name], timing, against, plan.seed))


def _prepare(one: _RunningSubject, batch_size: int, seconds: float) -> bool:
    """Whether the subject takes the batch size; if not, the reason is kept."""
    fixed = one.started.fixed_batch
    if fixed not in (None, batch_size):
        reason = f"the model takes batches of {fixed} and no other; ask for batch size {fixed}"
        one.skip(batch_size, InputError(reason))
        return False
    one.joules = 0.0
    try:
        answer = one.process.ask("prepare", batch_size=batch_size, seconds=seconds)
    except FerryError as error:  # too large for the memory, or fixed somewhere inside of the graph
        one.skip(batch_size, error)
        return False
    one.first_call_ms = answer["first_call_ms"]
    return True


def _take_turn(one: _RunningSubject, batch_size: int, seconds: float) -> bool:
    """Whether the turn was measured; if not, the reason is kept."""
    before = one.meter.joules()
    try:
        one.process.ask("turn", seconds=seconds)
        memory = one.process.ask("memory")
    except FerryError as error:
        one.skip(batch_size, error)
        return False
    one.joules += one.meter.joules() - before
    one.peak_bytes, one.gpu_bytes = memory["peak_bytes"], memory["gpu_bytes"]
    return True


def _row(one: _RunningSubject, timing: Timing, baseline: Timing | None, seed: int) -> BenchRow:
    speedup: PairedRatio | None = None
    if baseline:
        speedup = ratio_of_turns(baseline.turns_ms, timing.turns_ms, seed=seed)
    rows = timing.num_calls * timing.batch_size
    return BenchRow(
        timing=timing,
        first_call_ms=one.first_call_ms,
        speedup=speedup,
        millijoules_per_row=digits(1000 * one.joules / rows) if one.meter.source else None,
    )


def _look_at_memory(one: _RunningSubject, plan: BenchPlan) -> None:
    """What many calls leave behind, and where the time goes; last, as both disturb the rest."""
    if not one.rows:
        return
    sizes = [row.timing.batch_size for row in one.rows]
    try:
        if plan.growth_calls and _may_grow(one, plan):
            found = one.process.ask(
                "growth", num_calls=plan.growth_calls, batch_sizes=sizes, seed=plan.seed
            )
            one.growth = read_record(Growth, found, one.name)
        share = one.process.ask("share", batch_size=sizes[0])  # in a second session
        one.share = read_record(Share, share, one.name) if share else None
    except FerryError as error:
        one.skipped.append(SkippedBatch(batch_size=sizes[-1], skipped=f"memory: {error}"))


def _may_grow(one: _RunningSubject, plan: BenchPlan) -> bool:
    """Whether to look for growth: of ONNX Runtime's arena, which no other setting changes."""
    return one.process.spec.provider != TORCH and one.settings == plan.settings[0]


def _skipped(spec: SubjectSpec, settings: SessionSettings, error: FerryError) -> SkippedSubject:
    return SkippedSubject(
        subject=spec.name, provider=spec.provider, threads=settings.threads, skipped=str(error)
    )


def _never_measured(one: _RunningSubject) -> SkippedSubject:
    reason = one.skipped[-1].skipped if one.skipped else "interrupted before it was measured"
    return SkippedSubject(
        subject=one.process.spec.name,
        provider=one.process.spec.provider,
        threads=one.settings.threads,
        skipped=reason,
    )
