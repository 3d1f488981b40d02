"""`ferry parity A B --data ROWS`: hold any two models against each other, on any rows.

Say where a model leaves its reference: the first diverging layer, on the row that shows it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipeline.errors import ParityError
from pipeline.proof.compare import Plan, Way, asked_rows, prove
from pipeline.proof.gate import SHIPPED
from pipeline.proof.hostile import hostile_feeds
from pipeline.proof.measure import Kept, keep, sample
from pipeline.proof.rows import Rows
from pipeline.proof.sides import ModelSide, Side, WeightsSide, check_alike
from pipeline.proof.tracing.divergence import Reference, first_divergence, first_nonfinite
from pipeline.records.parity import Limits, PairReport, SideInfo, VariantParity
from serving.errors import FerryError

Array = npt.NDArray[Any]


def explained(result: VariantParity, reference: Side, other: Side, rows: Rows) -> VariantParity:
    """Add the first node that makes NaN or infinity, else the first that diverges.

    The row is the one with the largest difference, or a hostile one that fails. Where the model
    cannot be looked into, or nothing differs, the result stays as it is.
    """
    feeds = _diverging(result, rows)
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


def _diverging(result: VariantParity, rows: Rows) -> Mapping[str, Array] | None:
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


SAMPLE, OPINION, SEED = 256, 2, 1
NOISE = 1e-4
"""How far fp32 answers may be apart by rounding; a wider limit makes no more near-ties."""


def compare(
    reference: Side,
    other: Side,
    rows: Rows,
    *,
    limits: Limits,
    batch_sizes: Sequence[int],
    hostile: bool = True,
    explain: bool = False,
) -> PairReport:
    """Compare any two sides on any rows, and say where they part if they do.

    The other one is run at every batch size as ONNX Runtime runs it by default. With `explain` the
    layer with the largest difference is named even where every limit is met. Raises InputError for
    sides that do not take and answer the same.
    """
    check_alike(reference, other)
    plan = Plan(
        limits=limits,
        near=2 * min(limits.max_abs_diff or NOISE, NOISE),
        batch_sizes=tuple(batch_sizes),
        levels=(SHIPPED,),
        sample=sample(len(rows), SAMPLE, SEED),
        opinion_rows=OPINION,
        hostile=hostile,
    )
    provider = other.provider if isinstance(other, ModelSide) else "cpu"
    way = Way(exporter="file", provider=provider, side=other, ships=True)
    result = prove_with_progress(
        reference, keep_with_progress(reference, rows), [way], plan, other.name
    )
    if explain or not result.passed:
        result = explained(result, reference, other, rows)
    return PairReport(
        reference=SideInfo(name=reference.name, sha256=reference.sha256),
        other=SideInfo(name=other.name, sha256=other.sha256),
        data=rows.name,
        rows=len(rows),
        passed=result.passed,
        result=result,
    )


def refuse_failures(results: Mapping[str, VariantParity], report: Path | None) -> None:
    """Raise ParityError for those that failed, by what they are called, in one line."""
    message = []
    for name, result in results.items():
        if not result.passed:
            where = ""
            if result.first_nonfinite is not None:
                where = f"; {result.first_nonfinite.describe()}"
            elif result.first_divergence is not None:
                where = f"; first divergence at {result.first_divergence.node}"
            message.append(f"{name}: {', '.join(result.failures)}{where}")
    if message:
        raise ParityError("; ".join(message) + (f"; see {report}" if report else ""))


def keep_with_progress(reference: Side, rows: Rows) -> Kept:
    """The reference's answers to all rows, with a bar on stderr."""
    with tqdm(total=len(rows), desc=reference.name, unit="row", disable=None, leave=False) as bar:
        return keep(reference, rows, bar.update)


def prove_with_progress(
    reference: Side, kept: Kept, ways: Sequence[Way], plan: Plan, name: str
) -> VariantParity:
    """What `compare.prove` finds, with a bar on stderr."""
    total = asked_rows(ways, plan, len(kept.rows))
    with tqdm(total=total, desc=name, unit="row", disable=None, leave=False) as bar:
        return prove(reference, kept, ways, plan, bar.update)
