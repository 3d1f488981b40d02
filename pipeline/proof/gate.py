"""Hold what was measured against the limits of a gate, and say in words what is outside."""

from collections.abc import Iterator, Sequence

from pipeline.proof.decisions import PROBABILITIES
from pipeline.records.parity import Cell, Limits, OutputDifference
from serving.session import Level

__all__ = ["SHIPPED", "accuracy_loss", "failures", "probabilities", "values"]

SHIPPED: Level = "all"
"""The level of optimization that sessions have unless they are asked for another."""
DIGITS = 9
"""Of an accuracy loss: beyond them a difference of two shares is rounding, and no loss."""
Found = tuple[Cell, OutputDifference]


def failures(cells: Sequence[Cell], rows: int, limits: Limits) -> Iterator[str]:
    """What is outside of its limit in any of the cells, one line for each quantity.

    `rows` are those of the whole set: a loss of accuracy on a sample is chance.
    """
    broken = max(_all(cells), key=lambda found: found[1].nonfinite, default=None)
    if broken is not None and broken[1].nonfinite:
        cell, found = broken
        yield f"{found.nonfinite} values are NaN or infinite, first at {_place(cell, found)}"
    yield from _largest(values(cells), limits.max_abs_diff)
    yield from _largest(probabilities(cells), limits.max_probability_diff)
    yield from _faintest(cells, limits.min_snr_db)
    decided = [(cell, cell.decisions) for cell in cells if cell.decisions is not None]
    flipped = max(decided, key=lambda pair: pair[1].flips, default=None)
    if flipped is not None and limits.flips is not None and flipped[1].flips > limits.flips:
        yield f"{flipped[1].flips} flips{_way(flipped[0])}, limit {limits.flips}"
    losses = [(accuracy_loss(cell), cell) for cell in cells if cell.rows == rows]
    known = [(loss, cell) for loss, cell in losses if loss is not None]
    worst = max(known, key=lambda pair: pair[0], default=None)
    if worst is not None and limits.accuracy_loss is not None and worst[0] > limits.accuracy_loss:
        loss, cell = worst
        yield (f"{loss:.2f} points of accuracy lost{_way(cell)}, limit {limits.accuracy_loss:.2f}")


def values(cells: Sequence[Cell]) -> list[Found]:
    """Every output but the probabilities, beside its cell."""
    return [found for found in _all(cells) if found[1].output != PROBABILITIES]


def probabilities(cells: Sequence[Cell]) -> list[Found]:
    """The probabilities, beside their cells."""
    return [found for found in _all(cells) if found[1].output == PROBABILITIES]


def accuracy_loss(cell: Cell) -> float | None:
    """Percentage points that are lost, negative for a gain; None where no accuracy is known."""
    decisions = cell.decisions
    if decisions is None or decisions.accuracy is None or decisions.reference_accuracy is None:
        return None
    return round(100 * (decisions.reference_accuracy - decisions.accuracy), DIGITS)


def _all(cells: Sequence[Cell]) -> list[Found]:
    return [(cell, output) for cell in cells for output in cell.outputs]


def _largest(found: Sequence[Found], limit: float | None) -> Iterator[str]:
    worst = max(found, key=lambda pair: pair[1].max_abs_diff, default=None)
    if worst is not None and limit is not None and worst[1].max_abs_diff > limit:
        yield f"{worst[1].max_abs_diff:.1e} at {_place(*worst)}, limit {limit:.1e}"


def _faintest(cells: Sequence[Cell], limit: float | None) -> Iterator[str]:
    known = [(cell, one, one.snr_db) for cell, one in _all(cells) if one.snr_db is not None]
    worst = min(known, key=lambda found: found[2], default=None)
    if worst is not None and limit is not None and worst[2] < limit:
        cell, one, snr_db = worst
        yield f"{snr_db:.0f} dB of {one.output} over the noise{_way(cell)}, limit {limit:.0f} dB"


def _place(cell: Cell, found: OutputDifference) -> str:
    return f"{found.output}{list(found.max_abs_at)}{_way(cell)}"


def _way(cell: Cell) -> str:
    """How the model was run, where that is not as it ships."""
    parts = [cell.provider] if cell.provider != "cpu" else []
    if cell.level != SHIPPED:
        parts.append(f"optimization {cell.level}")
    return f" ({', '.join(parts)})" if parts else ""
