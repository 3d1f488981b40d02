"""What the section "Speed" is told: its claims, its doubts and what was skipped."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sample_benches
import sample_metrics

from pipeline.records.benchmark import BenchmarkReport
from pipeline.stages.page.speed import Speed, speed_of
from pipeline.stages.results import ExperimentResults, read_results
from serving.measuring.pairing import PairedRatio
from serving.measuring.report import SkippedSubject

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
    assert [claim.batch_size for claim in whole.claims] == [1, 64]
    for claim in whole.claims:
        (fp32,) = (one for one in whole.bench.of("fp32", "cpu") if one.settings.threads == 1)
        row = fp32.row(claim.batch_size)
        assert row is not None
        assert claim.ratio == row.speedup
        assert claim.verdict == "faster"


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
    assert [claim.batch_size for claim in speed.claims] == claimed


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.03, 1.2, "faster"),
        (0.8, 0.97, "slower"),
        (0.97, 1.03, "no difference"),
        (1.02, 1.5, "no difference"),
        (0.5, 0.98, "no difference"),
        (0.5, 2.0, "no difference"),
    ],
)
def test_only_an_interval_beyond_two_hundredths_is_a_difference(
    describe: Describe, low: float, high: float, verdict: str
) -> None:
    speed = describe(claiming({1: ratio(low, high)}))
    assert [claim.verdict for claim in speed.claims] == [verdict]
    assert [line.verdict for line in speed.lines] == [verdict]


def test_a_row_that_was_not_compared_is_neither_claimed_nor_judged(describe: Describe) -> None:
    speed = describe(claiming({1: None, 64: ratio(2.0, 2.1)}))
    assert [claim.batch_size for claim in speed.claims] == [64]
    assert [line.verdict for line in speed.lines] == [None, "faster"]


def test_two_threads_make_no_claim(describe: Describe) -> None:
    assert describe(claiming({1: ratio(2.0, 2.1)}, threads=2)).claims == ()


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


def test_variants_that_were_not_made_come_first(describe: Describe) -> None:
    report = undrawn(skipped=(skipped("int8", "cuda", None, "no card"),))
    speed = describe(replace(report, skipped={"fp16": "too slow"}))
    assert speed.skipped == ("fp16: not made: too slow", "int8 on cuda: skipped: no card")


def test_what_the_proof_told_already_is_not_told_again(measured: ExperimentResults) -> None:
    assert measured.parity is not None
    parity = replace(measured.parity, skipped={"fp16": "too slow"})
    report = replace(undrawn(), skipped={"fp16": "too slow", "int8": "too wrong"})
    speed = speed_of(replace(measured, parity=parity, benchmark=report))
    assert speed is not None
    assert speed.skipped == ("int8: not made: too wrong",)
