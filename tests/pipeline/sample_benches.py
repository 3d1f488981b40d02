"""Benchmarks as crowded, or as empty, as they can become, for tests of what shows them."""

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import sample_metrics

from pipeline.records.benchmark import EAGER, BenchmarkReport
from serving.measuring.pairing import PairedRatio
from serving.measuring.report import BenchReport, BenchRow, ColdStart, Measurement
from serving.measuring.scenarios import Probe, ScenarioResult
from serving.measuring.timing import Timing
from serving.runtime.settings import SessionSettings

SIZES = (1, 8, 64, 256)
TURNS = 12
COSTS = {  # milliseconds of a call, of a row, and what of a row's two threads cannot share
    EAGER: (0.085, 0.0102, 0.15),
    "PyTorch channels_last": (0.09, 0.0085, 0.15),
    "torch.compile": (0.06, 0.0092, 0.2),
    "MLflow pyfunc": (0.9, 0.0061, 0.1),
    "fp32": (0.013, 0.0058, 0.1),
    "fp16": (0.019, 0.0064, 0.1),
    "int8": (0.012, 0.0024, 0.3),
}
"""fp16 is near fp32, and pyfunc beyond it: names of lines that end beside each other."""


def crowded(threads: Sequence[int] = (1, 2), sizes: Sequence[int] = SIZES) -> BenchmarkReport:
    """Everything that can be compared on a processor, with some noise."""
    found = [_measured(subject, count, tuple(sizes)) for count in threads for subject in COSTS]
    bench = _plain()
    cold = {EAGER: 2140.0, "fp32 · cpu": 312.0, "int8 · cpu": 301.0, "MLflow pyfunc": 3900.0}
    starts = tuple(
        ColdStart(subject=name, p50_ms=ms, runs_ms=(0.97 * ms, ms, 1.01 * ms, 1.2 * ms))
        for name, ms in cold.items()
    )
    bench = replace(
        bench, measured=tuple(found), cold_starts=starts, scenarios=(server(),), num_rounds=TURNS
    )
    return report_of(bench)


def single() -> BenchmarkReport:
    """One row and nothing else."""
    report = crowded((2,), (1,))
    fp32 = next(one for one in report.bench.measured if one.subject == "fp32")
    bench = replace(report.bench, measured=(fp32,), cold_starts=(), scenarios=(), skipped=())
    return replace(report, bench=bench)


def empty() -> BenchmarkReport:
    """Interrupted before the first row."""
    report = single()
    return replace(report, bench=replace(report.bench, measured=(), partial=True))


def report_of(bench) -> BenchmarkReport:
    return BenchmarkReport(
        experiment="mnist-cnn",
        torch_version="2.13.0",
        weights_sha256=sample_metrics.WEIGHTS,
        bench=bench,
    )


def server() -> ScenarioResult:
    """A search for the highest rate that keeps a limit."""
    return ScenarioResult(
        scenario="server",
        subject="fp32",
        provider="cpu",
        settings=SessionSettings(threads=1),
        batch_size=1,
        rows_per_query=1,
        num_queries=12_000,
        seconds=4.0,
        p50_ms=0.21,
        p90_ms=0.6,
        p99_ms=1.9,
        p999_ms=3.1,
        rows_per_second=3000.0,
        rate_per_second=3000.0,
        p99_limit_ms=2.0,
        probes=(
            Probe(rate_per_second=3000.0, p99_ms=1.9, kept=True),
            Probe(rate_per_second=6000.0, p99_ms=40.0, kept=False),
        ),
    )


@functools.cache
def _plain() -> BenchReport:
    """What is the same in all; making its intervals takes a while."""
    return sample_metrics.bench_report("models/x/model.onnx")


def _measured(subject: str, threads: int, sizes: tuple[int, ...]) -> Measurement:
    provider = "cpu" if subject in ("fp32", "fp16", "int8") else "torch"
    like = next(one for one in _plain().measured if one.provider == provider)
    return replace(
        like,
        subject=subject,
        settings=SessionSettings(threads=threads),
        rows=tuple(_row(subject, threads, size) for size in sizes),
    )


def _row(subject: str, threads: int, size: int) -> BenchRow:
    timing = _timing(subject, threads, size)
    eager = _timing(EAGER, threads, size)
    ratios = np.array(eager.turns_ms) / np.array(timing.turns_ms)
    middle, error = float(np.median(ratios)), float(2 * ratios.std() / TURNS**0.5)
    against = PairedRatio(median=middle, low=middle - error, high=middle + error, num_pairs=TURNS)
    return BenchRow(
        timing=timing,
        first_call_ms=3 * timing.p50_ms,
        speedup=None if subject == EAGER else against,
        millijoules_per_row=None,
    )


def _timing(subject: str, threads: int, size: int) -> Timing:
    call, row, alone = COSTS[subject]
    latency = call + row * size * (alone + (1 - alone) / threads)
    rng = np.random.default_rng([threads, size, list(COSTS).index(subject)])
    turns = tuple(latency * rng.normal(1, 0.04, TURNS))
    made = sample_metrics.timing(latency, size, turns)
    return replace(made, max_ms=latency * float(rng.uniform(3, 30)), num_calls=40_000 // size)
