"""`ferry bench MODEL --tune`: the best settings for a model on this machine, found cheaply.

A short look at every candidate, in one process, leaves a few; these and ONNX Runtime's own settings
are measured in full, in turns. What is chosen is never slower than the latter. The report says what
was chosen, by how much it is faster, and all that was tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from serving.bundles.bundle import model_source
from serving.bundles.profiles import Goal, Profile
from serving.console import table
from serving.errors import InputError, UsageError
from serving.machine.environment import Environment, describe, this_machine
from serving.measuring import onnx_subject
from serving.measuring.feeds import fixed_batch
from serving.measuring.meters import Load, LoadMeter
from serving.measuring.pairing import PairedRatio
from serving.measuring.process import SubjectSpec
from serving.measuring.rounds import Log
from serving.measuring.tuning import screening
from serving.measuring.tuning.candidates import BATCH_SIZES, Candidate, candidates, defaults
from serving.measuring.tuning.screening import CandidateTrial, screen
from serving.measuring.tuning.selection import (
    CandidateMeasurement,
    PassedOver,
    Selection,
    SelectionPlan,
    choose,
    measure_best,
)
from serving.runtime.binding import can_bind
from serving.runtime.cores import allowed_cores
from serving.runtime.session import open_session
from serving.runtime.settings import SessionSettings

MIB = 2**20


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
    chosen = (report.settings, report.batch_size) == (
        one.candidate.settings,
        one.candidate.batch_size,
    )
    is_default = one.candidate == report.defaults.candidate
    marks = [*(["chosen"] if chosen else []), *(["ONNX Runtime's own"] if is_default else [])]
    ratio = one.over_defaults
    return (
        one.candidate.describe() + (f" ({', '.join(marks)})" if marks else ""),
        f"{one.timing.p50_ms:.3f}",
        f"{one.timing.rows_per_second:,.0f}",
        f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
        f"{one.peak_memory_bytes / MIB:.0f}",
    )


MOST_MEASURED = 3
"""Candidates that are measured in full."""
SCREENING, MEASURING = screening.__name__, onnx_subject.__name__


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
        """Refuse what cannot be."""
        for size in self.batch_sizes:
            if size < 1:
                raise UsageError(f"a batch size must be 1 or more, got {size}")
        if not self.seconds > 0:
            raise UsageError(f"seconds must be above 0, got {self.seconds}")


def tune(
    model: Path, options: TuneOptions | None = None, *, log: Log | None = None
) -> SessionTuneReport:
    """Find the best settings for an ONNX file or a bundle; `log` is given a line at each step.

    A candidate that cannot be run is in the report with its reason. Nothing is written:
    `serving.bundles.writing.write_profile` keeps `profile_of(report)` in a bundle.

    Raises what opening the model raises, UsageError for options that make no sense together, and
    InputError when no candidate runs, or none within the memory limit.
    """
    options, log = options or TuneOptions(), log or _silent
    start, meter = perf_counter(), LoadMeter()
    log(f"opening {model}")
    grid = grid_of(model, options)
    spec = spec_of(model, options, SCREENING)
    most = _most_measured(grid)
    trials = screen(spec, grid, keep=most, log=log)
    running = [trial for trial in trials if not trial.skipped]
    if not running:
        raise InputError(f"no settings run {model}: {trials[0].skipped}")
    base = _defaults_of(running)
    selection = _select(model, options, running, base, most, log)
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
    session = open_session(model_source(model), provider=options.provider, threads=1)
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


def spec_of(model: Path, options: TuneOptions, module: str = MEASURING) -> SubjectSpec:
    """What a process needs to measure the model, or to screen its candidates."""
    setup = onnx_subject.setup_of(model, options.provider, options.rows)
    return SubjectSpec(name=model.stem, provider=options.provider, module=module, setup=setup)


def _most_measured(grid: Sequence[Candidate]) -> int:
    """A process costs most of the time: a small grid gets fewer of them."""
    return max(1, min(MOST_MEASURED, len(grid) // 3))


def _defaults_of(running: Sequence[CandidateTrial]) -> CandidateTrial:
    """ONNX Runtime's own settings at the batch size that is best for them."""
    own = defaults(allowed_cores())
    trials = [trial for trial in running if trial.candidate.settings == own]
    if not trials:
        raise InputError(f"ONNX Runtime's own settings, threads {own.threads}, cannot be run")
    return min(trials, key=lambda trial: trial.cost)


def _select(
    model: Path,
    options: TuneOptions,
    running: Sequence[CandidateTrial],
    base: CandidateTrial,
    most: int,
    log: Log,
) -> Selection:
    best = [*running[:most], base]
    plan = SelectionPlan(
        most=most,
        seconds=options.seconds,
        slowest_ms=max(trial.p50_ms or 0 for trial in best),
        memory_limit_bytes=options.memory_limit_bytes,
        seed=options.seed,
    )
    ranking = [trial.candidate for trial in running]
    return measure_best(spec_of(model, options), ranking, base.candidate, plan, log)


def _silent(_: str) -> None:
    """Log nothing."""
