"""What the page shows of speed: claims, doubts, what was skipped, and the machines."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import sample_benches
import sample_metrics

from pipeline.records.benchmark import BenchmarkReport
from pipeline.stages.page.results import ExperimentResults, read_results
from pipeline.stages.report import Speed, machines, speed_of
from serving.machine.environment import Environment
from serving.measuring.pairing import PairedRatio
from serving.measuring.report import SkippedSubject
from serving.measuring.timing import Clock

Describe = Callable[[BenchmarkReport], Speed]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> ExperimentResults:
    folder: Path = tmp_path_factory.mktemp("root")
    sample_metrics.write_all(folder, "mnist-cnn")
    found, _ = read_results("mnist-cnn", folder)
    assert found is not None
    return found


@pytest.fixture
def describe(measured: ExperimentResults) -> Describe:
    """The section of an experiment whose benchmark is this one."""

    def section(report: BenchmarkReport) -> Speed:
        speed = speed_of(replace(measured, benchmark=report))
        assert speed is not None
        return speed

    return section


@pytest.fixture(scope="module")
def whole(measured: ExperimentResults) -> Speed:
    speed = speed_of(replace(measured, benchmark=sample_benches.crowded()))
    assert speed is not None
    return speed


def ratio(low: float, high: float) -> PairedRatio:
    return PairedRatio(median=(low + high) / 2, low=low, high=high, num_pairs=12)


def claiming(ratios: dict[int, PairedRatio | None], threads: int = 1) -> BenchmarkReport:
    """The fp32 of a crowded benchmark alone, with these speedups by batch size."""
    report = sample_benches.crowded((threads,), tuple(ratios))
    (fp32,) = report.bench.of("fp32")
    rows = tuple(replace(row, speedup=ratios[row.timing.batch_size]) for row in fp32.rows)
    bench = replace(report.bench, measured=(replace(fp32, rows=rows),), cold_starts=())
    return replace(report, bench=bench)


def undrawn(*threads: int, **changes: object) -> BenchmarkReport:
    """Processes without rows, which need no figure, and nothing skipped but what is asked for."""
    report = sample_benches.crowded(threads or (1, 2), (1,))
    found = tuple(replace(one, rows=()) for one in report.bench.measured)
    plain = replace(report.bench, measured=found, skipped=(), cold_starts=())
    return replace(report, bench=replace(plain, **changes))  # type: ignore[arg-type]


def skipped(subject: str, provider: str, threads: int | None, why: str) -> SkippedSubject:
    return SkippedSubject(subject=subject, provider=provider, threads=threads, skipped=why)


def test_before_its_benchmark_has_run_there_is_no_section(measured: ExperimentResults) -> None:
    assert speed_of(replace(measured, benchmark=None)) is None


# Claims


def test_the_section_opens_with_one_row_and_with_64(whole: Speed) -> None:
    assert list(whole.claims) == [1, 64]
    (fp32,) = (one for one in whole.bench.of("fp32", "cpu") if one.settings.threads == 1)
    for size, claimed in whole.claims.items():
        row = fp32.row(size)
        assert row is not None
        assert claimed == row.speedup


@pytest.mark.parametrize(
    ("sizes", "claimed"),
    [
        ((1, 8, 64, 256), [1, 64]),
        ((64, 8, 1), [1, 64]),
        ((1, 8, 32), [1, 32]),
        ((8, 64, 256), [8, 64, 256]),
        ((8, 16, 32), [8, 32]),
        ((16,), [16]),
        ((1,), [1]),
    ],
)
def test_without_1_or_64_the_ends_are_claimed(
    describe: Describe, sizes: tuple[int, ...], claimed: list[int]
) -> None:
    speed = describe(claiming(dict.fromkeys(sizes, ratio(2.0, 2.2))))
    assert list(speed.claims) == claimed


def test_a_row_that_was_not_compared_is_not_claimed(describe: Describe) -> None:
    assert list(describe(claiming({1: None, 64: ratio(2.0, 2.1)})).claims) == [64]


def test_two_threads_make_no_claim(describe: Describe) -> None:
    assert describe(claiming({1: ratio(2.0, 2.1)}, threads=2)).claims == {}


# Doubts


def test_a_quiet_and_whole_benchmark_has_no_warning(whole: Speed) -> None:
    assert whole.warnings == ()


def test_the_interruption_is_told_before_the_load(describe: Describe) -> None:
    busy = "other programs kept 1.0 of 2 cores busy: distrust the figures"
    load = replace(undrawn().bench.load, warning=busy)
    assert describe(undrawn(load=load)).warnings == (f"While it was measured, {busy}.",)
    cut, loaded = describe(undrawn(load=load, partial=True)).warnings
    assert cut.startswith("The benchmark was interrupted")
    assert busy in loaded


# What was skipped


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        (
            [skipped(name, "cuda", None, "no card") for name in ("fp32", "int8")],
            ["fp32, int8 on cuda: skipped: no card"],
        ),
        (
            [skipped("torch.compile", "torch", count, "no compiler") for count in (1, 2)],
            ["torch.compile: skipped: no compiler"],
        ),
        (
            [skipped("int8", "cpu", 2, "it stopped")],
            ["int8 on cpu with threads 2: skipped: it stopped"],
        ),
        (
            [skipped("int8", "cpu", count, "more than 2 cores") for count in (8, 4)],
            ["int8 on cpu with threads 4, 8: skipped: more than 2 cores"],
        ),
        (
            [skipped("int8", "cpu", 1, "one"), skipped("int8", "cpu", 2, "other")],
            [
                "int8 on cpu with threads 1: skipped: one",
                "int8 on cpu with threads 2: skipped: other",
            ],
        ),
        (
            [skipped("fp32", "cpu", 1, "why"), skipped("fp32", "cuda", 1, "why")],
            [
                "fp32 on cpu with threads 1: skipped: why",
                "fp32 on cuda with threads 1: skipped: why",
            ],
        ),
        (
            [skipped("fp32", "cuda", 1, "why"), skipped("fp32", "cuda", None, "why")],
            ["fp32 on cuda: skipped: why"],
        ),
    ],
)
def test_the_same_reason_is_told_once(
    describe: Describe, given: list[SkippedSubject], lines: list[str]
) -> None:
    assert list(describe(undrawn(skipped=tuple(given))).skipped) == lines


# The machines

IGNORED = {"load_average", "git_revision"}
"""Neither the load of a minute nor the sources make another machine."""


def timed(name: str, *, torch_version: str = "2.13.0", **changes: object) -> BenchmarkReport:
    """An experiment that was measured on the sample machine with some of it changed."""
    bench = sample_metrics.bench_report("mnist-cnn")
    environment = replace(bench.environment, **changes)  # type: ignore[arg-type]
    return BenchmarkReport(
        experiment=name,
        torch_version=torch_version,
        weights_sha256="ab" * 32,
        bench=replace(bench, environment=environment),
    )


def test_nothing_measured_is_no_machine() -> None:
    assert machines([]) == []
    assert machines([None, None]) == []


def test_experiments_of_one_machine_stand_together() -> None:
    (machine,) = machines([timed("one"), None, timed("two")])
    assert machine.experiments == ("one", "two")


def test_the_load_of_a_minute_is_no_other_machine() -> None:
    calm, busy = (
        timed("calm", load_average=(0.1,) * 3),
        timed("busy", load_average=(4.0,) * 3),
    )
    (machine,) = machines([calm, busy])
    assert machine.environment.load_average == ()


def test_other_sources_are_told_and_are_no_other_machine() -> None:
    first, second = timed("a", git_revision="b" * 40), timed("b", git_revision="a" * 40)
    (machine,) = machines([first, second, timed("c", git_revision="a" * 40)])
    assert machine.revisions == ("a" * 40, "b" * 40)
    assert machine.environment.git_revision == ""


@pytest.mark.parametrize("field", sorted({field.name for field in fields(Environment)} - IGNORED))
def test_a_difference_in_any_field_is_another_machine(field: str) -> None:
    found = machines([timed("one"), timed("other", **{field: other(field)})])
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
    reports = [timed("a", torch_version="2.13.0"), timed("b", torch_version="2.12.0")]
    (machine,) = machines([*reports, reports[0]])
    assert machine.torch_versions == ("2.12.0", "2.13.0")


def test_the_coarsest_clock_is_told() -> None:
    fine, coarse = timed("fine"), timed("coarse")
    clock = Clock(resolution_ns=1000.0, reading_ns=40.0)
    coarse = replace(coarse, bench=replace(coarse.bench, clock=clock))
    (machine,) = machines([fine, coarse])
    assert machine.clock_ns == 1000.0


def test_machines_come_in_the_order_of_their_experiments() -> None:
    found = machines(
        [
            timed("z", processor="Z"),
            timed("a", processor="A"),
            timed("z2", processor="Z"),
        ]
    )
    assert [machine.experiments for machine in found] == [("z", "z2"), ("a",)]
    assert all(isinstance(machine.environment, Environment) for machine in found)
