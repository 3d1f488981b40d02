"""`ferry bench MODEL`: how fast an ONNX file or a bundle is on this machine, with proof of where.

    from serving.measuring.bench import BenchOptions, bench
    bench(Path("bundles/mnist-cnn"), BenchOptions(batch_sizes=(1, 32)))

Every subject is measured in a process of its own, so that neither memory nor threads of one leak
into another, nor those of the program that calls this: batch sizes in turns with the other subjects
(`serving.measuring.rounds`), load patterns one after the other (`serving.measuring.scenarios`), and
cold starts from starting a process to its first answer, as a person waits for it.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from serving.errors import MissingInputError, UsageError
from serving.files import read_record
from serving.machine.environment import describe
from serving.measuring import first_answer, onnx_subject
from serving.measuring.meters import LoadMeter, energy_meter
from serving.measuring.pairing import orders
from serving.measuring.process import SubjectProcess, SubjectSpec, child_environment
from serving.measuring.report import BEFORE, BenchReport, ColdStart, SkippedSubject
from serving.measuring.rounds import BenchFindings, BenchPlan, Log, cores_for, measure
from serving.measuring.scenarios.report import ScenarioFigures, ScenarioPlan, ScenarioResult
from serving.measuring.scenarios.scenarios import check_plan
from serving.measuring.timing import NS_PER_MS, check_clock, digits
from serving.runtime.cores import allowed_cores
from serving.runtime.providers import installed
from serving.runtime.session import probe, usable_providers
from serving.runtime.settings import SessionSettings, check_settings, parse_settings

ANSWERED = b"answered"


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdProgram:
    """A program that prints "answered" as soon as it has its first answer; programs take turns."""

    subject: str
    arguments: tuple[str, ...]
    """Of python: `("-m", "serving.measuring.first_answer", "model.onnx")`."""


def cold_starts(
    programs: Sequence[ColdProgram], num_runs: int, log: Callable[[str], None], *, seed: int
) -> tuple[tuple[ColdStart, ...], tuple[SkippedSubject, ...]]:
    """Start each program `num_runs` times, in turns, after one start that does not count.

    The uncounted start brings the files into the page cache, as on a machine that has run the
    program before. A program that ends without an answer is among the skipped ones.
    """
    named = {program.subject: program for program in programs}
    runs: dict[str, list[float]] = {name: [] for name in named}
    rounds = orders(list(named), 1 + num_runs, np.random.default_rng(seed))
    for number, order in enumerate(rounds):
        log(f"cold starts, round {number} of {num_runs}")
        for name in filter(runs.__contains__, order):
            took = _time_start(named[name])
            if took is None:
                del runs[name]
            elif number:
                runs[name].append(digits(took))
    found = tuple(
        ColdStart(subject=name, p50_ms=digits(statistics.median(times)), runs_ms=tuple(times))
        for name, times in runs.items()
    )
    return found, tuple(_silent(name) for name in named if name not in runs)


def _silent(name: str) -> SkippedSubject:
    reason = "its cold start ended without an answer"
    return SkippedSubject(subject=name, provider="", threads=None, skipped=reason)


def _time_start(program: ColdProgram) -> float | None:
    """Milliseconds from the start of a process to its line; None if there was none."""
    start = perf_counter_ns()
    with subprocess.Popen(
        [sys.executable, *program.arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
    ) as process:
        answered = any(line.strip() == ANSWERED for line in process.stdout or ())
        took = (perf_counter_ns() - start) / NS_PER_MS
        process.kill()  # how long it takes to end is nobody's wait
    return took if answered else None


def run_scenarios(
    spec: SubjectSpec,
    settings: SessionSettings,
    plans: Sequence[ScenarioPlan],
    log: Callable[[str], None],
) -> Iterator[ScenarioResult]:
    """Run scenarios over one subject in a process, and yield each result as soon as it is there.

    Raises at once, before any process starts, what `check_plan` raises, and later what happens in
    the process: InputError for a limit that no rate keeps, for instance.
    """
    for plan in plans:
        check_plan(plan)
    return _results(spec, settings, plans, log)


def _results(
    spec: SubjectSpec,
    settings: SessionSettings,
    plans: Sequence[ScenarioPlan],
    log: Callable[[str], None],
) -> Iterator[ScenarioResult]:
    if not plans:
        return
    log(f"starting {spec.label}")
    with SubjectProcess(spec) as worker:
        worker.ask("start", settings=asdict(settings), cores=list(cores_for(settings)))
        for plan in plans:
            log(f"{spec.label}, {_describe(plan)}")
            figures = read_record(
                ScenarioFigures, worker.ask("scenario", **asdict(plan)), plan.scenario
            )
            yield ScenarioResult(
                **{field.name: getattr(figures, field.name) for field in fields(figures)},
                subject=spec.name,
                provider=spec.provider,
                settings=settings,
            )


def _describe(plan: ScenarioPlan) -> str:
    """The plan on one line."""
    load = ""
    if plan.rate_per_second is not None:
        load = f" at {plan.rate_per_second:g} queries/s"
    if plan.p99_limit_ms is not None:
        load = f", the highest rate with p99 under {plan.p99_limit_ms:g} ms"
    return f"{plan.scenario}{load}"


BATCH_SIZES = (1, 8, 32, 128)
"""What is measured where no batch size is given."""
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What is measured of a model, and how long."""

    providers: tuple[str, ...] = ("cpu",)
    """Keys of `serving.runtime.session.PROVIDERS`, or ("all",) for those of the installed wheel."""
    threads: tuple[int, ...] = ()
    """Within one operator, each in turn; () for the cores that this process may use."""
    settings: tuple[str, ...] = ()
    """More of `serving.runtime.settings.SessionSettings`, as "parallel=2"."""
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    """Of the sweep; () for none, where there are scenarios."""
    seconds: float = 0.5
    """For each row, all its turns together, after warm-up."""
    num_rounds: int = 10
    """Turns that each subject gets."""
    growth_calls: int = 0
    """Calls of mixed batch sizes after which memory is looked at."""
    num_cold_starts: int = 0
    scenarios: tuple[ScenarioPlan, ...] = ()
    rows: Path | None = None
    """A `.npy`, `.npz` or `.txt` file, whose first rows are fed, over again to fill a batch."""
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchExtras:
    """What a run measures besides batch sizes."""

    cold: tuple[ColdProgram, ...] = ()
    num_cold_starts: int = 0
    scenarios: tuple[ScenarioPlan, ...] = ()
    """Of the first subject, with the plan's first settings."""


def bench(
    model: Path, options: BenchOptions, *, against: Path | None = None, log: Log = lambda _: None
) -> BenchReport:
    """Measure a model, and in turns with it the model `against`, over which speedups then are.

    Interrupted with Ctrl-C it returns what was measured until then, as a partial report. `log` is
    given a line before each step. Raises UsageError and UnknownNameError for senseless options,
    MissingInputError for a file that is not there, and when nothing could be measured the reason.
    """
    plan = plan_of(options)
    for scenario in options.scenarios:
        check_plan(scenario)
    for path in filter(None, (model, against, options.rows)):
        if not path.exists():
            raise MissingInputError(f"{path} is not there")
    providers, skipped = _providers(options, model)
    for provider in providers:
        for settings in plan.settings:
            check_settings(settings, provider)
    named = {BEFORE: against, model.name: model} if against else {model.name: model}
    specs = [
        model_spec(name, path, provider, options.rows)
        for provider in providers
        for name, path in named.items()
        if path
    ]
    extras = BenchExtras(
        cold=tuple(cold_program(spec) for spec in specs) if options.num_cold_starts else (),
        num_cold_starts=options.num_cold_starts,
        scenarios=options.scenarios,
    )
    return run(specs, plan, extras, model=model, rows=options.rows, skipped=skipped, log=log)


def run(
    specs: Sequence[SubjectSpec],
    plan: BenchPlan,
    extras: BenchExtras,
    *,
    model: Path,
    rows: Path | None,
    skipped: Iterable[SkippedSubject] = (),
    log: Log,
) -> BenchReport:
    """Measure `specs` by a plan, all speedups over the first of them; see `bench`.

    When nothing at all could be measured, the last reason is raised as it came.
    """
    environment, load = describe(), LoadMeter()
    findings = BenchFindings(skipped=list(skipped))
    scenarios: list[ScenarioResult] = []
    cold: tuple[ColdStart, ...] = ()
    partial = False
    try:
        if plan.batch_sizes:
            measure(specs, plan, findings, log)
        if extras.scenarios:
            scenarios.extend(run_scenarios(specs[0], plan.settings[0], extras.scenarios, log))
        if extras.cold:
            cold, silent = cold_starts(extras.cold, extras.num_cold_starts, log, seed=plan.seed)
            findings.skipped += silent
    except KeyboardInterrupt:
        partial = True
    if findings.errors and not (findings.measured or partial):
        raise findings.errors[-1]
    meter = energy_meter(specs[0].provider if specs else "cpu")
    return BenchReport(
        model=str(model),
        rows=rows.name if rows else None,
        baseline=specs[0].label if specs else "",
        measured=tuple(findings.measured),
        skipped=tuple(findings.skipped),
        cold_starts=cold,
        scenarios=tuple(scenarios),
        partial=partial,
        seed=plan.seed,
        num_rounds=plan.num_rounds,
        energy=meter.source or meter.reason,
        clock=check_clock(),
        load=load.read(),
        environment=environment,
    )


def plan_of(options: BenchOptions) -> BenchPlan:
    """The plan that options ask for; UsageError for what makes no sense."""
    wrong = [size for size in options.batch_sizes if size < 1]
    if wrong:
        raise UsageError(f"a batch size must be 1 or more, got {wrong[0]}")
    if not (options.batch_sizes or options.scenarios):
        raise UsageError("there is neither a batch size nor a scenario to measure")
    if not 0 < options.seconds <= 3600:
        raise UsageError(f"seconds must be above 0 and at most 3600, got {options.seconds:g}")
    if options.num_rounds < 1:
        raise UsageError(f"rounds must be 1 or more, got {options.num_rounds}")
    threads = options.threads or (allowed_cores(),)
    return BenchPlan(
        settings=tuple(
            parse_settings(options.settings, SessionSettings(threads=count)) for count in threads
        ),
        batch_sizes=options.batch_sizes,
        seconds=options.seconds,
        num_rounds=options.num_rounds,
        growth_calls=options.growth_calls,
        seed=options.seed,
    )


def model_spec(name: str, model: Path, provider: str, rows: Path | None) -> SubjectSpec:
    """A model on a provider as a subject."""
    setup = onnx_subject.setup_of(model.absolute(), provider, rows.absolute() if rows else None)
    return SubjectSpec(name=name, provider=provider, module=onnx_subject.__name__, setup=setup)


def cold_program(spec: SubjectSpec) -> ColdProgram:
    """The program that starts a model of `model_spec` from cold."""
    arguments = [spec.setup["model"], spec.provider, *filter(None, [spec.setup["rows"]])]
    return ColdProgram(subject=spec.label, arguments=("-m", first_answer.__name__, *arguments))


def _providers(options: BenchOptions, model: Path) -> tuple[list[str], list[SkippedSubject]]:
    """The providers to measure on, and those of the wheel that do not start, with the reason."""
    if options.providers != (ALL,):
        for provider in options.providers:
            installed(provider)
        return list(options.providers), []
    reasons = usable_providers(probe())
    skipped = [
        SkippedSubject(subject=model.name, provider=name, threads=None, skipped=reason)
        for name, reason in reasons.items()
        if reason is not None
    ]
    return [name for name, reason in reasons.items() if reason is None], skipped
