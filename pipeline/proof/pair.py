"""`ferry parity A B --data ROWS`: compare any two models on any rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.config.experiment import GateConfig
from pipeline.errors import ParityError
from pipeline.proof.differences import DecisionRule, largest_difference
from pipeline.proof.explain import explained
from pipeline.proof.gate import SHIPPED
from pipeline.proof.measure import keep, sample, spread
from pipeline.proof.prove import ParityPlan, Way, prove
from pipeline.proof.rows import Rows
from pipeline.proof.sides import ModelSide, ModuleSide, Side, check_alike
from pipeline.proof.variation import MOST_NOISE, NOISES
from pipeline.records.parity import PairReport, SideInfo, VariantParity
from serving.runtime.classes import Task
from serving.runtime.tensors import Array

SAMPLE, ONNX_REFERENCE_ROWS, SEED = 256, 2, 1
SCALED_LIMIT = 1e-4
"""How far apart two models may be where no limit is given, in parts of each output's scale."""
KERNEL_SNR_DB = 40.0
"""Least signal-to-noise ratio of optimized kernels: int8 that overflows has 20 to 30, other int8
70 and more."""
NOISE_ROWS = 64
"""Rows of which the reference's own noise is measured."""


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
    models tell, where nothing else says it. What fails is judged again with the noise that the
    reference itself has. Raises InputError for sides that do not take and answer the same.
    """
    check_alike(reference, other)
    from_module = isinstance(reference, ModuleSide)
    if from_module:
        # Its outputs are called anything: each table of scores decides on a class, and as nobody
        # knows which of them answers the label, there is no accuracy.
        rows = replace(rows, labels=None)
    # Rows with classes say that there are some; which output tells them may need the user's word.
    task = task or rows.task
    rule = DecisionRule(near=None, every_table=from_module, task=task)
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
    kept = keep(reference, rows, rule)
    result = prove(reference, kept, ways, plan, other.name)
    if not result.passed and _may_be_noise(result):
        noisy = kept.with_noise(noise_of(reference, rows.slice(0, NOISE_ROWS)))
        if noisy.noise != kept.noise:
            result = prove(reference, noisy, ways, plan, other.name)
    if explain or not result.passed:
        result = explained(result, reference, other, rows)
    return PairReport(
        reference=SideInfo(name=reference.name, sha256=reference.sha256),
        other=SideInfo(name=other.name, sha256=other.sha256),
        data=rows.name,
        rows=len(rows),
        shared=other.session.given if isinstance(other, ModelSide) else {},
        passed=result.passed,
        result=result,
    )


def _may_be_noise(result: VariantParity) -> bool:
    """Whether a failure can be what the reference's noise makes: it may widen scales so far."""
    if result.limits.max_scaled_diff is not None:
        most = NOISES * MOST_NOISE * result.limits.max_scaled_diff
        return not result.nonfinite and result.max_scaled_diff <= most
    limit = result.limits.max_abs_diff
    return not result.nonfinite and (limit is None or result.max_abs_diff <= limit)


def noise_of(side: Side, feeds: Mapping[str, Array]) -> dict[str, float]:
    """How far right answers to some rows are apart, by output: what rounding does to this model.

    Of a module it is the distance from float64, or a rounding of its weights' dtype where it does
    not run in that. An ONNX model and trained weights are asked in other orders of summation: one
    by one, all at once, and without optimization.
    """
    count = len(next(iter(feeds.values())))
    if isinstance(side, ModuleSide):
        return side.rounding(feeds) or {
            name: side.grain * largest_difference(one, np.zeros_like(one))
            for name, one in side.answer(feeds, count).items()
        }
    found = [side.answer(feeds, size) for size in (1, count)]
    if isinstance(side, ModelSide):
        found.append(side.at("none").answer(feeds, count))
    return spread(found)


def limits_of_pair(limit: float | None, flips: int | None = 0) -> GateConfig:
    """The gate of two models: the largest difference of any output, and how many rows may flip.

    Without a limit it is `SCALED_LIMIT` of each output's own scale.
    """
    if limit is None:
        return GateConfig.only(
            max_scaled_diff=SCALED_LIMIT, min_kernel_snr_db=KERNEL_SNR_DB, flips=flips
        )
    return GateConfig.only(
        max_abs_diff=limit,
        max_probability_diff=limit,
        batch_diff=limit,
        min_kernel_snr_db=KERNEL_SNR_DB,
        flips=flips,
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
