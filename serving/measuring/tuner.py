"""`ferry bench MODEL --tune`: the best settings for a model on this machine, found cheaply.

A short look at every candidate, in one process, leaves a few; these and ONNX Runtime's own settings
are measured in full: each in a process of its own, so that its memory is its own too, in turns.
What is chosen is never slower than ONNX Runtime's own settings. The report says what was chosen, by
how much it is faster, and all that was tried.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from serving.bundles.bundle import model_source
from serving.bundles.profiles import Goal, Profile
from serving.console import table
from serving.errors import FerryError, InputError, UsageError
from serving.machine.environment import Environment, describe, this_machine
from serving.measuring import onnx_subject, screening
from serving.measuring.feeds import fixed_batch
from serving.measuring.meters import Load, LoadMeter
from serving.measuring.pairing import PairedRatio, orders, ratio_of_turns
from serving.measuring.rounds import Log
from serving.measuring.screening import (
    BATCH_SIZES,
    Candidate,
    CandidateTrial,
    candidates,
    defaults,
    screen,
)
from serving.measuring.subject import SubjectProcess, SubjectSpec
from serving.measuring.timing import Timing
from serving.runtime.binding import can_bind
from serving.runtime.cores import allowed_cores
from serving.runtime.session import open_session
from serving.runtime.settings import SessionSettings

MIB = 2**20
MOST_MEASURED = 3
"""Candidates that are measured in full."""
MIN_ROUNDS, MAX_ROUNDS = 4, 10
CALLS_OF_A_TURN = 7
"""Calls that even the shortest turn makes, for warmth and for the clock."""
SCREENING = screening.__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """What is wanted of the settings, and how they are looked for."""

    goal: Goal = "throughput"
    provider: str = "cpu"
    batch_sizes: tuple[int, ...] = ()
    """To try; for latency the one that counts. (): for throughput 1 to 256, for latency 1."""
    memory_limit_bytes: int | None = None
    """The most that the whole process may ever hold, Python and ONNX Runtime included."""
    rows: Path | None = None
    """Real rows to run, `.npy`, `.npz` or `.txt`; random ones without."""
    seconds: float = 0.3
    """For each candidate that is measured in full."""
    seed: int = 1
    allow_reduced_precision: bool = False
    """Whether tf32 and fp16 may be tried, which change what the model computes."""

    def __post_init__(self) -> None:
        for size in self.batch_sizes:
            if size < 1:
                raise UsageError(f"a batch size must be 1 or more, got {size}")
        if not self.seconds > 0:
            raise UsageError(f"seconds must be above 0, got {self.seconds}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionPlan:
    """How many candidates are measured in full, and how."""

    most: int
    """Candidates, besides ONNX Runtime's own settings."""
    seconds: float
    """For each, all turns together."""
    slowest_ms: float
    """Of a call of any of them, roughly: slow ones get fewer turns."""
    memory_limit_bytes: int | None
    seed: int

    @property
    def num_rounds(self) -> int:
        """Turns that each gets; an even number, so that each goes first equally often."""
        fitting = int(1000 * self.seconds / (CALLS_OF_A_TURN * self.slowest_ms))
        return max(MIN_ROUNDS, min(MAX_ROUNDS, fitting // 2 * 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateMeasurement:
    """What came out for a candidate that was measured in full."""

    candidate: Candidate
    timing: Timing
    peak_memory_bytes: int
    """The most memory that its process ever held, whole."""
    gpu_memory_bytes: int | None
    over_defaults: PairedRatio
    """How many times as many rows per second as with ONNX Runtime's own settings."""

    def keeps(self, memory_limit_bytes: int | None) -> bool:
        """Whether its peak memory is within the limit."""
        return memory_limit_bytes is None or self.peak_memory_bytes <= memory_limit_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedOver:
    """A candidate that was among the best and could not be chosen."""

    candidate: Candidate
    reason: str
    peak_memory_bytes: int | None
    """Where it was the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What the full measurement found."""

    measured: tuple[CandidateMeasurement, ...]
    """Without the defaults, unless they were among the best anyway."""
    defaults: CandidateMeasurement
    passed_over: tuple[PassedOver, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTuneReport:
    """The best settings that were found for a model on this machine."""

    model: str
    rows: str | None
    """The name of the file whose rows were fed, or None for random inputs."""
    goal: Goal
    provider: str
    settings: SessionSettings
    batch_size: int
    p50_ms: float
    """Of one call."""
    rows_per_second: float
    peak_memory_bytes: int
    memory_limit_bytes: int | None
    over_defaults: PairedRatio
    """How many times as fast as ONNX Runtime's own settings, turn by turn; 1 if it is these."""
    defaults: CandidateMeasurement
    """ONNX Runtime's own settings, for throughput at the batch size that is best for them."""
    measured: tuple[CandidateMeasurement, ...]
    """The candidates that were measured in full, best first."""
    passed_over: tuple[PassedOver, ...]
    num_candidates: int
    trials: tuple[CandidateTrial, ...]
    """What the screening saw of every candidate, best first."""
    seconds: float
    """That the tuning took."""
    seed: int
    load: Load
    environment: Environment


def tune(model: Path, options: TuneOptions, *, log: Log = lambda _: None) -> SessionTuneReport:
    """Find the best settings for an ONNX file or a bundle; `log` is given a line at each step.

    A candidate that cannot be run is in the report with its reason. Nothing is written:
    `serving.bundles.writing.write_profile` keeps `profile_of(report)` in a bundle.

    Raises what opening the model raises, UsageError for options that make no sense together, and
    InputError when no candidate runs, or none within the memory limit.
    """
    start, meter = perf_counter(), LoadMeter()
    log(f"opening {model}")
    grid = grid_of(model, options)
    # A process costs most of the time: a small grid gets fewer of them.
    most = max(1, min(MOST_MEASURED, len(grid) // 3))
    trials = screen(spec_of(model, options, SCREENING), grid, keep=most, log=log)
    running = [trial for trial in trials if not trial.skipped]
    if not running:
        raise InputError(f"no settings run {model}: {trials[0].skipped}")
    selection = _select(model, options, running, most, log)
    best_first = sorted(selection.measured, key=lambda one: -one.over_defaults.median)
    chosen = choose(best_first, selection.defaults, options.memory_limit_bytes)
    return SessionTuneReport(
        model=str(model),
        rows=options.rows.name if options.rows else None,
        goal=options.goal,
        provider=options.provider,
        settings=chosen.candidate.settings,
        batch_size=chosen.candidate.batch_size,
        p50_ms=chosen.timing.p50_ms,
        rows_per_second=chosen.timing.rows_per_second,
        peak_memory_bytes=chosen.peak_memory_bytes,
        memory_limit_bytes=options.memory_limit_bytes,
        over_defaults=chosen.over_defaults,
        defaults=selection.defaults,
        measured=tuple(best_first),
        passed_over=selection.passed_over,
        num_candidates=len(grid),
        trials=trials,
        seconds=round(perf_counter() - start, 2),
        seed=options.seed,
        load=meter.read(),
        environment=describe(),
    )


def grid_of(model: Path, options: TuneOptions) -> tuple[Candidate, ...]:
    """All candidates for a model, which is opened for that once."""
    content, shared = model_source(model, options.provider)
    session = open_session(content, provider=options.provider, threads=1, shared=shared)
    fixed = fixed_batch(session.inputs)
    if fixed and options.batch_sizes not in ((), (fixed,)):
        raise UsageError(f"{model} takes batches of {fixed} and no other")
    usual = BATCH_SIZES if options.goal == "throughput" else (1,)
    return candidates(
        options.goal,
        options.provider,
        (fixed,) if fixed else options.batch_sizes or usual,
        cores=allowed_cores(),
        bindable=can_bind(session),
        allow_reduced_precision=options.allow_reduced_precision,
    )


def spec_of(model: Path, options: TuneOptions, module: str = onnx_subject.__name__) -> SubjectSpec:
    """What a process needs to measure the model, or to screen its candidates."""
    name, provider, rows = model.stem, options.provider, options.rows
    return onnx_subject.model_spec(name, model, provider, rows, module=module)


def measure_best(
    spec: SubjectSpec, ranking: Sequence[Candidate], base: Candidate, plan: SelectionPlan, log: Log
) -> Selection:
    """Measure the first of `ranking` that keep the memory limit against `base`, in turns.

    Raises InputError when none keeps it, and what `base` raises when it cannot be run.
    """
    with ExitStack() as stack:
        passed_over: list[PassedOver] = []
        entered = dict(_enter(spec, ranking, plan, passed_over, stack, log))
        if not entered:
            raise _none_left(passed_over, plan.memory_limit_bytes)
        first = entered.pop(base, None)
        running = [(base, first or _start(spec, base, plan.seconds, stack, log)), *entered.items()]
        own, *others = _take_turns(running, plan, log)
        return Selection(
            measured=(*([own] if first else []), *others),
            defaults=own,
            passed_over=tuple(passed_over),
        )


def choose(
    best_first: Sequence[CandidateMeasurement], own: CandidateMeasurement, limit: int | None
) -> CandidateMeasurement:
    """The best that keeps the memory limit, or the defaults if faster; InputError if none does."""
    best = next((one for one in best_first if one.keeps(limit)), None)
    if best is None:  # the turns may have taken more than warming up did
        least = min(best_first, key=lambda one: one.peak_memory_bytes)
        raise _none_keeps(limit or 0, least.peak_memory_bytes, least.candidate)
    return own if best.over_defaults.median < 1 and own.keeps(limit) else best


def profile_of(report: SessionTuneReport) -> Profile:
    """What a bundle keeps of a tuning; call it on the machine that was tuned."""
    return Profile(
        goal=report.goal,
        provider=report.provider,
        machine=this_machine(report.provider),
        onnxruntime=report.environment.onnxruntime or "unknown",
        settings=report.settings,
        batch_size=report.batch_size,
        p50_ms=report.p50_ms,
        rows_per_second=report.rows_per_second,
        over_defaults=report.over_defaults.median,
    )


def as_text(report: SessionTuneReport) -> str:
    """What was measured in full as a table, best first, and what came of it."""
    header = ("settings", "p50 ms", "rows/s", "over defaults", "peak MiB")
    rest = [] if report.defaults in report.measured else [report.defaults]
    rows = [_cells(one, report) for one in (*report.measured, *rest)]
    skipped = sum(trial.skipped is not None for trial in report.trials)
    lines = [
        f"{report.model} on {report.provider}, for {report.goal}",
        table(header, rows),
        f"{report.num_candidates} candidates in {report.seconds:.1f} s"
        + (f", {skipped} of them cannot be run" if skipped else ""),
        *(f"passed over: {one.candidate.describe()}: {one.reason}" for one in report.passed_over),
        *([report.load.warning] if report.load.warning else []),
    ]
    return "\n".join(lines)


def _cells(one: CandidateMeasurement, report: SessionTuneReport) -> tuple[str, ...]:
    chosen = Candidate(settings=report.settings, batch_size=report.batch_size)
    marks = [
        *(["chosen"] if one.candidate == chosen else []),
        *(["ONNX Runtime's own"] if one.candidate == report.defaults.candidate else []),
    ]
    ratio = one.over_defaults
    return (
        one.candidate.describe() + (f" ({', '.join(marks)})" if marks else ""),
        f"{one.timing.p50_ms:.3f}",
        f"{one.timing.rows_per_second:,.0f}",
        f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
        f"{one.peak_memory_bytes / MIB:.0f}",
    )


def _select(
    model: Path, options: TuneOptions, running: Sequence[CandidateTrial], most: int, log: Log
) -> Selection:
    """Measure the best of `running` against ONNX Runtime's own settings, at their best batch."""
    own = defaults(allowed_cores())
    trials = [trial for trial in running if trial.candidate.settings == own]
    if not trials:
        raise InputError(f"ONNX Runtime's own settings, threads {own.threads}, cannot be run")
    base = min(trials, key=lambda trial: trial.cost)
    plan = SelectionPlan(
        most=most,
        seconds=options.seconds,
        slowest_ms=max(trial.p50_ms or 0 for trial in (*running[:most], base)),
        memory_limit_bytes=options.memory_limit_bytes,
        seed=options.seed,
    )
    ranking = [trial.candidate for trial in running]
    return measure_best(spec_of(model, options), ranking, base.candidate, plan, log)


def _enter(
    spec: SubjectSpec,
    ranking: Sequence[Candidate],
    plan: SelectionPlan,
    passed_over: list[PassedOver],
    stack: ExitStack,
    log: Log,
) -> Iterator[tuple[Candidate, SubjectProcess]]:
    """The first of the ranking that run and keep the limit, each in its process."""
    left, entered = list(ranking), 0
    while left and entered < plan.most:
        candidate, peak = left.pop(0), None
        try:
            process = _start(spec, candidate, plan.seconds, stack, log)
        except FerryError as error:
            reason = str(error)
        else:
            peak, limit = process.ask("memory")["peak_memory_bytes"], plan.memory_limit_bytes
            if limit is None or peak <= limit:
                entered += 1
                yield candidate, process
                continue
            process.close()
            reason = f"its peak memory is {_mib(peak)}, the limit {_mib(limit)}"
            # More rows with the same settings take no less.
            left = [
                one
                for one in left
                if one.settings != candidate.settings or one.batch_size < candidate.batch_size
            ]
        passed_over.append(PassedOver(candidate=candidate, reason=reason, peak_memory_bytes=peak))


def _start(
    spec: SubjectSpec, candidate: Candidate, seconds: float, stack: ExitStack, log: Log
) -> SubjectProcess:
    """Start a process and warm it up."""
    log(f"measuring in full: starting {candidate.describe()}")
    process = stack.enter_context(SubjectProcess(spec))
    process.start(candidate.settings)
    process.ask("prepare", batch_size=candidate.batch_size, seconds=seconds)
    return process


def _take_turns(
    running: Sequence[tuple[Candidate, SubjectProcess]], plan: SelectionPlan, log: Log
) -> list[CandidateMeasurement]:
    """Measure all of `running` in turns; ratios are over the first, of times per row."""
    names = [str(index) for index in range(len(running))]
    rounds = orders(names, plan.num_rounds, np.random.default_rng(plan.seed))
    for number, order in enumerate(rounds, start=1):
        log(f"measuring in full: round {number} of {plan.num_rounds}")
        for name in order:
            running[int(name)][1].ask("turn", seconds=plan.seconds / plan.num_rounds)
    timings = [process.timing() for _, process in running]
    # Two may differ in how many rows they have in work at a time.
    per_row = [
        [candidate.ms_per_row(turn) for turn in timing.turns_ms]
        for (candidate, _), timing in zip(running, timings, strict=True)
    ]
    return [
        CandidateMeasurement(
            candidate=candidate,
            timing=timing,
            **process.ask("memory"),
            over_defaults=ratio_of_turns(per_row[0], turns, seed=plan.seed),
        )
        for (candidate, process), timing, turns in zip(running, timings, per_row, strict=True)
    ]


def _none_left(passed_over: Sequence[PassedOver], limit: int | None) -> InputError:
    over = [(one.peak_memory_bytes, one.candidate) for one in passed_over if one.peak_memory_bytes]
    if limit is None or not over:
        return InputError(f"none of the best settings can be run: {passed_over[0].reason}")
    return _none_keeps(limit, *min(over, key=lambda one: one[0]))


def _none_keeps(limit: int, least_bytes: int, least: Candidate) -> InputError:
    return InputError(
        f"no setting keeps the peak under {_mib(limit)}: the least was {_mib(least_bytes)} with "
        f"{least.describe()}"
    )


def _mib(size: int) -> str:
    return f"{size / MIB:.0f} MiB"
