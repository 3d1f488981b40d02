"""`ferry bench MODEL --tune`: the best settings for a model on this machine, found cheaply.

A short look at every sensible combination, in one process, leaves a few; these and ONNX Runtime's
own settings are measured in full, in turns. What is chosen is never slower than the latter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from serving.bound_pool import can_bind
from serving.bundle import model_source
from serving.cores import allowed_cores
from serving.environment import describe
from serving.errors import InputError, UsageError
from serving.feeds import fixed_batch
from serving.measuring import onnx_subject, screening
from serving.measuring.candidates import BATCH_SIZES, Candidate, candidates, defaults
from serving.measuring.client import Spec
from serving.measuring.finals import Final, Results, choose, run_finals
from serving.measuring.load import LoadMeter
from serving.measuring.rounds import Tell
from serving.measuring.screening import Trial, screen
from serving.measuring.tune_report import TuneReport
from serving.profiles import Goal
from serving.session import open_session

__all__ = ["TuneOptions", "grid_of", "spec_of", "tune"]

MOST_FINALISTS = 3
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
    """For each of the finalists."""
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
    model: Path, options: TuneOptions | None = None, *, tell: Tell | None = None
) -> TuneReport:
    """Find the best settings for an ONNX file or a bundle; `tell` is given a line at each step.

    A candidate that cannot be run is in the report with its reason. Nothing is written:
    `serving.bundle.write_profile` keeps `profile_of(report)` in a bundle.

    Raises what opening the model raises, UsageError for options that make no sense together, and
    InputError when no candidate runs, or none within the memory limit.
    """
    options, tell = options or TuneOptions(), tell or _nobody
    start, meter = perf_counter(), LoadMeter()
    tell(f"opening {model}")
    grid = grid_of(model, options)
    spec = spec_of(model, options, SCREENING)
    finalists = _num_finalists(grid)
    trials = screen(spec, grid, finalists=finalists, tell=tell)
    running = [trial for trial in trials if not trial.skipped]
    if not running:
        raise InputError(f"no settings run {model}: {trials[0].skipped}")
    base = _defaults_of(running)
    results = _finals(model, options, running, base, finalists, tell)
    best_first = sorted(results.finalists, key=lambda one: -one.over_defaults.median)
    chosen = choose(best_first, results.defaults, options.memory_limit_bytes)
    return TuneReport(
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
        defaults=results.defaults,
        finalists=tuple(best_first),
        passed_over=results.passed_over,
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


def spec_of(model: Path, options: TuneOptions, module: str = MEASURING) -> Spec:
    """What a measuring process is told."""
    setup = onnx_subject.setup_of(model, options.provider, options.rows)
    return Spec(name=model.stem, provider=options.provider, module=module, setup=setup)


def _num_finalists(grid: Sequence[Candidate]) -> int:
    """A process costs most of the time: a small grid gets fewer of them."""
    return max(1, min(MOST_FINALISTS, len(grid) // 3))


def _defaults_of(running: Sequence[Trial]) -> Trial:
    """ONNX Runtime's own settings at the batch size that is best for them."""
    own = defaults(allowed_cores())
    trials = [trial for trial in running if trial.candidate.settings == own]
    if not trials:
        raise InputError(f"ONNX Runtime's own settings, threads {own.threads}, cannot be run")
    return min(trials, key=lambda trial: trial.cost)


def _finals(
    model: Path,
    options: TuneOptions,
    running: Sequence[Trial],
    base: Trial,
    finalists: int,
    tell: Tell,
) -> Results:
    best = [*running[:finalists], base]
    final = Final(
        finalists=finalists,
        seconds=options.seconds,
        slowest_ms=max(trial.p50_ms or 0 for trial in best),
        memory_limit_bytes=options.memory_limit_bytes,
        seed=options.seed,
    )
    ranking = [trial.candidate for trial in running]
    return run_finals(spec_of(model, options), ranking, base.candidate, final, tell)


def _nobody(_: str) -> None:
    """Tell nobody."""
