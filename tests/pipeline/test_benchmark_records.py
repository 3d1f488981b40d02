"""What is read out of a benchmark's record: sweeps, paired speedups, and the table."""

from dataclasses import replace
from pathlib import Path

import pytest
import sample_metrics

from pipeline.records import read
from pipeline.records.benchmark import (
    BenchmarkReport,
    as_table,
    over_eager,
    ratio_of_rows,
    sweeps,
)


@pytest.fixture
def report(tmp_path: Path) -> BenchmarkReport:
    sample_metrics.write_all(tmp_path, "digits-cnn")
    return read(
        BenchmarkReport,
        sample_metrics.details(tmp_path, "digits-cnn", "benchmark"),
        "ferry benchmark",
    )


def test_a_sweep_is_named_by_thing_provider_and_threads(report: BenchmarkReport) -> None:
    found = sweeps(report)
    assert len(found) == len(report.bench.measured)
    assert found["fp32 · cpu, 1 thread"] == sample_metrics.timings(1.0, threads=1)
    assert found["PyTorch eager, 2 threads"] == sample_metrics.timings(3.0)


def test_a_speedup_is_that_of_the_turns() -> None:
    quick, slow = sample_metrics.timing(0.6, 8), sample_metrics.timing(1.0, 8)
    ratio = ratio_of_rows(quick, slow, seed=1)
    assert ratio.median == pytest.approx(1 / 0.6, abs=1e-4)
    assert ratio.num_pairs == len(sample_metrics.TURNS)
    assert ratio_of_rows(slow, quick, seed=1).median == pytest.approx(0.6, abs=1e-4)


def test_rows_of_two_batch_sizes_are_compared_as_rows() -> None:
    ours, theirs = sample_metrics.timing(4.0, 8), sample_metrics.timing(1.0, 1)
    assert ratio_of_rows(ours, theirs, seed=1).median == 2
    assert ratio_of_rows(theirs, ours, seed=1).median == 0.5


def test_a_turn_that_was_slow_for_one_alone_widens_the_interval() -> None:
    ours = sample_metrics.timing(1.0, 1, turns=(1.0, 3.0, 1.0, 1.0))
    ratio = ratio_of_rows(ours, sample_metrics.timing(2.0, 1), seed=1)
    assert ratio.low < ratio.median <= ratio.high


def test_the_claim_is_that_of_one_thread(report: BenchmarkReport) -> None:
    claims = dict(over_eager(report))
    assert list(claims) == [1, 8, 32, 128]
    assert claims[1].median == pytest.approx(3, abs=1e-4)
    two = replace(
        report.bench,
        measured=tuple(one for one in report.bench.measured if one.settings.threads == 2),
    )
    assert dict(over_eager(replace(report, bench=two))) == {}


def test_the_table_ends_with_the_claims(report: BenchmarkReport) -> None:
    text = as_table(report)
    claims = text.rsplit("\n\n", 1)[1].splitlines()
    assert claims[0] == (
        "ONNX Runtime fp32 is 3.00 times as fast as PyTorch eager at batch 1, one thread each "
        "(95 % interval 3.00 to 3.00, 4 turns)"
    )
    assert len(claims) == 4
    assert "int8 · cpu" in text
    assert "no <card> here" in text
