"""Scenarios as the coordinator runs them: a process for a subject, one scenario after the other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields

from serving.measuring.client import Spec, Worker
from serving.measuring.records import ScenarioFigures, ScenarioPlan, ScenarioResult
from serving.measuring.rounds import cores_for
from serving.measuring.scenarios import check_plan
from serving.records import read_record
from serving.settings import SessionSettings

__all__ = ["run_scenarios"]


def run_scenarios(
    spec: Spec,
    settings: SessionSettings,
    plans: Sequence[ScenarioPlan],
    tell: Callable[[str], None],
) -> Iterator[ScenarioResult]:
    """Run scenarios over one subject, and yield each result as soon as it is there.

    Raises at once, before any process starts, what `check_plan` raises, and later what happens in
    the process: InputError for a limit that no rate keeps, for instance.
    """
    for plan in plans:
        check_plan(plan)
    return _results(spec, settings, plans, tell)


def _results(
    spec: Spec,
    settings: SessionSettings,
    plans: Sequence[ScenarioPlan],
    tell: Callable[[str], None],
) -> Iterator[ScenarioResult]:
    if not plans:
        return
    tell(f"starting {spec.label}")
    with Worker(spec) as worker:
        worker.ask("start", settings=asdict(settings), cores=list(cores_for(settings)))
        for plan in plans:
            tell(f"{spec.label}, {_told(plan)}")
            figures = read_record(
                ScenarioFigures, worker.ask("scenario", **asdict(plan)), plan.scenario
            )
            yield ScenarioResult(
                **{field.name: getattr(figures, field.name) for field in fields(figures)},
                subject=spec.name,
                provider=spec.provider,
                settings=settings,
            )


def _told(plan: ScenarioPlan) -> str:
    """The plan on one line."""
    load = ""
    if plan.rate_per_second is not None:
        load = f" at {plan.rate_per_second:g} queries/s"
    if plan.p99_limit_ms is not None:
        load = f", the highest rate with p99 under {plan.p99_limit_ms:g} ms"
    return f"{plan.scenario} by {plan.engine}{load}"
