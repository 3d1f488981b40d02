"""Hold what was measured against the limits of a gate, and say in words what is outside.

Sum up what was found of one model: the worst of every quantity, and whether the gate is met.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.records.parity import (
    BatchDifference,
    Cell,
    HostileRow,
    Limits,
    Opinion,
    OutputDifference,
    SkippedCell,
    VariantParity,
)
from serving.runtime.settings import Level
from serving.runtime.tensors import PROBABILITIES

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that was found of one model."""

    cells: tuple[Cell | SkippedCell, ...]
    counted: tuple[Cell, ...]
    """Those of what ships."""
    rows: int
    """Of the whole set."""
    batch_sizes: tuple[int, ...]
    batches: tuple[BatchDifference, ...]
    hostile: tuple[HostileRow, ...]
    zero_rows: str
    zero_rows_sane: bool
    opinion: Opinion
    sha256: str


def summarize(found: Evidence, limits: Limits) -> VariantParity:
    """The worst of every quantity over the cells that count."""
    cells = found.counted
    _, worst = max(values(cells) or probabilities(cells), key=lambda pair: pair[1].max_abs_diff)
    first = [cell.outputs[0] for cell in cells]
    every = [one for cell in cells for one in cell.outputs]
    broken = max(every, key=lambda one: one.nonfinite)
    decided = [cell.decisions for cell in cells if cell.decisions is not None]
    flips = max(decided, key=lambda one: (one.flips, one.near_ties), default=None)
    whole = [cell for cell in cells if cell.rows == found.rows and accuracy_loss(cell) is not None]
    least = max(whole, key=lambda cell: accuracy_loss(cell) or 0.0, default=None)
    decisions = least.decisions if least is not None else None
    # What fails as it ships is told; other ways only where that does not.
    plain = [cell for cell in cells if cell.level == SHIPPED and cell.provider == "cpu"]
    message = list(failures(plain, found.rows, limits)) or list(failures(cells, found.rows, limits))
    message += _others(found, limits)
    return VariantParity(
        passed=not message,
        accuracy=decisions.accuracy if decisions else None,
        flips=flips.flips if flips else None,
        near_ties=flips.near_ties if flips else None,
        flip_rate=flips.flip_rate if flips else None,
        accuracy_loss=accuracy_loss(least) if least is not None else None,
        mcnemar_p=decisions.mcnemar.p_value if decisions and decisions.mcnemar else None,
        max_abs_diff=worst.max_abs_diff,
        max_abs_output=broken.output if broken.nonfinite else worst.output,
        max_abs_at=broken.max_abs_at if broken.nonfinite else worst.max_abs_at,
        max_rel_diff=max(one.max_rel_diff for one in every),
        max_probability_diff=max(
            (one.max_abs_diff for _, one in probabilities(cells)), default=None
        ),
        mean_abs_diff=max(one.mean_abs_diff for one in first),
        snr_db=min((one.snr_db for one in every if one.snr_db is not None), default=None),
        nonfinite=broken.nonfinite,
        batch_diff=max(batch.max_abs_diff for batch in found.batches),
        batch_sizes=found.batch_sizes,
        limits=limits,
        failures=tuple(message),
        first_divergence=None,
        first_nonfinite=None,
        sha256=found.sha256,
        zero_rows=found.zero_rows,
        hostile_max_abs_diff=max((row.max_abs_diff or 0.0 for row in found.hostile), default=0.0),
        cells=found.cells,
        batches=found.batches,
        hostile=found.hostile,
        opinion=found.opinion,
    )


def _others(found: Evidence, limits: Limits) -> Iterator[str]:
    """What fails beside the cells."""
    batch = max(found.batches, key=lambda one: one.max_abs_diff)
    if batch.max_abs_diff > limits.batch_diff:
        yield f"{batch.max_abs_diff:.1e} {batch.where}, limit {limits.batch_diff:.1e}"
    failing = [row for row in found.hostile if not row.passed]
    beyond = [row for row in failing if not row.message]
    if beyond:
        worst = max(beyond, key=lambda row: row.max_abs_diff or 0.0)
        limit = "" if worst.limit is None else f", limit {worst.limit:.1e}"
        yield f"{worst.max_abs_diff:.1e} at the hostile row {worst.name!r}{limit}"
    for row in failing:
        if row.message:
            yield f"hostile row {row.name!r}: {row.message}"
    if not found.zero_rows_sane:
        yield f"a batch without rows: {found.zero_rows}"
