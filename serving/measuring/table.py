"""A benchmark's report for people and spreadsheets: a table for the terminal, and CSV."""

import csv
import io
from collections.abc import Iterator

from serving.console import table
from serving.measuring.client import label_of
from serving.measuring.pairing import PairedRatio, verdict
from serving.measuring.report import BenchReport, Measured, Row
from serving.measuring.scenarios.records import ScenarioResult

HEADER = ("what", "threads", "batch", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "rows/s")
SCENARIO_HEADER = (
    "scenario",
    "rows",
    "queries",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "p99.9 ms",
    "rows/s",
)
MIB = 2**20
COLUMNS = (
    *("subject", "provider", "threads", "parallel", "settings", "batch_size"),
    *("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms", "rows_per_second", "num_calls"),
    *("warmup_ms", "steady", "first_call_ms", "ready_ms", "speedup", "speedup_low"),
    *("speedup_high", "verdict", "asked_provider", "node_share", "time_share", "file_bytes"),
    *("peak_memory_bytes", "gpu_memory_bytes", "arena_growth_bytes", "millijoules_per_row"),
)


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
    parts += [
        "\n".join(notes) for notes in (list(_processes(report)), list(_notes(report))) if notes
    ]
    return "\n\n".join(parts)


def as_csv(report: BenchReport) -> str:
    """One line per row, with units in the names of the columns."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in report.measured:
        writer.writerows(_cells(one, row) for row in one.rows)
    return file.getvalue()


def _line(one: Measured, row: Row) -> tuple[str, ...]:
    timing = row.timing
    times = (timing.p50_ms, timing.p90_ms, timing.p99_ms, timing.p999_ms)
    return (
        " ".join(filter(None, [one.label, one.settings.describe()])),
        str(one.settings.threads),
        str(timing.batch_size),
        *(f"{value:.3f}" for value in times),
        f"{timing.rows_per_second:,.0f}",
        _ratio(row.speedup),
        "" if timing.steady else "not steady",
    )


def _ratio(ratio: PairedRatio | None) -> str:
    if ratio is None:
        return ""
    message = f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
    return f"{message} =" if verdict(ratio) == "no difference" else message


def _scenario(one: ScenarioResult) -> tuple[str, ...]:
    name = one.scenario if one.engine == "ferry" else f"{one.scenario} by {one.engine}"
    if one.rate_per_second is not None:
        name += f", {one.rate_per_second:,.4g} queries/s"
    times = (one.p50_ms, one.p90_ms, one.p99_ms, one.p999_ms)
    rows = str(one.rows_per_query)
    queries = f"{one.num_queries:,}"
    return (name, rows, queries, *(f"{t:.3f}" for t in times), f"{one.rows_per_second:,.0f}")


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


def _proof(one: Measured) -> str:
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


def _cells(one: Measured, row: Row) -> tuple[object, ...]:
    timing, ratio = row.timing, row.speedup
    return (
        *(one.subject, one.provider, one.settings.threads, one.settings.parallel),
        *(one.settings.describe(), timing.batch_size, timing.p50_ms, timing.p90_ms, timing.p99_ms),
        *(timing.p999_ms, timing.max_ms, timing.rows_per_second, timing.num_calls),
        *(timing.warmup_ms, str(timing.steady).lower(), row.first_call_ms, one.ready_ms),
        *((ratio.median, ratio.low, ratio.high, verdict(ratio)) if ratio else ("",) * 4),
        *((one.proof.asked, one.proof.share) if one.proof else ("", "")),
        one.share.share if one.share else "",
        "" if one.file_bytes is None else one.file_bytes,
        one.peak_memory_bytes,
        "" if one.gpu_memory_bytes is None else one.gpu_memory_bytes,
        one.growth.arena_bytes if one.growth else "",
        "" if row.millijoules_per_row is None else row.millijoules_per_row,
    )
