"""Explain a comparison: the node that makes the difference, or why no node of the graph does."""

from collections.abc import Mapping
from dataclasses import replace
from math import inf

import numpy as np

from pipeline.config.experiment import GateConfig
from pipeline.proof.differences import largest_difference
from pipeline.proof.gate import SHIPPED
from pipeline.proof.hostile import hostile_feeds
from pipeline.proof.rows import Rows
from pipeline.proof.sides import ModelSide, ModuleSide, Side, WeightsSide
from pipeline.proof.tracing.divergence import ENOUGH, NUMBERS, Reference, first_divergence
from pipeline.proof.tracing.values import first_nonfinite
from pipeline.records.parity import Cell, OutputDifference, VariantParity
from serving.errors import FerryError
from serving.runtime.settings import LEVELS
from serving.runtime.tensors import Array

ROUNDED_ROWS = 64
"""Rows that a module of PyTorch is asked in float64 as well."""
OPTIMIZED = "ONNX Runtime's optimization makes the difference, and no node of the file"


def explained(result: VariantParity, reference: Side, other: Side, rows: Rows) -> VariantParity:
    """Add the first node that makes NaN or infinity, else the first that diverges.

    The row is the one with the largest difference, or a hostile one that fails. Where that row
    alone, or without graph optimization, is answered alike, a note says so, and no node is blamed.
    Where the model cannot be looked into, or nothing differs, the result stays as it is.
    """
    feeds = _diverging(result, rows)
    if _only_kernels(result):
        return replace(result, notes=(*result.notes, OPTIMIZED))
    if not isinstance(other, ModelSide) or feeds is None:
        return result
    model = other.model()
    whole = other.session.whole(feeds)
    try:
        broken = first_nonfinite(model, whole)
        if broken is not None:
            return replace(result, first_nonfinite=broken)
        limit = _limit(result.limits, reference, feeds)
        innocent = None if result.passed else _innocent(result, reference, other, feeds, limit)
        if innocent:
            return replace(result, notes=(*result.notes, innocent))
        if isinstance(reference, ModuleSide):
            off = reference.off_the_trace(feeds, inf if limit is None else limit)
            lost = max(reference.rounding(rows.slice(0, ROUNDED_ROWS)).values(), default=0.0)
            rounding = f"PyTorch itself is {lost:.1e} from float64 here" if lost else None
            notes = (*result.notes, *filter(None, (off, rounding)))
            result = replace(result, notes=notes)
            if off:
                return result  # no operator of the model is to blame
        found = first_divergence(
            _reference(reference), model, whole, limit, provider=other.session.provider
        )
    except FerryError:
        return result  # the verdict stands without its explanation
    return replace(result, first_divergence=found)


def _diverging(result: VariantParity, rows: Rows) -> Mapping[str, Array] | None:
    """One row of each input that shows the difference."""
    if hostile := _only_hostile(result):
        return hostile_feeds(rows)[hostile]
    place = _worst_place(result)
    if not place and not _only_batches(result):
        return None
    number = np.array([place[0] if place else 0])
    return {name: np.array(array) for name, array in rows.take(number).items()}


def _worst_place(result: VariantParity) -> tuple[int, ...]:
    """Where the largest difference is, in parts of its scale where the gate looks at those."""
    outputs = _outputs(result)
    if result.limits.max_scaled_diff is not None:
        return max(outputs, key=lambda one: (one.nonfinite, one.max_scaled_diff)).max_scaled_at
    # A label beside probabilities may be the same everywhere.
    worst = max(outputs, key=lambda one: (bool(one.max_abs_at), one.max_abs_diff))
    return result.max_abs_at or worst.max_abs_at


def _outputs(result: VariantParity) -> list[OutputDifference]:
    """Of every way that ships."""
    return [one for cell in result.run if cell.ships for one in cell.outputs]


def _only_hostile(result: VariantParity) -> str | None:
    """The name of the first hostile row that fails, where nothing else does."""
    only = all("hostile row" in failure for failure in result.failures)
    return next((row.name for row in result.hostile if only and not row.passed), None)


def _only_batches(result: VariantParity) -> bool:
    """Whether nothing is outside of its limit but the difference between batches."""
    absolute, scaled = result.limits.batch_diff, result.limits.max_scaled_diff
    apart = any(
        (absolute is not None and one.max_abs_diff > absolute)
        or (scaled is not None and one.max_scaled_diff > scaled)
        for one in result.batches
    )
    within = scaled is None or all(one.max_scaled_diff <= scaled for one in _outputs(result))
    return len(result.failures) == 1 and apart and within


def _only_kernels(result: VariantParity) -> bool:
    """Whether optimized kernels answer otherwise than the graph, and nothing else fails."""
    measured, limit = result.kernel_snr_db, result.limits.min_kernel_snr_db
    below = measured is not None and limit is not None and measured < limit
    return len(result.failures) == 1 and below


def _innocent(
    result: VariantParity,
    reference: Side,
    other: ModelSide,
    feeds: Mapping[str, Array],
    limit: float | None,
) -> str | None:
    """In words, why no node of the graph is to blame for a failure; None where one may be."""
    worst = max((cell for cell in result.run if cell.ships), key=_largest)
    (level,) = [one for one in LEVELS if one == worst.level]
    as_run = other if level == SHIPPED else other.at(level)
    alone = _apart(reference, as_run, feeds)
    alike = alone <= ENOUGH * _largest(worst) > 0 or _only_batches(result)
    if alike and not _only_hostile(result):
        return "alone, this row is answered alike: the answer depends on its batch"
    pairs: dict[str, tuple[Side, Side]] = {other.name: (reference, other.at("none"))}
    if isinstance(reference, ModelSide):
        pairs[reference.name] = (reference.at("none"), as_run)
    for name, pair in pairs.items():
        if _apart(*pair, feeds) <= max(ENOUGH * alone, limit or 0.0) < alone:
            return f"without graph optimization {name} answers this row alike: {OPTIMIZED}"
    return None


def _largest(cell: Cell) -> float:
    return max(one.max_abs_diff for one in cell.outputs)


def _apart(reference: Side, other: Side, feeds: Mapping[str, Array]) -> float:
    """How far two sides' answers to one row are apart, over all outputs; infinitely for NaN."""
    wanted, found = reference.answer(feeds, 1), other.answer(feeds, 1)
    for one in wanted.values():
        if one.dtype.kind == "f" and not np.isfinite(one).all():
            return inf
    return max(
        largest_difference(one, found[name]) if one.shape == found[name].shape else inf
        for name, one in wanted.items()
    )


def _reference(side: Side) -> Reference:
    if isinstance(side, WeightsSide):
        return side.graph
    return side.traced if isinstance(side, ModuleSide) else side.model()


def _limit(limits: GateConfig, reference: Side, feeds: Mapping[str, Array]) -> float | None:
    """How far off the first output may be; of a signal-to-noise ratio, the noise it allows."""
    part = limits.max_scaled_diff
    if part is None and limits.min_snr_db is not None:
        part = 10 ** (-limits.min_snr_db / 20)
    if limits.max_abs_diff is not None or part is None:
        return limits.max_abs_diff
    first = next(iter(reference.answer(feeds, 1).values()))
    if first.dtype.kind not in NUMBERS:
        return part
    return float(part * np.abs(first.astype(np.float64)).max(initial=0.0))
