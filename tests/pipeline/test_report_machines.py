"""Every field of the environment tells machines apart, but for the load and the sources."""

from dataclasses import fields, replace

import pytest
import sample_benches

from pipeline.records.benchmark import BenchmarkReport
from pipeline.stages.page.speed import machines
from serving.machine.environment import Environment

IGNORED = {"load_average", "git_revision"}
MESSAGES = sorted({field.name for field in fields(Environment)} - IGNORED)


def measured_on(name: str, **changes: object) -> BenchmarkReport:
    report = replace(sample_benches.single(), experiment=name)
    environment = replace(report.bench.environment, **changes)  # type: ignore[arg-type]
    return replace(report, bench=replace(report.bench, environment=environment))


def other(value: object) -> object:
    """A value of the same kind that is not this one."""
    match value:
        case None | str():
            return f"not {value}"
        case tuple():
            return (*value, "more")
        case int():
            return value + 1
    raise NotImplementedError(value)


@pytest.mark.parametrize("field", MESSAGES)
def test_a_difference_in_any_field_is_another_machine(field: str) -> None:
    first = measured_on("first")
    second = measured_on("second", **{field: other(getattr(first.bench.environment, field))})
    found = machines([first, second])
    assert [machine.experiments for machine in found] == [("first",), ("second",)]
    assert found[0].environment != found[1].environment


@pytest.mark.parametrize("field", sorted(IGNORED))
def test_what_is_ignored_is_in_no_machine(field: str) -> None:
    first = measured_on("first")
    second = measured_on("second", **{field: other(getattr(first.bench.environment, field))})
    (machine,) = machines([first, second])
    assert machine.experiments == ("first", "second")
    assert not getattr(machine.environment, field)


def test_reports_are_left_as_they_were() -> None:
    report = measured_on("one", load_average=(1.0, 2.0, 3.0), git_revision="a" * 40)
    machines([report])
    assert report.bench.environment.load_average == (1.0, 2.0, 3.0)
    assert report.bench.environment.git_revision == "a" * 40


def test_versions_and_revisions_of_one_machine_are_not_those_of_another() -> None:
    here = measured_on("here", git_revision="a" * 40)
    there = measured_on("there", git_revision="b" * 40, processor="another")
    there = replace(there, torch_version="2.12.0")
    ours, theirs = machines([here, there])
    assert (ours.revisions, theirs.revisions) == (("a" * 40,), ("b" * 40,))
    assert (ours.torch_versions, theirs.torch_versions) == (("2.13.0",), ("2.12.0",))
