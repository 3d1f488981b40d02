"""What `ferry benchmark` measured, and what `ferry bundle` shipped because of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from serving.measuring import table
from serving.measuring.pairing import PairedRatio, ratio_of_turns
from serving.measuring.report import BenchReport, Measured
from serving.measuring.timing import Timing

EAGER = "PyTorch eager"
"""The baseline: every row's speedup is over it, at the same threads and batch size."""
CLAIMED = ("fp32", 1)
"""The variant and the threads of what the table says in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkReport:
    """All that was timed."""

    experiment: str
    torch_version: str
    weights_sha256: str
    bench: BenchReport
    """A `Measured` per variant, provider and thread count, and one per rival and thread count."""
    skipped: Mapping[str, str]
    """The variants that were not made, with the reason."""

    @property
    def headline(self) -> Mapping[str, float | None]:
        """fp32 at a batch of one row with one thread: its latency, and its speedup over eager."""
        variant, threads = CLAIMED
        runs = [one for one in timed(self, variant) if one.settings.threads == threads]
        row = runs[0].row(1) if runs else None
        return {
            "p50_ms": row.timing.p50_ms if row else None,
            "speedup": row.speedup.median if row and row.speedup else None,
        }


def timed(report: BenchmarkReport, variant: str, provider: str = "cpu") -> tuple[Measured, ...]:
    """What was measured of a variant on a provider: one for each thread count."""
    return tuple(report.bench.of(variant, provider))


def sweeps(report: BenchmarkReport) -> dict[str, tuple[Timing, ...]]:
    """The timings over batch sizes, by what was timed: "fp32 · cpu, 2 threads"."""
    return {
        f"{one.label}, {_threads(one.settings.threads)}": tuple(row.timing for row in one.rows)
        for one in report.bench.measured
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
    variant, threads = CLAIMED
    for one in timed(report, variant):
        if one.settings.threads == threads:
            for row in one.rows:
                if row.speedup:
                    yield row.timing.batch_size, row.speedup


def as_table(report: BenchmarkReport) -> str:
    """Lay out a report for a terminal: its rows, what was not made and why, and what it says."""
    skipped = [f"{variant}: not made: {reason}" for variant, reason in report.skipped.items()]
    claims = [
        f"ONNX Runtime fp32 is {ratio.median:.2f} times as fast as {EAGER} at batch {size}, one "
        f"thread each (95 % interval {ratio.low:.2f} to {ratio.high:.2f}, {ratio.num_pairs} turns)"
        for size, ratio in over_eager(report)
    ]
    parts = [table.as_table(report.bench), "\n".join([*skipped, *claims])]
    return "\n\n".join(filter(None, parts))


def _threads(count: int) -> str:
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
    """The variant that was chosen, and why."""

    experiment: str
    variant: str
    reason: str
    goal: str
    gains: Mapping[str, Gain]
    """Of each variant that passed."""
    bytes: int
    """Of the whole folder."""
    digest: str
    """The identity of the bundle, as its manifest has it."""

    @property
    def headline(self) -> Mapping[str, float | str | None]:
        """What ships, and its size."""
        return {"variant": self.variant, "bytes": self.bytes}
