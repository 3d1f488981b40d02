"""Which machines the report's figures come from: any field tells two apart, but for two."""

import dataclasses
from dataclasses import fields

import pytest
import sample_metrics

from pipeline.records.benchmark import BenchmarkReport
from pipeline.stages.page.speed import machines
from serving.machine.environment import Environment
from serving.measuring.timing import Clock

IGNORED = {"load_average", "git_revision"}
"""Neither the load of a minute nor the sources make another machine."""


def report(name: str, *, torch_version: str = "2.13.0", **changes: object) -> BenchmarkReport:
    """An experiment that was measured on the sample machine with some of it changed."""
    bench = sample_metrics.bench_report("mnist-cnn")
    environment = dataclasses.replace(bench.environment, **changes)  # type: ignore[arg-type]
    return BenchmarkReport(
        experiment=name,
        torch_version=torch_version,
        weights_sha256="ab" * 32,
        bench=dataclasses.replace(bench, environment=environment),
        skipped={},
    )


def test_nothing_measured_is_no_machine() -> None:
    assert machines([]) == []
    assert machines([None, None]) == []


def test_experiments_of_one_machine_stand_together() -> None:
    (machine,) = machines([report("one"), None, report("two")])
    assert machine.experiments == ("one", "two")


def test_the_load_of_a_minute_is_no_other_machine() -> None:
    calm, busy = report("calm", load_average=(0.1,) * 3), report("busy", load_average=(4.0,) * 3)
    (machine,) = machines([calm, busy])
    assert machine.environment.load_average == ()


def test_other_sources_are_told_and_are_no_other_machine() -> None:
    first, second = report("a", git_revision="b" * 40), report("b", git_revision="a" * 40)
    (machine,) = machines([first, second, report("c", git_revision="a" * 40)])
    assert machine.revisions == ("a" * 40, "b" * 40)
    assert machine.environment.git_revision == ""


@pytest.mark.parametrize("field", sorted({field.name for field in fields(Environment)} - IGNORED))
def test_a_difference_in_any_field_is_another_machine(field: str) -> None:
    found = machines([report("one"), report("other", **{field: other(field)})])
    assert [machine.experiments for machine in found] == [("one",), ("other",)]
    assert getattr(found[1].environment, field) == other(field)


def other(field: str) -> object:
    """A value of the same kind that is not the sample's."""
    match getattr(sample_metrics.MACHINE, field):
        case None | str() as value:
            return f"not {value}"
        case tuple() as value:
            return (*value, "more")
        case value:
            return value + 1


def test_versions_of_torch_are_gathered() -> None:
    reports = [report("a", torch_version="2.13.0"), report("b", torch_version="2.12.0")]
    (machine,) = machines([*reports, reports[0]])
    assert machine.torch_versions == ("2.12.0", "2.13.0")


def test_the_coarsest_clock_is_told() -> None:
    fine, coarse = report("fine"), report("coarse")
    clock = Clock(resolution_ns=1000.0, reading_ns=40.0)
    coarse = dataclasses.replace(coarse, bench=dataclasses.replace(coarse.bench, clock=clock))
    (machine,) = machines([fine, coarse])
    assert machine.clock_ns == 1000.0


def test_machines_come_in_the_order_of_their_experiments() -> None:
    found = machines(
        [report("z", processor="Z"), report("a", processor="A"), report("z2", processor="Z")]
    )
    assert [machine.experiments for machine in found] == [("z", "z2"), ("a",)]
    assert all(isinstance(machine.environment, Environment) for machine in found)
