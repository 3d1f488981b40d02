"""The machines that the report's experiments were measured on."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pipeline.records.benchmark import BenchmarkReport
from serving.environment import Environment

__all__ = ["Machine", "machines"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine that was measured on."""

    environment: Environment
    """Of any of its experiments, without what differs between them."""
    experiments: tuple[str, ...]
    clock_ns: float
    """The coarsest resolution that its clock was seen to have."""
    torch_versions: tuple[str, ...]
    revisions: tuple[str, ...]
    """Of the sources that measured."""


def machines(reports: Iterable[BenchmarkReport | None]) -> list[Machine]:
    """Group experiments by the machine; None stands for one that was not measured."""
    groups: dict[Environment, list[BenchmarkReport]] = {}
    for report in reports:
        if report:
            # Neither the load of a minute nor the sources make another machine.
            same = replace(report.bench.environment, load_average=(), git_revision="")
            groups.setdefault(same, []).append(report)
    return [
        Machine(
            environment=environment,
            experiments=tuple(one.experiment for one in reports),
            clock_ns=max(one.bench.clock.resolution_ns for one in reports),
            torch_versions=tuple(sorted({one.torch_version for one in reports})),
            revisions=tuple(sorted({one.bench.environment.git_revision for one in reports})),
        )
        for environment, reports in groups.items()
    ]
