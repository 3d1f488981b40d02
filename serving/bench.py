"""`ferry bench MODEL`: how fast an ONNX file or a bundle is on this machine, with proof of where.

    from serving.bench import BenchOptions, bench
    bench(Path("bundles/mnist-cnn"), BenchOptions(batch_sizes=(1, 32)))

Everything is measured in processes of its own (`serving.measuring`), so that neither memory nor
threads of one thing leak into another, nor those of the program that calls this.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.bench_report import AGAINST, BenchReport, ColdStart, Skipped
from serving.environment import describe
from serving.errors import MissingInputError, UsageError
from serving.measuring import first_answer, onnx_subject
from serving.measuring.client import Spec
from serving.measuring.cold import ColdProgram, cold_starts
from serving.measuring.energy import energy_meter
from serving.measuring.load import LoadMeter
from serving.measuring.records import ScenarioPlan, ScenarioResult
from serving.measuring.rounds import Findings, Plan, Tell, measure
from serving.measuring.scenario_runs import run_scenarios
from serving.measuring.scenarios import check_plan
from serving.probe import probe
from serving.runtime import installed
from serving.session import allowed_cores, usable_providers
from serving.settings import SessionSettings, check_settings, parse_settings
from serving.timing import check_clock

__all__ = [
    "BATCH_SIZES",
    "BenchOptions",
    "Extras",
    "bench",
    "cold_program",
    "model_spec",
    "plan_of",
    "run",
]

BATCH_SIZES = (1, 8, 32, 128)
"""What is swept when it is not told."""
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What is measured of a model, and how long."""

    providers: tuple[str, ...] = ("cpu",)
    """Keys of `serving.session.PROVIDERS`, or ("all",) for those of the installed wheel."""
    threads: tuple[int, ...] = ()
    """Within one operator, each in turn; () for the cores that this process may use."""
    settings: tuple[str, ...] = ()
    """More of `serving.settings.SessionSettings`, as "parallel=2"."""
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    """Of the sweep; () for none, where there are scenarios."""
    seconds: float = 0.5
    """For each row, all its turns together, after warm-up."""
    num_rounds: int = 10
    """Turns that each competing thing gets."""
    growth_calls: int = 0
    """Calls of mixed batch sizes after which memory is looked at."""
    num_cold_starts: int = 0
    scenarios: tuple[ScenarioPlan, ...] = ()
    rows: Path | None = None
    """A `.npy`, `.npz` or `.txt` file, whose first rows are fed, over again to fill a batch."""
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What a run measures beside the rows."""

    cold: tuple[ColdProgram, ...] = ()
    num_cold_starts: int = 0
    scenarios: tuple[ScenarioPlan, ...] = ()
    """Of the first thing that is measured, with the plan's first settings."""


def bench(
    model: Path, options: BenchOptions, *, against: Path | None = None, tell: Tell = lambda _: None
) -> BenchReport:
    """Measure a model, and in turns with it the model `against`, over which speedups then are.

    Interrupted with Ctrl-C it returns what was measured until then, as a partial report. `tell` is
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
    named = {AGAINST: against, model.name: model} if against else {model.name: model}
    specs = [
        model_spec(name, path, provider, options.rows)
        for provider in providers
        for name, path in named.items()
        if path
    ]
    extras = Extras(
        cold=tuple(cold_program(spec) for spec in specs) if options.num_cold_starts else (),
        num_cold_starts=options.num_cold_starts,
        scenarios=options.scenarios,
    )
    return run(specs, plan, extras, model=model, rows=options.rows, skipped=skipped, tell=tell)


def run(
    specs: Sequence[Spec],
    plan: Plan,
    extras: Extras,
    *,
    model: Path,
    rows: Path | None,
    skipped: Iterable[Skipped] = (),
    tell: Tell,
) -> BenchReport:
    """Measure `specs` by a plan, all speedups over the first of them; see `bench`.

    When nothing at all could be measured, the last reason is raised as it came.
    """
    environment, load = describe(), LoadMeter()
    findings = Findings(skipped=list(skipped))
    scenarios: list[ScenarioResult] = []
    cold: tuple[ColdStart, ...] = ()
    partial = False
    try:
        if plan.batch_sizes:
            measure(specs, plan, findings, tell)
        if extras.scenarios:
            scenarios.extend(run_scenarios(specs[0], plan.settings[0], extras.scenarios, tell))
        if extras.cold:
            cold, silent = cold_starts(extras.cold, extras.num_cold_starts, tell, seed=plan.seed)
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


def plan_of(options: BenchOptions) -> Plan:
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
    return Plan(
        settings=tuple(
            parse_settings(options.settings, SessionSettings(threads=count)) for count in threads
        ),
        batch_sizes=options.batch_sizes,
        seconds=options.seconds,
        num_rounds=options.num_rounds,
        growth_calls=options.growth_calls,
        seed=options.seed,
    )


def model_spec(name: str, model: Path, provider: str, rows: Path | None) -> Spec:
    """A model on a provider, as something to measure."""
    setup = onnx_subject.setup_of(model.absolute(), provider, rows.absolute() if rows else None)
    return Spec(name=name, provider=provider, module=onnx_subject.__name__, setup=setup)


def cold_program(spec: Spec) -> ColdProgram:
    """The program that starts a model of `model_spec` from cold."""
    told = [spec.setup["model"], spec.provider, *filter(None, [spec.setup["rows"]])]
    return ColdProgram(subject=spec.label, arguments=("-m", first_answer.__name__, *told))


def _providers(options: BenchOptions, model: Path) -> tuple[list[str], list[Skipped]]:
    """The providers to measure on, and those of the wheel that do not start, with the reason."""
    if options.providers != (ALL,):
        for provider in options.providers:
            installed(provider)
        return list(options.providers), []
    reasons = usable_providers(probe())
    skipped = [
        Skipped(subject=model.name, provider=name, threads=None, skipped=reason)
        for name, reason in reasons.items()
        if reason is not None
    ]
    return [name for name, reason in reasons.items() if reason is None], skipped
