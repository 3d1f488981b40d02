"""The first screen of the page: what each experiment ships, why, and what that is worth."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config.layout import VARIANTS
from pipeline.records.benchmark import BundleReport
from pipeline.records.published import PublishedVariant
from pipeline.stages.page.results import ExperimentResults, ResultRow, rows_of, to_publish
from serving.console import number

GAINED = {
    "latency": "times as fast",
    "throughput": "times the rows per second",
    "size": "times as small",
}
"""What a gain over fp32 counts, by the goal of the bundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One experiment in a line. Its figures are of what ships, of fp32 where nothing does yet."""

    ships: str | None
    """The variant in the bundle."""
    why: str
    """In a few words; why nothing ships, if something failed."""
    missing: str | None
    """The first stage that has not run on these files; None where all have."""
    failed: tuple[str, ...]
    """The variants that failed parity."""
    row: ResultRow | None
    """None before parity has run."""
    quality: str
    """On the test set: an accuracy, or an error where no class is predicted."""
    change: str
    """Of that, by making the variant; "" for fp32."""


def verdict_of(measured: ExperimentResults) -> Verdict:
    """Say what of an experiment ships, and why."""
    rows = rows_of(measured)
    row = next((row for row in rows if row.shipped), rows[0] if rows else None)
    shipped, trained = measured.shipped, measured.training.accuracy
    made = to_publish(measured).variants
    return Verdict(
        ships=shipped.variant if shipped else None,
        why="; ".join(_why(measured, shipped) if shipped else _failures(measured)),
        missing=_missing(measured),
        failed=tuple(name for name, one in made.items() if not one.passed),
        row=row,
        quality=row.reached if row else number(trained and 100 * trained, ".2f", " %"),
        change=_change(made[row.variant]) if row and row.variant != VARIANTS[0] else "",
    )


def _why(measured: ExperimentResults, shipped: BundleReport) -> Iterator[str]:
    """What the variant gained over fp32; of fp32, what became of each of the others."""
    if not shipped.gains:
        yield shipped.reason
        return
    gained = GAINED[shipped.goal or "latency"]
    if shipped.variant != VARIANTS[0]:
        yield f"{shipped.gains[shipped.variant].times:.2f} {gained} as fp32"
        return
    for variant in VARIANTS[1:]:
        if variant in shipped.gains:
            yield f"{variant} is {shipped.gains[variant].times:.2f} {gained}"
        elif measured.parity and variant not in measured.parity.variants:
            yield _not_made(measured, variant)


def _not_made(measured: ExperimentResults, variant: str) -> str:
    search = measured.quantized.searches.get(variant) if measured.quantized else None
    if search is None:
        return f"no {variant} was made"
    lacked = "fast" if any(one.accurate for one in search.tries) else "accurate"
    return f"no {variant} was {lacked} enough"


def _failures(measured: ExperimentResults) -> Iterator[str]:
    for name, parity in measured.parity.variants.items() if measured.parity else ():
        if parity.failures:
            yield f"{name} failed parity: {parity.failures[0]}"


def _missing(measured: ExperimentResults) -> str | None:
    found = {
        "parity": measured.parity,
        "benchmark": measured.benchmark,
        "bundle": measured.shipped,
        "evaluate": measured.inside,
    }
    return next((stage for stage, report in found.items() if report is None), None)


def _change(made: PublishedVariant) -> str:
    if made.accuracy_loss is not None:
        return f"{-made.accuracy_loss:+.2f}" if round(made.accuracy_loss, 2) else "±0"
    return "" if made.error_increase is None else f"{made.error_increase:+.1f} %"
