"""How much better a variant is than fp32: by turns, at the threads that suit fp32."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import sample_metrics

from pipeline.records.benchmark import BenchmarkReport, gains_over_fp32, on_cpu
from serving.errors import IntegrityError
from serving.measuring.report import BenchRow, Measurement

Turns = tuple[float, ...]
ALIKE: Turns = (1.0, 1.0, 1.0, 1.0)


def measured(
    variant: str, threads: int, times: dict[int, float], turns: Turns = ALIKE, size: int = 100
) -> Measurement:
    """A row on the CPU per batch size and its milliseconds."""
    rows = tuple(
        BenchRow(
            timing=sample_metrics.timing(ms, batch, turns),
            first_call_ms=1.0,
            speedup=None,
            millijoules_per_row=None,
        )
        for batch, ms in times.items()
    )
    one = sample_metrics.measured(variant, 1.0, threads=threads, size=size)
    return replace(one, rows=rows)


def report(found: Sequence[Measurement]) -> BenchmarkReport:
    bench = replace(sample_metrics.bench_report("x"), measured=tuple(found))
    return BenchmarkReport(experiment="x", torch_version="2", weights_sha256="ab", bench=bench)


def test_latency_is_that_of_the_smallest_batch() -> None:
    found = report([measured("fp32", 1, {1: 1.0, 8: 2.0}), measured("int8", 1, {1: 0.5, 8: 9.0})])
    gain = gains_over_fp32(found, ["fp32", "int8"], "latency")
    assert gain["int8"].times == 2
    assert (gain["fp32"].times, gain["fp32"].low) == (1, 1)


def test_throughput_is_that_of_each_ones_own_best_batch() -> None:
    # fp32: 4 rows/ms at batch 8; int8: 10 rows/ms at batch 32, and slower at 8.
    fp32 = measured("fp32", 1, {8: 2.0, 32: 16.0})
    int8 = measured("int8", 1, {8: 4.0, 32: 3.2})
    assert gains_over_fp32(report([fp32, int8]), ["int8"], "throughput")["int8"].times == 2.5


def test_the_threads_are_those_that_suit_fp32() -> None:
    found = report(
        [
            *(measured("fp32", 1, {1: 1.0, 64: 64.0}), measured("fp32", 2, {1: 2.0, 64: 32.0})),
            *(measured("int8", 1, {1: 0.8, 64: 64.0}), measured("int8", 2, {1: 0.5, 64: 8.0})),
        ]
    )
    # One thread is better for fp32 at batch 1, where int8 gains little; two are for many rows.
    assert gains_over_fp32(found, ["int8"], "latency")["int8"].times == 1.25
    assert gains_over_fp32(found, ["int8"], "throughput")["int8"].times == 4


def test_a_gain_of_a_few_turns_alone_has_an_interval_below_one() -> None:
    fp32 = measured("fp32", 1, {1: 1.0})
    int8 = measured("int8", 1, {1: 1.0}, turns=(0.5, 1.2, 0.6, 1.3))
    gain = gains_over_fp32(report([fp32, int8]), ["int8"], "latency")["int8"]
    assert gain.times > 1.1
    assert gain.low < 1 < gain.high


def test_sizes_are_exact() -> None:
    fp32, int8 = measured("fp32", 1, {1: 1.0}, size=300), measured("int8", 1, {1: 9.0}, size=100)
    gain = gains_over_fp32(report([fp32, int8]), ["int8"], "size")["int8"]
    assert (gain.times, gain.low, gain.high) == (3, 3, 3)


@pytest.mark.parametrize(
    ("int8", "message"),
    [
        ([], "x: benchmark.json has no CPU row for int8$"),
        ([measured("int8", 2, {1: 1.0})], "no CPU row for int8 with the 1 threads that suit fp32"),
        ([measured("int8", 1, {8: 1.0})], "no CPU row for int8 at batch 1$"),
    ],
)
def test_a_variant_without_the_row_is_refused(int8: list[Measurement], message: str) -> None:
    found = report([measured("fp32", 1, {1: 1.0}), *int8])
    with pytest.raises(IntegrityError, match=message):
        gains_over_fp32(found, ["int8"], "latency")


def test_a_row_on_another_provider_is_none_on_the_cpu() -> None:
    cuda = replace(measured("fp32", 1, {1: 1.0}), provider="cuda")
    with pytest.raises(IntegrityError, match="no CPU row for fp32"):
        on_cpu(report([cuda]), "fp32")
