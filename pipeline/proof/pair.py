"""`ferry parity A B --data ROWS`: compare any two models on any rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config.experiment import GateConfig
from pipeline.errors import ParityError
from pipeline.proof.differences import DecisionRule
from pipeline.proof.explain import explained
from pipeline.proof.gate import SHIPPED
from pipeline.proof.measure import keep, sample
from pipeline.proof.prove import ParityPlan, Way, prove
from pipeline.proof.rows import Rows
from pipeline.proof.sides import ModelSide, ModuleSide, Side, check_alike
from pipeline.records.parity import PairReport, SideInfo, VariantParity
from serving.runtime.classes import Task

SAMPLE, ONNX_REFERENCE_ROWS, SEED = 256, 2, 1
NEAR_TIE = 1e-6
"""Two scores of a module nearly tie within this part of the largest one: about eight roundings."""
NOISE = 1e-4
"""How far fp32 answers may be apart by rounding; a wider limit makes no more near-ties."""


def compare(
    reference: Side,
    other: Side,
    rows: Rows,
    *,
    limits: GateConfig,
    batch_sizes: Sequence[int],
    hostile: bool = True,
    explain: bool = False,
    task: Task | None = None,
) -> PairReport:
    """Compare any two sides on any rows, and say where they part if they do.

    The other one is run at every batch size as ONNX Runtime runs it by default. Hostile rows are
    not asked beside a module, whose rows may be drawn themselves. With `explain` the layer with the
    largest difference is named even where every limit is met. `task` is the user's word of what the
    models tell, where nothing else says it. Raises InputError for sides that do not take and answer
    the same.
    """
    check_alike(reference, other)
    # Rows with classes say that there are some; which output tells them may need the user's word.
    task = task or ("classification" if rows.labels is not None else None)
    rule = DecisionRule(near=2 * min(limits.max_abs_diff or NOISE, NOISE), task=task)
    from_module = isinstance(reference, ModuleSide)
    if from_module:
        # Its outputs are called anything: each table of scores decides on a class, and as nobody
        # knows which of them answers the label, there is no accuracy.
        rule = DecisionRule(near=NEAR_TIE, every_table=True)
        rows = replace(rows, labels=None)
    plan = ParityPlan(
        limits=limits,
        rule=rule,
        batch_sizes=tuple(batch_sizes),
        levels=(SHIPPED,),
        sample=sample(len(rows), SAMPLE, SEED),
        onnx_reference_rows=0 if from_module else ONNX_REFERENCE_ROWS,
        hostile=hostile and not from_module,
    )
    provider = other.session.provider if isinstance(other, ModelSide) else "cpu"
    ways = [Way(exporter="file", provider=provider, side=other)]
    result = prove(reference, keep(reference, rows), ways, plan, other.name)
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
