"""Which machines the report's figures come from."""

import dataclasses

import pytest
import sample_metrics

from pipeline.records.benchmark import BenchmarkReport
from pipeline.stages.page.speed import machines
from serving.machine.environment import Environment
from serving.measuring.timing import Clock


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


@pytest.mark.parametrize(
    "change",
    [
        {"processor": "Arm Neoverse"},
        {"allowed_cores": 1},
        {"onnxruntime": "1.30.0"},
        {"governor": "powersave"},
        {"gpu": "H100"},
        {"quota_cores": 1.5},
    ],
)
def test_what_changes_figures_is_another_machine(change: dict[str, object]) -> None:
    found = machines([report("one"), report("other", **change)])
    assert [machine.experiments for machine in found] == [("one",), ("other",)]
    (name, value), *_ = change.items()
    assert getattr(found[1].environment, name) == value


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
