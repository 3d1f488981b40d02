"""The record of a benchmark: what `ferry bench --json` prints and the pipeline keeps.

Only plain values, so that a report goes through JSON and back without loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from serving.console import table
from serving.environment import Environment
from serving.records import read_record
from serving.session import ProviderProof
from serving.timing import Timing

__all__ = ["BenchReport", "SkippedBatch", "SkippedProvider", "as_table", "report_from"]

HEADER = ("provider", "batch", "p50 ms", "p90 ms", "p99 ms", "rows/s", "calls", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedBatch:
    """A batch size that was not measured."""

    batch_size: int
    skipped: str
    """The reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedProvider:
    """A provider that was not measured."""

    provider: str
    skipped: str
    """The reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """One model on one provider."""

    model: str
    rows: str | None = None
    """The name of the file whose rows were fed, or None for random inputs."""
    sha256: str
    file_bytes: int
    provider: str
    """A key of `serving.session.PROVIDERS`."""
    proof: ProviderProof
    """Which nodes ONNX Runtime gave to which provider."""
    share: float
    """The part of the nodes that ran where it was asked to; below 1 there is no report."""
    threads: int
    session_ms: float
    """Time to read, check and optimise the model: the median of three sessions."""
    first_call_ms: float
    peak_memory_bytes: int
    """The most memory that the measuring process ever held."""
    batches: tuple[Timing, ...]
    skipped: tuple[SkippedBatch, ...]
    environment: Environment

    def timing(self, batch_size: int) -> Timing | None:
        """The figures of one batch size, or None if it was not measured."""
        return next((row for row in self.batches if row.batch_size == batch_size), None)

    @property
    def fastest(self) -> Timing:
        """The batch size with the most rows per second."""
        return max(self.batches, key=lambda row: row.rows_per_second)


def report_from(raw: object, where: str = "the report") -> BenchReport:
    """Read a report back from its JSON; IntegrityError when it is not one."""
    return read_record(BenchReport, raw, where)


def as_table(rows: Sequence[BenchReport | SkippedProvider]) -> str:
    """Lay out reports for a terminal: one line per batch size, and one on the rest of each."""
    lines: list[tuple[str, ...]] = []
    notes: list[str] = []
    for row in rows:
        if isinstance(row, SkippedProvider):
            notes.append(f"{row.provider}: skipped: {row.skipped}")
            continue
        lines += [_line(row.provider, timing) for timing in row.batches]
        notes += [f"{row.provider}: batch {b.batch_size} skipped: {b.skipped}" for b in row.skipped]
        notes.append(_summary(row))
    return "\n".join([*([table(HEADER, lines), ""] if lines else []), *notes])


def _line(provider: str, timing: Timing) -> tuple[str, ...]:
    times = (f"{value:.3f}" for value in (timing.p50_ms, timing.p90_ms, timing.p99_ms))
    rest = (f"{timing.rows_per_second:,.0f}", str(timing.num_calls))
    return (provider, str(timing.batch_size), *times, *rest, "" if timing.steady else "not steady")


def _summary(report: BenchReport) -> str:
    nodes = ", ".join(f"{count} nodes on {name}" for name, count in report.proof.nodes.items())
    fed = f"rows of {report.rows}" if report.rows else "random inputs"
    return (
        f"{report.provider}: {nodes or 'no nodes'}; threads {report.threads}; {fed}; "
        f"session {report.session_ms:.1f} ms, first call {report.first_call_ms:.2f} ms; "
        f"file {report.file_bytes:,} bytes, peak memory {report.peak_memory_bytes / 2**20:.0f} MiB"
    )
