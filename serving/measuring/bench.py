"""`ferry bench MODEL`: how fast an ONNX file or a bundle is on this machine, with proof of where.

    from serving.measuring.bench import bench
    from serving.measuring.rounds import BenchOptions
    bench(Path("bundles/mnist-cnn"), BenchOptions(batch_sizes=(1, 32)))

Every subject is measured in a process of its own, so that neither memory nor threads of one leak
into another, nor those of the program that calls this: batch sizes in turns with the other subjects
(`serving.measuring.rounds`), load patterns one after the other (`serving.measuring.scenarios`), and
cold starts from starting a process to its first answer, as a person waits for it.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from serving.bundles.finding import not_there
from serving.errors import MissingInputError
from serving.files import read_record
from serving.machine.environment import describe
from serving.measuring import first_answer
from serving.measuring.meters import LoadMeter, energy_meter
from serving.measuring.onnx_subject import model_spec
from serving.measuring.pairing import orders
from serving.measuring.report import BEFORE, BenchReport, ColdStart, SkippedSubject
from serving.measuring.rounds import BenchFindings, BenchOptions, Log, measure
from serving.measuring.scenarios import ScenarioPlan, ScenarioResult, check_plan
from serving.measuring.subject import SubjectProcess, SubjectSpec, child_environment
from serving.measuring.timing import NS_PER_MS, check_clock, digits
from serving.runtime.providers import installed
from serving.runtime.session import usable_providers
from serving.runtime.settings import SessionSettings, check_settings

ALL = "all"
ANSWERED = b"answered"

ColdPrograms = Mapping[str, Sequence[str]]
"""By subject the arguments of Python for a program that prints "answered" with its first answer."""


def bench(
    model: Path, options: BenchOptions, *, against: Path | None = None, log: Log = lambda _: None
) -> BenchReport:
    """Measure a model, in turns with the model `against`, over which speedups then are.

    Interrupted with Ctrl-C it returns a partial report. `log` is given a line before each step.
    Raises UsageError and UnknownNameError for senseless options, MissingInputError for a file that
    is not there, and the reason when nothing could be measured.
    """
    all_settings = options.session_settings()
    for plan in options.scenarios:
        check_plan(plan)
    for path in filter(None, (model, against)):
        if not path.exists():
            raise not_there(path)
    if options.rows and not options.rows.exists():
        raise MissingInputError(f"{options.rows} is not there")
    providers, skipped = _providers(options, model)
    for provider in providers:
        for settings in all_settings:
            check_settings(settings, provider)
    named = {BEFORE: against} if against else {}
    named[model.name] = model
    specs = [
        model_spec(name, path, provider, options.rows)
        for provider in providers
        for name, path in named.items()
    ]
    cold = {spec.label: cold_program(spec) for spec in specs}
    return run(specs, options, cold, model=model, skipped=skipped, log=log)


def run(
    specs: Sequence[SubjectSpec],
    options: BenchOptions,
    cold_programs: ColdPrograms,
    *,
    model: Path,
    skipped: Iterable[SkippedSubject] = (),
    log: Log,
) -> BenchReport:
    """Measure `specs`, speedups over the first; raises the last reason if nothing was measured."""
    environment, load = describe(), LoadMeter()
    findings = BenchFindings(skipped=list(skipped))
    scenarios: list[ScenarioResult] = []
    cold: tuple[ColdStart, ...] = ()
    partial = False
    try:
        if options.batch_sizes:
            measure(specs, options, findings, log)
        if options.scenarios:
            settings = options.session_settings()[0]
            scenarios.extend(run_scenarios(specs[0], settings, options.scenarios, log))
        if options.num_cold_starts:
            cold, silent = cold_starts(
                cold_programs, options.num_cold_starts, log, seed=options.seed
            )
            findings.skipped += silent
    except KeyboardInterrupt:
        partial = True
    if findings.errors and not (findings.measured or partial):
        raise findings.errors[-1]
    meter = energy_meter(specs[0].provider if specs else "cpu")
    return BenchReport(
        model=str(model),
        rows=options.rows.name if options.rows else None,
        baseline=specs[0].label if specs else "",
        measured=tuple(findings.measured),
        skipped=tuple(findings.skipped),
        cold_starts=cold,
        scenarios=tuple(scenarios),
        partial=partial,
        seed=options.seed,
        num_rounds=options.num_rounds,
        energy=meter.source or meter.reason,
        clock=check_clock(),
        load=load.read(),
        environment=environment,
    )


def run_scenarios(
    spec: SubjectSpec, settings: SessionSettings, plans: Sequence[ScenarioPlan], log: Log
) -> Iterator[ScenarioResult]:
    """Run scenarios over one subject in a process, and yield each result as soon as it is there."""
    log(f"starting {spec.label}")
    with SubjectProcess(spec) as worker:
        worker.start(settings)
        run = {"subject": spec.name, "provider": spec.provider, "settings": asdict(settings)}
        for plan in plans:
            log(f"{spec.label}, {plan.describe()}")
            figures = worker.ask("scenario", **asdict(plan))
            yield read_record(ScenarioResult, figures | run, plan.scenario)


def cold_starts(
    programs: ColdPrograms, num_runs: int, log: Callable[[str], None], *, seed: int
) -> tuple[tuple[ColdStart, ...], tuple[SkippedSubject, ...]]:
    """Start each program `num_runs` times, in turns; one that does not answer is skipped.

    A first, uncounted start brings the files into the page cache, as on a machine that ran it.
    """
    runs: dict[str, list[float]] = {name: [] for name in programs}
    rounds = orders(list(programs), 1 + num_runs, np.random.default_rng(seed))
    for number, order in enumerate(rounds):
        log(f"cold starts, round {number} of {num_runs}")
        for name in filter(runs.__contains__, order):
            took = _time_start(programs[name])
            if took is None:
                del runs[name]
            elif number:
                runs[name].append(digits(took))
    found = tuple(
        ColdStart(subject=name, p50_ms=digits(statistics.median(times)), runs_ms=tuple(times))
        for name, times in runs.items()
    )
    reason = "its cold start ended without an answer"
    silent = tuple(
        SkippedSubject(subject=name, provider="", threads=None, skipped=reason)
        for name in programs
        if name not in runs
    )
    return found, silent


def cold_program(spec: SubjectSpec) -> tuple[str, ...]:
    """The arguments of Python that start a model of `model_spec` from cold."""
    rows = filter(None, [spec.setup["rows"]])
    return ("-m", first_answer.__name__, spec.setup["model"], spec.provider, *rows)


def _time_start(arguments: Sequence[str]) -> float | None:
    """Milliseconds from the start of a process to its line; None if there was none."""
    start = perf_counter_ns()
    with subprocess.Popen(
        [sys.executable, "-P", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
    ) as process:
        answered = any(line.strip() == ANSWERED for line in process.stdout or ())
        took = (perf_counter_ns() - start) / NS_PER_MS
        process.kill()  # how long it takes to end is nobody's wait
    return took if answered else None


def _providers(options: BenchOptions, model: Path) -> tuple[list[str], list[SkippedSubject]]:
    """The providers to measure on, and those of the wheel that do not start, with the reason."""
    if options.providers != (ALL,):
        for provider in options.providers:
            installed(provider)
        return list(options.providers), []
    reasons = usable_providers()
    skipped = [
        SkippedSubject(subject=model.name, provider=name, threads=None, skipped=reason)
        for name, reason in reasons.items()
        if reason is not None
    ]
    return [name for name, reason in reasons.items() if reason is None], skipped
