"""Say where a model leaves its reference: the first diverging layer, on the row that shows it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.divergence import Reference, first_divergence, first_nonfinite
from pipeline.errors import FerryError
from pipeline.proof.hostile import hostile_feeds
from pipeline.proof.rows import Rows
from pipeline.proof.sides import ModelSide, Side, WeightsSide
from pipeline.records.parity import Limits, VariantParity

__all__ = ["explained"]

Array = npt.NDArray[Any]


def explained(result: VariantParity, reference: Side, other: Side, rows: Rows) -> VariantParity:
    """Add the first node that makes NaN or infinity, else the first that diverges.

    The row is the one with the largest difference, or a hostile one that fails. Where the model
    cannot be looked into, or nothing differs, the result stays as it is.
    """
    feeds = _telling(result, rows)
    if not isinstance(other, ModelSide) or feeds is None:
        return result
    model = other.model()
    try:
        broken = first_nonfinite(model, feeds)
        if broken is not None:
            return replace(result, first_nonfinite=broken)
        limit = _limit(result.limits, reference, feeds)
        found = first_divergence(
            _reference(reference), model, feeds, limit, provider=other.provider
        )
    except FerryError:
        return result  # the verdict stands without its explanation
    return replace(result, first_divergence=found)


def _telling(result: VariantParity, rows: Rows) -> Mapping[str, Array] | None:
    """One row of each input that shows the difference."""
    failing = [row.name for row in result.hostile if not row.passed]
    only_hostile = failing and all("hostile row" in failure for failure in result.failures)
    if result.max_abs_at and not only_hostile:
        number = np.array([result.max_abs_at[0]])
        return {name: np.array(array) for name, array in rows.take(number).items()}
    return hostile_feeds(rows.slice(0, 1))[failing[0]] if failing else None


def _limit(limits: Limits, reference: Side, feeds: Mapping[str, Array]) -> float | None:
    """How far off the first output may be; of a signal-to-noise ratio, the noise it allows."""
    if limits.max_abs_diff is not None or limits.min_snr_db is None:
        return limits.max_abs_diff
    first = next(iter(reference.answer(feeds, 1).values())).astype(np.float64)
    return float(10 ** (-limits.min_snr_db / 20) * np.abs(first).max(initial=0.0))


def _reference(side: Side) -> Reference:
    if isinstance(side, WeightsSide):
        return side.graph
    return side.model() if isinstance(side, ModelSide) else None
