"""Measure several subjects against each other: each in its process, in turns, batch by batch.

For each of the settings all processes are started. For each batch size they warm up, then take
short turns in a shuffled order, and the medians of their turns are compared pair by pair.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import FerryError, InputError, UsageError
from serving.files import read_record
from serving.measuring.meters import EnergyMeter, Growth, energy_meter
from serving.measuring.pairing import orders, ratio_of_turns
from serving.measuring.report import BenchRow, Measurement, SkippedBatch, SkippedSubject
from serving.measuring.scenarios import ScenarioPlan
from serving.measuring.subject import (
    TORCH,
    Share,
    Started,
    SubjectProcess,
    SubjectSpec,
    cores_for,
)
from serving.measuring.timing import Timing, digits
from serving.runtime.cores import allowed_cores
from serving.runtime.settings import GPU_PROVIDERS, SessionSettings, parse_settings

Log = Callable[[str], None]
"""Is given a line before each step."""
BATCH_SIZES = (1, 8, 32, 128)
"""What is measured where no batch size is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What is measured, and for how long."""

    providers: tuple[str, ...] = ("cpu",)
    """Keys of `serving.runtime.session.PROVIDERS`, or ("all",) for those of the installed wheel."""
    threads: tuple[int, ...] | None = None
    """Within one operator, each in turn; None for the cores that this process may use."""
    settings: tuple[str, ...] = ()
    """More of `serving.runtime.settings.SessionSettings`, as "parallel=2"."""
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    """Of the sweep; () for none, where there are scenarios."""
    seconds: float = 0.5
    """For each subject at each batch size, all its turns together, after warm-up."""
    num_rounds: int = 10
    """Turns that each subject gets."""
    growth_calls: int = 0
    """Calls of mixed batch sizes after which memory is looked at, in ONNX Runtime on a processor
    and with the first of the settings alone; 0 for none."""
    num_cold_starts: int = 0
    scenarios: tuple[ScenarioPlan, ...] = ()
    """Of the first subject, with the first of the settings."""
    rows: Path | None = None
    """A `.npy`, `.npz` or `.txt` file, whose first rows are fed, over again to fill a batch."""
    seed: int = 1

    def __post_init__(self) -> None:
        wrong = [size for size in self.batch_sizes if size < 1]
        if wrong:
            raise UsageError(f"a batch size must be 1 or more, got {wrong[0]}")
        if not (self.batch_sizes or self.scenarios):
            raise UsageError("there is neither a batch size nor a scenario to measure")
        if not 0 < self.seconds <= 3600:
            raise UsageError(f"seconds must be above 0 and at most 3600, got {self.seconds:g}")
        if self.num_rounds < 1:
            raise UsageError(f"rounds must be 1 or more, got {self.num_rounds}")

    def session_settings(self) -> list[SessionSettings]:
        """Those of each number of threads; raises what `parse_settings` raises."""
        counts = (allowed_cores(),) if self.threads is None else self.threads
        return [parse_settings(self.settings, SessionSettings(threads=count)) for count in counts]


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
    meter: EnergyMeter
    first_call_ms: float = 0.0
    joules: float = 0.0
    rows: list[BenchRow] = field(default_factory=list)
    refused: list[tuple[int, FerryError]] = field(default_factory=list)
    """The batch sizes that were not measured, and why."""
    memory: Mapping[str, Any] = field(default_factory=dict)
    share: Share | None = None
    growth: Growth | None = None

    @property
    def name(self) -> str:
        return _name(self.process.spec)

    def measured(self) -> Measurement:
        return Measurement(
            subject=self.process.spec.name,
            provider=self.process.spec.provider,
            settings=self.settings,
            cores=cores_for(self.settings),
            sha256=self.started.sha256,
            file_bytes=self.started.file_bytes,
            proof=self.started.proof,
            share=self.share,
            ready_ms=self.started.ready_ms,
            **self.memory,
            growth=self.growth,
            rows=tuple(self.rows),
            skipped=tuple(
                SkippedBatch(batch_size=size, skipped=str(error)) for size, error in self.refused
            ),
        )


def measure(
    specs: Sequence[SubjectSpec], options: BenchOptions, findings: BenchFindings, log: Log
) -> None:
    """Measure all of `specs` under all settings, adding to `findings` as it goes.

    Speedups are over the first of `specs`, where that runs. What does not start with some settings
    is skipped with its reason, and so is a batch size that it does not take.
    """
    for number, settings in enumerate(options.session_settings()):
        running: list[_RunningSubject] = []
        with ExitStack() as stack:
            try:
                for spec in specs:
                    log(f"starting {_name(spec)}, threads {settings.threads}")
                    try:
                        running.append(_start(spec, settings, stack))
                    except FerryError as error:
                        findings.errors.append(error)
                        findings.skipped.append(_skipped(spec, settings, str(error)))
                for batch_size in options.batch_sizes:
                    _measure_batch(running, _name(specs[0]), batch_size, options, log)
                for one in running:
                    log(f"memory of {one.name}")
                    _look_at_memory(one, 0 if number else options.growth_calls, options.seed)
            finally:
                for one in running:
                    _keep(one, findings)


def _name(spec: SubjectSpec) -> str:
    """What tells one process of a run from the others."""
    return f"{spec.name} on {spec.provider}"


def _start(spec: SubjectSpec, settings: SessionSettings, stack: ExitStack) -> _RunningSubject:
    process = stack.enter_context(SubjectProcess(spec))
    return _RunningSubject(
        process=process,
        started=process.start(settings),
        settings=settings,
        meter=energy_meter(spec.provider),
    )


def _measure_batch(
    running: Sequence[_RunningSubject],
    baseline: str,
    batch_size: int,
    options: BenchOptions,
    log: Log,
) -> None:
    """One batch size of every subject that takes it: warm up, then take turns."""
    ready: dict[str, _RunningSubject] = {}
    for one in running:
        log(f"{one.name}, batch {batch_size}, warming up")
        if _prepare(one, batch_size, options.seconds):
            ready[one.name] = one
    rounds = orders(list(ready), options.num_rounds, np.random.default_rng(options.seed))
    turn_seconds = options.seconds / options.num_rounds
    for number, order in enumerate(rounds, start=1):
        log(f"batch {batch_size}, round {number} of {options.num_rounds}")
        for name in order:
            if name in ready and not _take_turn(ready[name], batch_size, turn_seconds):
                del ready[name]
    timings = {name: one.process.timing() for name, one in ready.items()}
    for name, timing in timings.items():
        against = timings.get(baseline) if name != baseline else None
        ready[name].rows.append(_row(ready[name], timing, against, options.seed))


def _prepare(one: _RunningSubject, batch_size: int, seconds: float) -> bool:
    """Whether the subject takes the batch size; if not, the reason is kept."""
    fixed = one.started.fixed_batch
    if fixed not in (None, batch_size):
        reason = f"the model takes batches of {fixed} and no other; ask for batch size {fixed}"
        one.refused.append((batch_size, InputError(reason)))
        return False
    one.joules = 0.0
    try:
        one.first_call_ms = one.process.ask("prepare", batch_size=batch_size, seconds=seconds)
    except FerryError as error:  # too large for the memory, or fixed somewhere inside of the graph
        one.refused.append((batch_size, error))
        return False
    return True


def _take_turn(one: _RunningSubject, batch_size: int, seconds: float) -> bool:
    """Whether the turn was measured; if not, the reason is kept."""
    before = one.meter.joules()
    try:
        one.process.ask("turn", seconds=seconds)
        one.memory = one.process.ask("memory")
    except FerryError as error:
        one.refused.append((batch_size, error))
        return False
    one.joules += one.meter.joules() - before
    return True


def _row(one: _RunningSubject, timing: Timing, baseline: Timing | None, seed: int) -> BenchRow:
    rows = timing.num_calls * timing.batch_size
    return BenchRow(
        timing=timing,
        first_call_ms=one.first_call_ms,
        speedup=ratio_of_turns(baseline.turns_ms, timing.turns_ms, seed=seed) if baseline else None,
        millijoules_per_row=digits(1000 * one.joules / rows) if one.meter.source else None,
    )


def _look_at_memory(one: _RunningSubject, growth_calls: int, seed: int) -> None:
    """What many calls leave behind, and where the time goes; last, as both disturb the rest."""
    if not one.rows:
        return
    sizes, ask = [row.timing.batch_size for row in one.rows], one.process.ask
    try:
        if growth_calls and one.process.spec.provider not in (TORCH, *GPU_PROVIDERS):
            # It is ONNX Runtime's arena, which a GPU has in its own memory. There each change of
            # the batch size also costs a new plan of every convolution: minutes for nothing.
            found = ask("growth", num_calls=growth_calls, batch_sizes=sizes, seed=seed)
            one.growth = read_record(Growth, found, one.name)
        share = ask("share", batch_size=sizes[0])  # in a second session
        one.share = read_record(Share, share, one.name) if share else None
    except FerryError as error:
        one.refused.append((sizes[-1], InputError(f"memory: {error}")))


def _keep(one: _RunningSubject, findings: BenchFindings) -> None:
    """Add what was measured of a subject, or why nothing was."""
    findings.errors += [error for _, error in one.refused]
    if one.rows:
        findings.measured.append(one.measured())
        return
    reason = str(one.refused[-1][1]) if one.refused else "interrupted before it was measured"
    findings.skipped.append(_skipped(one.process.spec, one.settings, reason))


def _skipped(spec: SubjectSpec, settings: SessionSettings, reason: str) -> SkippedSubject:
    return SkippedSubject(
        subject=spec.name, provider=spec.provider, threads=settings.threads, skipped=reason
    )
