"""What `ferry benchmark` measured: `metrics/E/benchmark.json`."""

from collections.abc import Mapping
from dataclasses import dataclass

from serving.bench_report import BenchReport, SkippedProvider
from serving.console import table
from serving.environment import Environment
from serving.timing import PairedRatio, Timing

__all__ = ["BenchmarkReport", "EagerTiming", "VariantBenchmark", "as_table", "sweeps"]

HEADER = ("what", "threads", "batch", "p50 ms", "p99 ms", "rows/s")


@dataclass(frozen=True, slots=True, kw_only=True)
class EagerTiming:
    """PyTorch eager on the CPU at one batch size."""

    batch_size: int
    threads: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    rows_per_second: float
    num_calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantBenchmark:
    """One variant on each provider of the installed ONNX Runtime."""

    providers: tuple[BenchReport | SkippedProvider, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkReport:
    """All that was timed: `metrics/E/benchmark.json`."""

    experiment: str
    environment: Environment
    torch_version: str
    weights_sha256: str
    variants: Mapping[str, VariantBenchmark]
    eager: tuple[EagerTiming, ...]
    eager_ratio: PairedRatio
    """How many times as long PyTorch eager takes as ONNX Runtime fp32: batch 1, one thread each."""
    skipped: Mapping[str, str]
    """The variants that were not made, with the reason."""


def sweeps(report: BenchmarkReport) -> dict[str, tuple[Timing | EagerTiming, ...]]:
    """Gather the timings over batch sizes, by variant and provider, and PyTorch's own."""
    timings: dict[str, tuple[Timing | EagerTiming, ...]] = {
        f"{variant} · {row.provider}": row.batches
        for variant, measured in report.variants.items()
        for row in measured.providers
        if isinstance(row, BenchReport)
    }
    return timings | {"PyTorch eager": report.eager}


def as_table(report: BenchmarkReport) -> str:
    """Lay out a report for a terminal: a line per batch size, then what was skipped and why."""
    rows, skipped = [], []
    for variant, measured in report.variants.items():
        for provider in measured.providers:
            if isinstance(provider, SkippedProvider):
                skipped.append(f"{variant} · {provider.provider}: skipped: {provider.skipped}")
                continue
            name = f"{variant} · {provider.provider}"
            rows += [_line(name, provider.threads, timing) for timing in provider.batches]
    rows += [_line("PyTorch eager", timing.threads, timing) for timing in report.eager]
    ratio = report.eager_ratio
    compared = (
        f"ONNX Runtime fp32 is {ratio.median:.2f} times as fast as PyTorch eager at batch 1, one "
        f"thread each (95 % interval {ratio.low:.2f} to {ratio.high:.2f}, {ratio.num_pairs} pairs)"
    )
    return "\n".join([table(HEADER, rows), "", *skipped, compared])


def _line(name: str, threads: int, timing: Timing | EagerTiming) -> tuple[str, ...]:
    times = (f"{timing.p50_ms:.3f}", f"{timing.p99_ms:.3f}")
    return (name, str(threads), str(timing.batch_size), *times, f"{timing.rows_per_second:,.0f}")
