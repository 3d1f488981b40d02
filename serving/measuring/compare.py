"""The regression gate: fail where a model is slower than before, beyond a limit and the noise.

Against a model the two take turns, and the ratios of their turns decide. Against figures that were
saved, the medians of turns that were hours apart decide, which is a weaker proof: it is only made
on the same kind of machine, and it is told.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from serving.bench_report import AGAINST, BenchReport, Measured, Row
from serving.console import table
from serving.errors import InputError, SlowerError
from serving.pairing import PairedRatio, ratio_of_separate_turns, ratio_of_turns

__all__ = ["ComparedRow", "Comparison", "as_text", "compare_saved", "compare_turns"]

HEADER = ("what", "threads", "batch", "now ms", "before ms", "now / before", "95 % interval", "")
SAME = ("processor", "architecture", "allowed_cores", "gpu")
"""What two machines must share for their figures to be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRow:
    """One provider, setting and batch size, now and before."""

    what: str
    threads: int
    batch_size: int
    now_ms: float
    before_ms: float
    ratio: PairedRatio
    """Time now over time before: above 1 is slower."""
    slower: bool
    """Whether the whole interval is above the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Every row that was measured both now and before."""

    against: str
    method: Literal["in turns", "with saved figures"]
    limit: float
    """How many times as long as before a row may take."""
    rows: tuple[ComparedRow, ...]

    @property
    def passed(self) -> bool:
        """Whether no row is slower than the limit."""
        return not any(row.slower for row in self.rows)

    def require(self) -> None:
        """Raise SlowerError, naming the worst row, if one is slower than the limit."""
        slower = [row for row in self.rows if row.slower]
        if slower:
            worst = max(slower, key=lambda row: row.ratio.median)
            raise SlowerError(
                f"{worst.what} at batch {worst.batch_size}, threads {worst.threads}, takes "
                f"{worst.ratio.median:.2f} ({worst.ratio.low:.2f} to {worst.ratio.high:.2f}) times "
                f"as long as {self.against}, the limit is {self.limit:g}; {len(slower)} of "
                f"{len(self.rows)} rows are slower"
            )


def compare_turns(report: BenchReport, limit: float, *, name: str) -> Comparison:
    """Compare the two models of a report that `serving.bench.bench` made with `against`."""
    rows: list[ComparedRow] = []
    for one in report.measured:
        for other in report.of(AGAINST, one.provider) if one.subject != AGAINST else ():
            if other.settings == one.settings:
                rows += _pairs(one, other, limit, report.seed, paired=True)
    return _comparison(name, "in turns", limit, rows)


def compare_saved(
    report: BenchReport, saved: BenchReport, *, subject: str | None, where: str, limit: float
) -> Comparison:
    """Compare a report with one that was saved, of `subject` there, or of its only one.

    Raises InputError when they are of different machines, or share no row.
    """
    for name in SAME:
        now, before = getattr(report.environment, name), getattr(saved.environment, name)
        if now != before:
            raise InputError(
                f"{where} was measured on another machine ({name} {before}, here {now}): figures "
                f"of two machines do not compare"
            )
    known = sorted({one.subject for one in saved.measured})
    subject = known[0] if subject is None and len(known) == 1 else subject
    if subject not in known:
        raise InputError(
            f"{where} has {', '.join(known) or 'no rows'}, not {subject or 'one model'}"
        )
    rows: list[ComparedRow] = []
    for one in report.measured:
        for other in saved.of(subject, one.provider):
            if other.settings == one.settings:
                rows += _pairs(one, other, limit, report.seed, paired=False)
    return _comparison(where, "with saved figures", limit, rows)


def as_text(comparison: Comparison) -> str:
    """Lay a comparison out for a terminal."""
    lines = [
        (
            row.what,
            str(row.threads),
            str(row.batch_size),
            f"{row.now_ms:.3f}",
            f"{row.before_ms:.3f}",
            f"{row.ratio.median:.3f}",
            f"{row.ratio.low:.3f}–{row.ratio.high:.3f}",
            "SLOWER" if row.slower else "",
        )
        for row in comparison.rows
    ]
    verdict = "passed" if comparison.passed else "FAILED"
    told = f"{verdict}: compared {comparison.method}, limit {comparison.limit:g}"
    if comparison.method == "with saved figures":
        told += "; of another time: name a model file instead to measure both in turns"
    return f"{table(HEADER, lines)}\n\n{told}"


def _comparison(
    against: str,
    method: Literal["in turns", "with saved figures"],
    limit: float,
    rows: list[ComparedRow],
) -> Comparison:
    if not rows:
        raise InputError(
            f"nothing that was measured is in {against} too: no row of the same provider, settings "
            f"and batch size"
        )
    return Comparison(against=against, method=method, limit=limit, rows=tuple(rows))


def _pairs(
    now: Measured, before: Measured, limit: float, seed: int, *, paired: bool
) -> Iterator[ComparedRow]:
    for row in now.rows:
        other = before.row(row.timing.batch_size)
        if other:
            yield _pair(now, row, other, limit, _ratio(row, other, seed, paired=paired))


def _ratio(now: Row, before: Row, seed: int, *, paired: bool) -> PairedRatio:
    ratio = ratio_of_turns if paired else ratio_of_separate_turns
    return ratio(now.timing.turns_ms, before.timing.turns_ms, seed=seed)


def _pair(
    measured: Measured, now: Row, before: Row, limit: float, ratio: PairedRatio
) -> ComparedRow:
    return ComparedRow(
        what=measured.label,
        threads=measured.settings.threads,
        batch_size=now.timing.batch_size,
        now_ms=float(np.median(now.timing.turns_ms)),
        before_ms=float(np.median(before.timing.turns_ms)),
        ratio=ratio,
        slower=ratio.low > limit,
    )
