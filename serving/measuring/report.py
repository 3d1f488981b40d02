"""The record of a benchmark, and how it is shown: as a table for the terminal, and as CSV.

`ferry bench --json` prints the record and the pipeline keeps it: plain values alone, so that it
goes through JSON and back without loss.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from serving.console import table
from serving.files import csv_text
from serving.machine.environment import Environment
from serving.measuring.meters import Growth, Load
from serving.measuring.pairing import PairedRatio, verdict
from serving.measuring.scenarios import ScenarioResult
from serving.measuring.subject import Share, label_of
from serving.measuring.timing import Clock, Timing
from serving.runtime.session import ProviderProof
from serving.runtime.settings import SessionSettings

BEFORE = "before"
"""The name of the subject that `ferry bench --compare` measures beside the model."""
HEADER = ("what", "threads", "batch", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "rows/s")
SCENARIO_HEADER = ("scenario", "rows", "queries", *HEADER[3:])
MIB = 2**20
COLUMNS = (
    *("subject", "provider", "threads", "parallel", "settings", "batch_size"),
    *("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms", "rows_per_second", "num_calls"),
    *("warmup_ms", "steady", "first_call_ms", "ready_ms", "speedup", "speedup_low"),
    *("speedup_high", "verdict", "asked_provider", "node_share", "time_share", "file_bytes"),
    *("peak_memory_bytes", "gpu_memory_bytes", "arena_growth_bytes", "millijoules_per_row"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One subject at one batch size."""

    timing: Timing
    first_call_ms: float
    speedup: PairedRatio | None
    """How many times as fast as the report's baseline, turn by turn; None for the baseline."""
    millijoules_per_row: float | None
    """Of the whole device, idle parts included; None where nothing counts energy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedBatch:
    """A batch size that was not measured."""

    batch_size: int
    skipped: str
    """The reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedSubject:
    """A subject that was not measured at all."""

    subject: str
    provider: str
    threads: int | None
    """None for any number."""
    skipped: str
    """The reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One subject with its settings, measured in a process of its own."""

    subject: str
    """For instance "fp32" or "PyTorch eager"."""
    provider: str
    """A key of `serving.runtime.session.PROVIDERS`, or "torch"."""
    settings: SessionSettings
    cores: tuple[int, ...]
    """The numbers of the cores that the process was pinned to."""
    sha256: str | None
    """Of the model's file; None where there is no single one."""
    file_bytes: int | None
    proof: ProviderProof | None
    """Which nodes ONNX Runtime gave to which provider; None for what it does not run."""
    share: Share | None
    """Where the time went, at the first batch size."""
    ready_ms: float
    """Time to read, check and optimise the model: of ONNX Runtime the median of three sessions."""
    peak_memory_bytes: int
    """The most memory that the process ever held, whole, over all batch sizes."""
    gpu_memory_bytes: int | None
    growth: Growth | None
    """What calls of mixed batch sizes left behind; None where that was not asked for."""
    rows: tuple[BenchRow, ...]
    skipped: tuple[SkippedBatch, ...]

    @property
    def label(self) -> str:
        """The subject, with its provider where that is one of ONNX Runtime's."""
        return label_of(self.subject, self.provider)

    def row(self, batch_size: int) -> BenchRow | None:
        """The figures of one batch size, or None if it was not measured."""
        return next((row for row in self.rows if row.timing.batch_size == batch_size), None)

    @property
    def fastest(self) -> Timing:
        """The batch size with the most rows per second."""
        return max((row.timing for row in self.rows), key=lambda timing: timing.rows_per_second)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """From starting a process to its first answer."""

    subject: str
    p50_ms: float
    runs_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """All that one run measured."""

    model: str
    rows: str | None
    """The name of the file whose rows were fed, or None for random inputs."""
    baseline: str
    """The label of what speedups are over."""
    measured: tuple[Measurement, ...]
    skipped: tuple[SkippedSubject, ...]
    cold_starts: tuple[ColdStart, ...]
    scenarios: tuple[ScenarioResult, ...]
    partial: bool
    """Whether it was interrupted; what had been measured by then is here."""
    seed: int
    num_rounds: int
    energy: str
    """The counter that energy was read from, or why there is none."""
    clock: Clock
    load: Load
    environment: Environment

    def of(self, subject: str, provider: str = "cpu") -> Iterator[Measurement]:
        """What was measured of a subject on a provider, one for each setting."""
        return (m for m in self.measured if (m.subject, m.provider) == (subject, provider))


def as_table(report: BenchReport) -> str:
    """Lay out a report for a terminal: a line per row, then what stands behind the rows."""
    parts = []
    lines = [_line(one, row) for one in report.measured for row in one.rows]
    if lines:
        compares = any(row.speedup for one in report.measured for row in one.rows)
        header = (*HEADER, f"× {report.baseline}" if compares else "", "")
        parts.append(table(header, lines))
    if report.scenarios:
        parts.append(table(SCENARIO_HEADER, [_scenario(one) for one in report.scenarios]))
    parts += filter(None, ("\n".join(_processes(report)), "\n".join(_notes(report))))
    return "\n\n".join(parts)


def as_csv(report: BenchReport) -> str:
    """One line per row, with units in the names of the columns."""
    return csv_text(COLUMNS, (_cells(one, row) for one in report.measured for row in one.rows))


def _line(one: Measurement, row: BenchRow) -> tuple[str, ...]:
    timing = row.timing
    return (
        " ".join(filter(None, [one.label, one.settings.describe()])),
        str(one.settings.threads),
        str(timing.batch_size),
        *_speed(timing),
        _ratio(row.speedup),
        "" if timing.steady else "not steady",
    )


def _ratio(ratio: PairedRatio | None) -> str:
    if ratio is None:
        return ""
    message = f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
    return f"{message} =" if verdict(ratio) == "no difference" else message


def _scenario(one: ScenarioResult) -> tuple[str, ...]:
    name = one.scenario
    if one.rate_per_second is not None:
        name += f", {one.rate_per_second:,.4g} queries/s"
    return (name, str(one.rows_per_query), f"{one.num_queries:,}", *_speed(one))


def _speed(found: Timing | ScenarioResult) -> tuple[str, ...]:
    times = (found.p50_ms, found.p90_ms, found.p99_ms, found.p999_ms)
    return (*(f"{value:.3f}" for value in times), f"{found.rows_per_second:,.0f}")


def _processes(report: BenchReport) -> Iterator[str]:
    """What each process proved, and what it took beside time."""
    for one in report.measured:
        parts = [f"{one.label}, threads {one.settings.threads}: {_proof(one)}"]
        parts.append(f"ready in {one.ready_ms:.1f} ms")
        if one.rows:
            parts.append(f"first call {one.rows[0].first_call_ms:.2f} ms")
            warming = sum(row.timing.warmup_ms for row in one.rows)
            parts.append(f"warmed up for {warming:,.0f} ms")
        if one.file_bytes is not None:
            parts.append(f"file {one.file_bytes:,} bytes")
        parts.append(f"peak {one.peak_memory_bytes / MIB:.0f} MiB")
        if one.gpu_memory_bytes is not None:
            parts.append(f"GPU {one.gpu_memory_bytes / MIB:.0f} MiB")
        if one.growth:
            message = f"grew {one.growth.arena_bytes / MIB:.1f} MiB"
            parts.append(f"{message} over {one.growth.num_calls:,} calls of mixed batches")
        yield "; ".join(parts)
    for cold in report.cold_starts:
        yield f"{cold.subject}: {cold.p50_ms:.0f} ms from starting a process to its first answer"


def _proof(one: Measurement) -> str:
    if one.proof is None:
        return "not in ONNX Runtime"
    nodes = ", ".join(f"{count} nodes on {name}" for name, count in one.proof.nodes.items())
    time = f", {100 * one.share.share:.0f} % of the time there" if one.share else ""
    return f"{nodes or 'no nodes'}{time}"


def _notes(report: BenchReport) -> Iterator[str]:
    """What was not measured, and what to think of what was."""
    for one in report.measured:
        for batch in one.skipped:
            yield f"{one.label}: batch {batch.batch_size} skipped: {batch.skipped}"
    for skipped in report.skipped:
        yield f"{label_of(skipped.subject, skipped.provider)}: skipped: {skipped.skipped}"
    fed = f"rows of {report.rows}" if report.rows else "random inputs"
    machine = report.environment
    cores = f"{machine.allowed_cores} of {machine.cores} cores"
    yield f"{fed}; {machine.processor}, {cores}; onnxruntime {machine.onnxruntime}"
    if any(row.speedup for one in report.measured for row in one.rows):
        message = f"× {report.baseline}: medians of {report.num_rounds} turns about"
        yield f"{message}, 95 % intervals; = is no difference beyond 2 %"
    if report.load.warning:
        yield f"warning: {report.load.warning}"
    if report.partial:
        yield "interrupted: only what was measured until then is here"


def _cells(one: Measurement, row: BenchRow) -> tuple[object, ...]:
    """The values of `COLUMNS`; None leaves a cell empty."""
    timing, ratio = row.timing, row.speedup
    return (
        *(one.subject, one.provider, one.settings.threads, one.settings.parallel),
        *(one.settings.describe(), timing.batch_size, timing.p50_ms, timing.p90_ms, timing.p99_ms),
        *(timing.p999_ms, timing.max_ms, timing.rows_per_second, timing.num_calls),
        *(timing.warmup_ms, str(timing.steady).lower(), row.first_call_ms, one.ready_ms),
        *((ratio.median, ratio.low, ratio.high, verdict(ratio)) if ratio else ("",) * 4),
        *((one.proof.asked, one.proof.share) if one.proof else ("", "")),
        one.share.share if one.share else "",
        *(one.file_bytes, one.peak_memory_bytes, one.gpu_memory_bytes),
        one.growth.arena_bytes if one.growth else "",
        row.millijoules_per_row,
    )
