"""How much worse a quantized model answers than the model it was made of, on the same rows.

Both answer every row, so the difference is paired: only rows that one of them gets right and the
other wrong say anything about it, and the interval comes from these.

Hold a try against its two budgets, and choose the best of those inside both.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.proof.differences import Differences, predicted, scores_of, wilson
from pipeline.proof.rows import Rows
from pipeline.records.quantize import Budget, Quality, Try
from serving.measuring.pairing import PairedRatio
from serving.runtime.session import Session
from serving.runtime.tensors import answer_in_batches, as_fed

Array = npt.NDArray[Any]
Answers = Mapping[str, Array]
BATCH = 64
Z = 1.959964
"""Of a normal distribution, 95 % of which lies less than this many deviations from its mean."""
ERROR = "error"
"""The output of a reconstruction that holds the error of each row."""


def answers(session: Session, rows: Rows, batch: int | None = None) -> dict[str, Array]:
    """All outputs for all rows, by name; `batch` is the one batch size that the model takes."""

    def call(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return session.run({name: as_fed(array) for name, array in feeds.items()})

    return answer_in_batches(call, rows.inputs, BATCH, name="the model", fixed=batch)


def quality(wanted: Answers, found: Answers, labels: npt.NDArray[np.int64] | None) -> Quality:
    """Compare the answers of fp32, `wanted`, with those of a variant, `found`.

    The accuracy where classes are answered and `labels` (int64 [rows]) are known; how often both
    decide alike where they are not; the mean error of reconstructions; and else the mean difference
    of the first output of floats, as a part of its mean size. What is not finite has no quality.
    """
    rows = len(next(iter(wanted.values())))
    if not all(np.isfinite(array).all() for array in found.values() if array.dtype.kind == "f"):
        return _broken(rows)
    before, after = (scores_of(one, labelled=True) for one in (wanted, found))
    if before is not None and after is not None:
        known = None if labels is None else labels[:rows]
        return _decided(predicted(before), predicted(after), known)
    if ERROR in wanted and wanted[ERROR].ndim == 1:
        errors, others = (array[ERROR].astype(np.float64) for array in (wanted, found))
        return _measured("mean error", errors, others - errors)
    name = next((name for name, array in wanted.items() if array.dtype.kind == "f"), None)
    if name is None:
        same = _same(wanted, found)
        return _decided(np.ones(rows, np.int64), same.astype(np.int64), None)
    left, right = (array[name].astype(np.float64).reshape(rows, -1) for array in (wanted, found))
    return _measured("difference", np.abs(left).mean(axis=1), np.abs(right - left).mean(axis=1))


def faintest(wanted: Answers, found: Answers) -> float | None:
    """The lowest signal-to-noise ratio of any output of numbers, in dB; None where all are exact.

    As parity measures it, which holds a variant to it afterwards.
    """
    ratios = []
    for name, array in wanted.items():
        differences = Differences(name)
        differences.add(array, found[name], np.arange(len(array)))
        ratios.append(differences.report().snr_db)
    return min((ratio for ratio in ratios if ratio is not None), default=None)


def paired_loss(lost: int, gained: int, rows: int) -> tuple[float, float]:
    """The 95 % interval of the accuracy that is lost, a part of `rows`, from paired answers.

    `lost` rows are right before and wrong after, `gained` the other way round. Wald's interval with
    one row added to each of the two counts: Bonett and Price, "Adjusted Wald Confidence Interval
    for a Difference of Binomial Proportions Based on Paired Data", 2012.
    """
    left, right = (lost + 1) / (rows + 2), (gained + 1) / (rows + 2)
    width = Z * math.sqrt((left + right - (left - right) ** 2) / (rows + 2))
    return max(left - right - width, -1.0), min(left - right + width, 1.0)


def _decided(
    before: npt.NDArray[np.int64],
    after: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64] | None,
) -> Quality:
    rows, flips = len(before), int((before != after).sum())
    if labels is None:
        interval = wilson(flips, rows)
        return Quality(
            measure="agreement",
            rows=rows,
            reference=1.0,
            value=1 - flips / rows,
            loss=100 * flips / rows,
            low=100 * interval.low,
            high=100 * interval.high,
            flips=flips,
        )
    right, still = before == labels, after == labels
    lost, gained = int((right & ~still).sum()), int((~right & still).sum())
    low, high = paired_loss(lost, gained, rows)
    return Quality(
        measure="accuracy",
        rows=rows,
        reference=float(right.mean()),
        value=float(still.mean()),
        loss=100 * (lost - gained) / rows,
        low=100 * low,
        high=100 * high,
        flips=flips,
    )


def _measured(
    measure: str, sizes: npt.NDArray[np.float64], change: npt.NDArray[np.float64]
) -> Quality:
    """The mean change as a part of the mean size, with a normal interval over the rows' changes."""
    mean = max(float(sizes.mean()), float(np.finfo(np.float32).tiny))
    middle = float(change.mean())
    spread = Z * float(change.std()) / math.sqrt(len(change))
    return Quality(
        measure=measure,
        rows=len(change),
        reference=float(sizes.mean()) if measure == "mean error" else 0.0,
        value=float(sizes.mean()) + middle if measure == "mean error" else middle / mean,
        loss=100 * middle / mean,
        low=100 * (middle - spread) / mean,
        high=100 * (middle + spread) / mean,
        flips=None,
    )


def _broken(rows: int) -> Quality:
    return Quality(
        measure="not finite",
        rows=rows,
        reference=None,
        value=None,
        loss=None,
        low=None,
        high=None,
        flips=None,
    )


def _same(wanted: Answers, found: Answers) -> npt.NDArray[np.bool_]:
    """Whether each row has the very same answers."""
    alike = np.ones(len(next(iter(wanted.values()))), np.bool_)
    for name, array in wanted.items():
        alike &= (array == found[name]).reshape(len(array), -1).all(axis=1)
    return alike


Goal = Literal["speed", "size"]
DECIBELS = 1.0
"""Of margin to parity's limit, which is held on other rows."""
MARGIN = 0.02
"""How much better a later recipe must be to be preferred: less is noise."""


def too_inaccurate(judged: Quality, budget: Budget) -> Iterator[str]:
    """Why the answers are outside the budget, if they are: the loss as it was measured counts."""
    counts = judged.measure in ("accuracy", "agreement")
    limit = budget.accuracy_loss if counts else budget.error_increase
    if judged.loss is None:
        yield "answers what is no number"
    elif judged.loss > limit:
        unit = "points" if counts else "%"
        interval = f"{judged.low:.2f} to {judged.high:.2f}"
        yield f"loses {judged.loss:.2f} {unit} of {judged.measure} ({interval}), {limit:g} allowed"


def too_noisy(snr_db: float | None, limit: float | None) -> Iterator[str]:
    """Why parity would not let it pass, on other rows than these: numbers that are too far off.

    Decisions alone do not tell: on processors without VNNI products of u8 and s8 overflow.
    """
    if snr_db is not None and limit is not None and snr_db < limit + DECIBELS:
        yield f"{snr_db:.0f} dB of signal over the noise, parity asks {limit:.0f} dB"


def too_slow_or_large(
    speedup: Mapping[str, PairedRatio], size_ratio: float, budget: Budget
) -> Iterator[str]:
    """Why speed or size are outside: the lower end of the speedup's interval counts."""
    for size, ratio in speedup.items():
        if ratio.low < budget.min_speedup:
            interval = f"{ratio.low:.2f} to {ratio.high:.2f}"
            yield (
                f"{ratio.median:.2f} times as fast as fp32 at batch {size} ({interval}), "
                f"{budget.min_speedup:g} asked"
            )
    if size_ratio >= 1:
        yield f"{size_ratio:.2f} times the size of fp32"


def best_of(tries: Sequence[Try], goal: Goal) -> Try | None:
    """The fastest or smallest of those inside both budgets, the first of nearly equal ones."""
    best: Try | None = None
    for one in tries:
        if one.inside and (best is None or _gain(one, best, goal) > 1 + MARGIN):
            best = one
    return best


def reason_of(best: Try | None, tries: Sequence[Try], goal: Goal) -> str:
    """Why a recipe was kept, or why none was, with the figures."""
    if best:
        inside = sum(one.inside for one in tries)
        word = "fastest" if goal == "speed" else "smallest"
        which = f"the {word} of {inside} recipes" if inside > 1 else "the one recipe"
        return (
            f"{best.recipe} is {which} inside both budgets, of {len(tries)} tried: {describe(best)}"
        )
    if not tries:
        return "no recipe fits the model, so fp32 ships"
    nearest = max(tries, key=lambda one: (one.accurate + one.fast, one.speed))
    return (
        f"none of {len(tries)} recipes is inside both budgets, so fp32 ships; nearest is "
        f"{nearest.recipe}: {nearest.verdict}"
    )


def describe(one: Try) -> str:
    """The figures of a try on one line."""
    parts = []
    if one.quality and one.quality.loss is not None:
        unit = "points" if one.quality.flips is not None else "%"
        parts.append(f"{one.quality.loss:.2f} {unit} of {one.quality.measure} lost")
    if one.size_ratio is not None:
        parts.append(f"{one.size_ratio:.2f} of the size")
    for size, ratio in one.speedup.items():
        parts.append(f"{ratio.median:.2f} times as fast at batch {size}")
    return ", ".join(parts) or one.verdict


def _gain(one: Try, other: Try, goal: Goal) -> float:
    if goal == "speed":
        return one.speed / other.speed
    return (other.bytes or 0) / (one.bytes or 1)
