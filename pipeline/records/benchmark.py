"""What `ferry benchmark` measured, and what `ferry bundle` shipped because of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from serving.errors import IntegrityError
from serving.measuring import report as bench_report
from serving.measuring.pairing import PairedRatio, ratio_of_turns
from serving.measuring.report import BenchReport, BenchRow, Measurement
from serving.measuring.subject import TORCH
from serving.measuring.timing import Timing, digits

EAGER = "PyTorch eager"
"""The baseline: every row's speedup is over it, at the same threads and batch size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkReport:
    """All that was measured."""

    experiment: str
    torch_version: str
    weights_sha256: str
    bench: BenchReport
    """A `Measurement` per thread count of each variant on each provider, and of each baseline."""

    @property
    def headline(self) -> Mapping[str, float | None]:
        """fp32 at a batch of one row with one thread: its latency, and its speedup over eager."""
        claimed = _claimed(self)
        row = claimed.row(1) if claimed else None
        return {
            "p50_ms": row.timing.p50_ms if row else None,
            "speedup": row.speedup.median if row and row.speedup else None,
        }


def sweeps(report: BenchmarkReport) -> dict[str, tuple[Timing, ...]]:
    """The timings over batch sizes, by subject and threads: "fp32 · cpu, 2 threads"."""
    return {
        f"{one.label}, {threads_of(one.settings.threads)}": tuple(row.timing for row in one.rows)
        for one in report.bench.measured
    }


def speeds(report: BenchmarkReport) -> dict[str, dict[str, float | None]]:
    """What a person compares of each variant, and of PyTorch eager as "pytorch", on the CPU.

    Each figure with the thread count that is best at it; the speedup is over eager, at one row.
    """
    bench = report.bench
    found = {one.subject: list(bench.of(one.subject)) for one in bench.measured if one.proof}
    found["pytorch"] = list(bench.of(EAGER, TORCH))
    return {name: _speed(runs) for name, runs in found.items() if runs}


def quickest_row(runs: Sequence[Measurement]) -> BenchRow | None:
    """One row at once, with the thread count that is best at it."""
    rows = (row for one in runs if (row := one.row(1)))
    return min(rows, key=lambda row: row.timing.p50_ms, default=None)


def fastest_batch(runs: Sequence[Measurement]) -> Timing | None:
    """The most rows per second of any batch size and thread count."""
    timings = (one.fastest for one in runs)
    return max(timings, key=lambda timing: timing.rows_per_second, default=None)


def _speed(runs: Sequence[Measurement]) -> dict[str, float | None]:
    row, batch = quickest_row(runs), fastest_batch(runs)
    return {
        "p50_ms": row.timing.p50_ms if row else None,
        "rows_per_second": batch.rows_per_second if batch else None,
        "speedup": row.speedup.median if row and row.speedup else None,
    }


def ratio_of_rows(ours: Timing, theirs: Timing, *, seed: int) -> PairedRatio:
    """How many times as many rows a second `ours` answers as `theirs`, turn by turn.

    At one batch size their turns alternated. At two, turns of the same number are paired, which lie
    further apart, and the interval is the wider for it.
    """
    return ratio_of_turns(
        [turn / theirs.batch_size for turn in theirs.turns_ms],
        [turn / ours.batch_size for turn in ours.turns_ms],
        seed=seed,
    )


def over_eager(report: BenchmarkReport) -> Iterator[tuple[int, PairedRatio]]:
    """By batch size, how many times as fast ONNX Runtime's fp32 is as eager, one thread each."""
    claimed = _claimed(report)
    for row in claimed.rows if claimed else ():
        if row.speedup:
            yield row.timing.batch_size, row.speedup


def _claimed(report: BenchmarkReport) -> Measurement | None:
    """What the table says in words is of fp32 with one thread."""
    return next((one for one in report.bench.of("fp32") if one.settings.threads == 1), None)


def as_table(report: BenchmarkReport) -> str:
    """Lay out a report for a terminal: its rows, and what it says."""
    claims = [
        f"ONNX Runtime fp32 is {ratio.median:.2f} times as fast as {EAGER} at batch {size}, one "
        f"thread each (95 % interval {ratio.low:.2f} to {ratio.high:.2f}, {ratio.num_pairs} turns)"
        for size, ratio in over_eager(report)
    ]
    parts = [bench_report.as_table(report.bench), "\n".join(claims)]
    return "\n\n".join(filter(None, parts))


def threads_of(count: int) -> str:
    """In words: "1 thread", "2 threads"."""
    return f"{count} thread{'s' if count > 1 else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """How many times better than fp32 a variant is, by the goal."""

    times: float
    """Of speeds the median of turns that both took."""
    low: float
    """Lower end of the 95 % bootstrap interval; sizes are exact, and all three are one number."""
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleReport:
    """What was shipped, and why."""

    experiment: str
    """Its name, or the ONNX file's."""
    variant: str
    """One of the experiment's, or "file"."""
    target: str
    """The kind of place that it is for."""
    reason: str
    goal: str | None
    """By which the variant was chosen; None for a file, which is the only one."""
    gains: Mapping[str, Gain]
    """Of each variant that passed."""
    flash_bytes: int | None
    ram_bytes: int | None
    """What the model takes on the target, where that is known beforehand."""
    boards: str | None
    """The well-known ones that it fits on; None for a target that is no board."""
    sha256: str
    """Of the ONNX file."""
    classes: int
    golden_rows: int
    reference_rows: int
    """Rows of the training data whose distribution the bundle keeps; 0 for none."""
    bytes: int
    """Of the whole folder."""
    digest: str
    """The identity of the bundle, as its manifest has it."""

    @property
    def headline(self) -> Mapping[str, float | None]:
        """The size of what ships."""
        return {"bytes": self.bytes}


def gains_over_fp32(report: BenchmarkReport, variants: Sequence[str], goal: str) -> dict[str, Gain]:
    """How much better each of `variants` is on the CPU, by "latency", "throughput" or "size".

    Latency is that of the smallest batch of fp32, throughput that of each one's own best batch.
    Speeds are compared turn by turn, with the threads that suit fp32 best: nobody would serve fp32
    with others. Raises IntegrityError for a variant without the row that it would be judged by.
    """
    measured = on_cpu(report, "fp32")
    if goal == "throughput":
        fp32 = max(measured, key=lambda one: one.fastest.rows_per_second)
    else:
        fp32 = min(measured, key=lambda one: _smallest(one).p50_ms)
    return {name: _gain(report, name, fp32, goal) for name in variants}


def on_cpu(report: BenchmarkReport, variant: str) -> tuple[Measurement, ...]:
    """What was measured of a variant on the CPU; IntegrityError for nothing."""
    found = tuple(report.bench.of(variant))
    if not found:
        raise IntegrityError(f"{report.experiment}: benchmark.json has no CPU row for {variant}")
    return found


def _gain(report: BenchmarkReport, variant: str, fp32: Measurement, goal: str) -> Gain:
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


def _row(report: BenchmarkReport, one: Measurement, fp32: Measurement, goal: str) -> Timing:
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


def _smallest(one: Measurement) -> Timing:
    return min((row.timing for row in one.rows), key=lambda timing: timing.batch_size)


def _bytes(one: Measurement) -> int:
    return one.file_bytes or 0
