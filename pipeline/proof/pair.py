"""`ferry parity A B --data ROWS`: compare any two models on any rows.

Where they part, `explained` names the first diverging layer, on the row that shows it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipeline.config.experiment import GateConfig
from pipeline.errors import ParityError
from pipeline.proof.differences import DecisionRule
from pipeline.proof.gate import SHIPPED
from pipeline.proof.hostile import hostile_feeds
from pipeline.proof.measure import Kept, keep, sample
from pipeline.proof.prove import ParityPlan, Way, asked_rows, prove
from pipeline.proof.rows import Rows
from pipeline.proof.sides import ModelSide, ModuleSide, Side, WeightsSide, check_alike
from pipeline.proof.tracing.divergence import Reference, first_divergence
from pipeline.proof.tracing.values import first_nonfinite
from pipeline.records.parity import PairReport, SideInfo, VariantParity
from serving.errors import FerryError

Array = npt.NDArray[Any]


SAMPLE, ONNX_REFERENCE_ROWS, SEED = 256, 2, 1
NEAR_TIE = 1e-6
"""Two scores of a module nearly tie within this part of the largest one: about eight roundings."""
NOISE = 1e-4
"""How far fp32 answers may be apart by rounding; a wider limit makes no more near-ties."""
ROUNDED_ROWS = 64
"""Rows that a module of PyTorch is asked in float64 as well."""


def compare(
    reference: Side,
    other: Side,
    rows: Rows,
    *,
    limits: GateConfig,
    batch_sizes: Sequence[int],
    hostile: bool = True,
    explain: bool = False,
) -> PairReport:
    """Compare any two sides on any rows, and say where they part if they do.

    The other one is run at every batch size as ONNX Runtime runs it by default. With `explain` the
    layer with the largest difference is named even where every limit is met. Raises InputError for
    sides that do not take and answer the same.
    """
    plan = ParityPlan(
        limits=limits,
        rule=DecisionRule(near=2 * min(limits.max_abs_diff or NOISE, NOISE)),
        batch_sizes=tuple(batch_sizes),
        levels=(SHIPPED,),
        sample=sample(len(rows), SAMPLE, SEED),
        onnx_reference_rows=ONNX_REFERENCE_ROWS,
        hostile=hostile,
    )
    return compare_by_plan(reference, other, rows, plan, explain=explain)


def compare_module(
    reference: ModuleSide, other: Side, rows: Rows, limits: GateConfig, batch_sizes: Sequence[int]
) -> PairReport:
    """Compare what was exported with the module, as `compare` does with two differences.

    Outputs of a module are called anything, so each table of scores decides on a class; rows are
    often drawn, so those that no data set holds are not asked beside them.
    """
    plan = ParityPlan(
        limits=limits,
        rule=DecisionRule(near=NEAR_TIE, every_table=True),
        batch_sizes=tuple(batch_sizes),
        levels=(SHIPPED,),
        sample=sample(len(rows), SAMPLE, SEED),
        onnx_reference_rows=0,
        hostile=False,
    )
    # Which of the tables answers the class is not known, so no accuracy is.
    return compare_by_plan(reference, other, replace(rows, labels=None), plan)


def compare_by_plan(
    reference: Side, other: Side, rows: Rows, plan: ParityPlan, *, explain: bool = False
) -> PairReport:
    """Compare two sides as a plan says; the same as `compare` otherwise."""
    check_alike(reference, other)
    provider = other.provider if isinstance(other, ModelSide) else "cpu"
    way = Way(exporter="file", provider=provider, side=other)
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


def limits_of_pair(limit: float, flips: int | None = 0) -> GateConfig:
    """The gate of two models: one limit of every difference, and how many rows may flip."""
    return GateConfig.only(
        max_abs_diff=limit, max_probability_diff=limit, batch_diff=limit, flips=flips
    )


def refuse_failures(results: Mapping[str, VariantParity], report: Path | None) -> None:
    """Raise ParityError for those that failed, by what they are called, in one line."""
    lines = [failure(name, result) for name, result in results.items() if not result.passed]
    if lines:
        raise ParityError("; ".join(lines) + (f"; see {report}" if report else ""))


def failure(name: str, result: VariantParity) -> str:
    """What is outside of its limit, and where it comes from, in one line."""
    where = list(result.notes)
    if result.first_nonfinite is not None:
        where.insert(0, result.first_nonfinite.describe())
    elif result.first_divergence is not None:
        where.insert(0, f"first divergence at {result.first_divergence.node}")
    return "; ".join([f"{name}: {', '.join(result.failures)}", *where])


def keep_with_progress(reference: Side, rows: Rows) -> Kept:
    """The reference's answers to all rows, with a bar on stderr."""
    with tqdm(total=len(rows), desc=reference.name, unit="row", disable=None, leave=False) as bar:
        return keep(reference, rows, bar.update)


def prove_with_progress(
    reference: Side, kept: Kept, ways: Sequence[Way], plan: ParityPlan, name: str
) -> VariantParity:
    """What `prove` finds, with a bar on stderr."""
    total = asked_rows(ways, plan, len(kept.rows))
    with tqdm(total=total, desc=name, unit="row", disable=None, leave=False) as bar:
        return prove(reference, kept, ways, plan, bar.update)


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
        if isinstance(reference, ModuleSide):
            off = reference.off_the_trace(feeds, np.inf if limit is None else limit)
            notes = [*result.notes, *([off] if off else []), *_lost_by_rounding(reference, rows)]
            result = replace(result, notes=tuple(notes))
            if off:
                return result  # no operator of the model is to blame
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


def _limit(limits: GateConfig, reference: Side, feeds: Mapping[str, Array]) -> float | None:
    """How far off the first output may be; of a signal-to-noise ratio, the noise it allows."""
    if limits.max_abs_diff is not None or limits.min_snr_db is None:
        return limits.max_abs_diff
    first = next(iter(reference.answer(feeds, 1).values())).astype(np.float64)
    return float(10 ** (-limits.min_snr_db / 20) * np.abs(first).max(initial=0.0))


def _lost_by_rounding(module: ModuleSide, rows: Rows) -> Iterator[str]:
    own = module.rounding(rows.slice(0, ROUNDED_ROWS))
    if own:
        yield f"PyTorch itself is {own:.1e} from float64 here"


def _reference(side: Side) -> Reference:
    if isinstance(side, WeightsSide):
        return side.graph
    return side.traced if isinstance(side, ModuleSide) else side.model()
