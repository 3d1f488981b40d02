"""How much better than fp32 each variant is on the CPU, by the goal of a bundle.

Speeds are compared turn by turn, with the threads that suit fp32 best: a variant that only wins
with threads that nobody would serve fp32 with has not won.
"""

from collections.abc import Sequence

from pipeline.records.benchmark import BenchmarkReport, Gain, ratio_of_rows, timed
from serving.errors import IntegrityError
from serving.measuring.report import Measured
from serving.measuring.timing import Timing, digits


def gains_over_fp32(report: BenchmarkReport, variants: Sequence[str], goal: str) -> dict[str, Gain]:
    """The gain of each of `variants` by "latency", "throughput" or "size".

    Latency is that of the smallest batch of fp32, throughput that of each one's own best batch.
    Raises IntegrityError for a variant without the row that it would be judged by.
    """
    fp32 = _best(on_cpu(report, "fp32"), goal)
    return {name: _gain(report, name, fp32, goal) for name in variants}


def on_cpu(report: BenchmarkReport, variant: str) -> tuple[Measured, ...]:
    """What was measured of a variant on the CPU; IntegrityError for nothing."""
    found = timed(report, variant)
    if not found:
        raise IntegrityError(f"{report.experiment}: benchmark.json has no CPU row for {variant}")
    return found


def _gain(report: BenchmarkReport, variant: str, fp32: Measured, goal: str) -> Gain:
    if variant == "fp32":
        return Gain(times=1.0, low=1.0, high=1.0)
    threads = fp32.settings.threads
    alike = [one for one in on_cpu(report, variant) if one.settings.threads == threads]
    if not alike:
        raise IntegrityError(
            f"{report.experiment}: benchmark.json has no CPU row for {variant} with the {threads} "
            f"threads that suit fp32 best"
        )
    if goal == "size":
        times = digits(_bytes(fp32) / _bytes(alike[0]))
        return Gain(times=times, low=times, high=times)
    ours, theirs = (_row(report, one, fp32, goal) for one in (alike[0], fp32))
    ratio = ratio_of_rows(ours, theirs, seed=report.bench.seed)
    return Gain(times=ratio.median, low=ratio.low, high=ratio.high)


def _best(measured: Sequence[Measured], goal: str) -> Measured:
    """The thread count that suits the goal best."""
    if goal == "throughput":
        return max(measured, key=lambda one: one.fastest.rows_per_second)
    return min(measured, key=lambda one: _smallest(one).p50_ms)


def _row(report: BenchmarkReport, one: Measured, fp32: Measured, goal: str) -> Timing:
    """What of `one` the goal looks at."""
    if goal == "throughput":
        return one.fastest
    size = _smallest(fp32).batch_size
    row = one.row(size)
    if row is None:
        raise IntegrityError(
            f"{report.experiment}: benchmark.json has no CPU row for {one.subject} at batch {size}"
        )
    return row.timing


def _smallest(one: Measured) -> Timing:
    return min((row.timing for row in one.rows), key=lambda timing: timing.batch_size)


def _bytes(one: Measured) -> int:
    return one.file_bytes or 0
