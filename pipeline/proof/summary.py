"""Sum up what was found of one model: the worst of every quantity, and whether the gate is met."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.proof.gate import SHIPPED, accuracy_loss, failures, probabilities, values
from pipeline.records.parity import (
    BatchDifference,
    Cell,
    HostileRow,
    Limits,
    Opinion,
    SkippedCell,
    VariantParity,
)

__all__ = ["Evidence", "summarize"]


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
    told = list(failures(plain, found.rows, limits)) or list(failures(cells, found.rows, limits))
    told += _others(found, limits)
    return VariantParity(
        passed=not told,
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
        failures=tuple(told),
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
    beyond = [row for row in failing if not row.told]
    if beyond:
        worst = max(beyond, key=lambda row: row.max_abs_diff or 0.0)
        limit = "" if worst.limit is None else f", limit {worst.limit:.1e}"
        yield f"{worst.max_abs_diff:.1e} at the hostile row {worst.name!r}{limit}"
    for row in failing:
        if row.told:
            yield f"hostile row {row.name!r}: {row.told}"
    if not found.zero_rows_sane:
        yield f"a batch without rows: {found.zero_rows}"
