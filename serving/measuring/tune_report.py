"""The record of a tuning: what was chosen, by how much it is faster, and all that was tried."""

from dataclasses import dataclass

from serving.console import table
from serving.environment import Environment
from serving.machine import this_machine
from serving.measuring.finals import Finalist, PassedOver
from serving.measuring.load import Load
from serving.measuring.screening import Trial
from serving.pairing import PairedRatio
from serving.profiles import Goal, Profile
from serving.settings import SessionSettings

__all__ = ["TuneReport", "as_text", "profile_of"]

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneReport:
    """The best settings that were found for a model on this machine."""

    model: str
    rows: str | None
    """The name of the file whose rows were fed, or None for random inputs."""
    goal: Goal
    provider: str
    settings: SessionSettings
    batch_size: int
    p50_ms: float
    """Of one call."""
    rows_per_second: float
    peak_memory_bytes: int
    memory_limit_bytes: int | None
    over_defaults: PairedRatio
    """How many times as fast as ONNX Runtime's own settings, turn by turn; 1 if it is these."""
    defaults: Finalist
    """ONNX Runtime's own settings, for throughput at the batch size that is best for them."""
    finalists: tuple[Finalist, ...]
    """What was measured in full, best first."""
    passed_over: tuple[PassedOver, ...]
    num_candidates: int
    trials: tuple[Trial, ...]
    """What the screening saw of every candidate, best first."""
    seconds: float
    """That the tuning took."""
    seed: int
    load: Load
    environment: Environment


def profile_of(report: TuneReport) -> Profile:
    """What a bundle keeps of a tuning; call it on the machine that was tuned."""
    return Profile(
        goal=report.goal,
        provider=report.provider,
        machine=this_machine(report.provider),
        onnxruntime=report.environment.onnxruntime or "unknown",
        settings=report.settings,
        batch_size=report.batch_size,
        p50_ms=report.p50_ms,
        rows_per_second=report.rows_per_second,
        over_defaults=report.over_defaults.median,
    )


def as_text(report: TuneReport) -> str:
    """The finalists in a table, best first, and what came of it."""
    header = ("settings", "p50 ms", "rows/s", "over defaults", "peak MiB")
    rest = [] if report.defaults in report.finalists else [report.defaults]
    rows = [_cells(one, report) for one in (*report.finalists, *rest)]
    skipped = sum(trial.skipped is not None for trial in report.trials)
    lines = [
        f"{report.model} on {report.provider}, for {report.goal}",
        table(header, rows),
        f"{report.num_candidates} candidates in {report.seconds:.1f} s"
        + (f", {skipped} of them cannot be run" if skipped else ""),
        *(f"passed over: {one.candidate.told()}: {one.reason}" for one in report.passed_over),
        *([report.load.warning] if report.load.warning else []),
    ]
    return "\n".join(lines)


def _cells(one: Finalist, report: TuneReport) -> tuple[str, ...]:
    chosen = (report.settings, report.batch_size) == (
        one.candidate.settings,
        one.candidate.batch_size,
    )
    is_default = one.candidate == report.defaults.candidate
    marks = [*(["chosen"] if chosen else []), *(["ONNX Runtime's own"] if is_default else [])]
    ratio = one.over_defaults
    return (
        one.candidate.told() + (f" ({', '.join(marks)})" if marks else ""),
        f"{one.timing.p50_ms:.3f}",
        f"{one.timing.rows_per_second:,.0f}",
        f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
        f"{one.peak_memory_bytes / MIB:.0f}",
    )
