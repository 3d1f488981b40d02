"""`ferry parity A B --data ROWS`: hold any two models against each other, on any rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from pipeline.errors import ParityError
from pipeline.proof.batches import sample
from pipeline.proof.compare import Plan, Way, asked_rows, prove
from pipeline.proof.explain import explained
from pipeline.proof.gate import SHIPPED
from pipeline.proof.measure import Kept, keep
from pipeline.proof.rows import Rows
from pipeline.proof.sides import ModelSide, Side, check_alike
from pipeline.records.parity import Limits, PairReport, SideInfo, VariantParity

__all__ = ["compare", "keep_with_progress", "prove_with_progress", "refuse_failures"]

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
    told = []
    for name, result in results.items():
        if not result.passed:
            where = ""
            if result.first_nonfinite is not None:
                where = f"; {result.first_nonfinite.told()}"
            elif result.first_divergence is not None:
                where = f"; first divergence at {result.first_divergence.node}"
            told.append(f"{name}: {', '.join(result.failures)}{where}")
    if told:
        raise ParityError("; ".join(told) + (f"; see {report}" if report else ""))


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
