"""How much worse than fp32 a variant answers, and whether that is inside its budget.

Both answer the same rows, so the loss is paired: only rows that one of them gets right and the
other wrong say anything about it, and the interval comes from these. Where no class is known,
differences are held against how much each output varies by itself.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.proof.differences import decided_by, known_scores, wilson
from pipeline.proof.rows import squared_errors, task_of
from pipeline.proof.variation import FAINTEST, Floats, in_pieces, is_exact, variation_of
from pipeline.records.quantize import Budget, Quality
from serving.runtime.classes import Task
from serving.runtime.tensors import Array

Answers = Mapping[str, Array]
Z = 1.959964
"""Of a normal distribution, 95 % of which lies less than this many deviations from its mean."""
ERROR = "error"
"""The output of a reconstruction that holds the error of each row."""
PRECISION, MOST_ROWS = 0.05, 10**7
"""Of a number of rows that would settle a loss, and the most that are worth a word."""


def compare_answers(
    wanted: Answers,
    found: Answers,
    labels: npt.NDArray[Any] | None,
    task: Task | None = None,
) -> Quality:
    """Compare the answers of fp32, `wanted`, with those of a variant, `found`.

    The accuracy where classes are answered and `labels`, as in `Rows`, are known; how often both
    decide alike where they are not, and where whole numbers or texts are answered; the mean error
    where `labels` are targets, and of reconstructions; and else how far the worst column of all
    outputs is off, as a part of how much it varies. What is not finite has no quality.
    """
    rows = len(next(iter(wanted.values())))
    if any(_breaks(wanted[name], array) for name, array in found.items()):
        return Quality(measure="not finite", rows=rows)
    task = task or task_of(labels)
    before, after = (decided_by(one, task) for one in (wanted, found))
    noise = _noise(wanted, found, known_scores(wanted, task))
    exact = [name for name, array in wanted.items() if is_exact(array.dtype)]
    errors, others = _row_errors(wanted, labels), _row_errors(found, labels)
    if before is not None and after is not None:
        quality = _decided(before.classes, after.classes, before.known(labels))
    elif errors is not None and others is not None:
        quality = _mean_error(errors, others - errors)
    elif exact:
        same = _same(wanted, found, exact)
        quality = _decided(np.ones(rows, np.int64), same.astype(np.int64), None)
    else:
        quality = _off(noise.parts)
    ratio = float(noise.parts.mean())
    return replace(
        quality, snr_db=-10 * math.log10(ratio) if ratio else None, noisiest=noise.column
    )


def _row_errors(answers: Answers, labels: npt.NDArray[Any] | None) -> Floats | None:
    """The mean squared error of each row, float64 [rows]: of targets in deviations, of pixels.

    None where no error is known.
    """
    squares = squared_errors(answers, labels)
    if squares is not None and labels is not None:
        found: Floats = (squares / np.maximum(labels.var(axis=0), FAINTEST)).mean(axis=1)
        return found
    if ERROR in answers and answers[ERROR].ndim == 1:
        return answers[ERROR].astype(np.float64)
    return None


@dataclass(frozen=True, slots=True)
class _Noise:
    """The noise of the worst column of all outputs."""

    parts: Floats
    """Its power in parts of the column's variance, [rows]."""
    column: str = ""


def _noise(wanted: Answers, found: Answers, scores: Collection[str]) -> _Noise:
    """The noisiest column; the outputs named as `scores` are one column each."""
    worst = _Noise(np.zeros(len(next(iter(wanted.values())))))
    for name, array in wanted.items():
        if is_exact(array.dtype) or not array.size:
            continue
        variation = variation_of([array], together=name in scores)
        pieces = in_pieces(len(array), array.shape[1:])
        errors = (_errors(array[piece], found[name][piece]) for piece in pieces)
        parts = np.concatenate([variation.noise_parts(one) for one in errors])
        column = int(parts.mean(axis=0).argmax())
        if parts[:, column].mean() > worst.parts.mean():
            worst = _Noise(parts[:, column], f"{name}{variation.column(column)}")
    return worst


def _errors(wanted: Array, found: Array) -> Floats:
    """How far values are apart; where neither is a finite number, they are alike."""
    left, right = wanted.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinities on both sides
        return np.nan_to_num(right - left)


def _breaks(wanted: Array, found: Array) -> bool:
    """Whether what is no finite number on one side is anything else on the other."""
    if found.dtype.kind != "f":
        return False
    broken = ~(np.isfinite(wanted) & np.isfinite(found))
    return not np.array_equal(wanted[broken], found[broken], equal_nan=True)


def paired_loss(lost: float, gained: float, rows: int) -> tuple[float, float]:
    """The 95 % interval of the accuracy that is lost, a part of `rows`, from paired answers.

    `lost` rows are right before and wrong after, `gained` the other way round. Wald's interval with
    one row added to each of the two counts: Bonett and Price, "Adjusted Wald Confidence Interval
    for a Difference of Binomial Proportions Based on Paired Data", 2012.
    """
    left, right = (lost + 1) / (rows + 2), (gained + 1) / (rows + 2)
    width = Z * math.sqrt((left + right - (left - right) ** 2) / (rows + 2))
    return max(left - right - width, -1.0), min(left - right + width, 1.0)


def too_inaccurate(judged: Quality, budget: Budget) -> Iterator[str]:
    """Why the answers are outside the budget, if they are: the loss as it was measured counts."""
    limit = _limit(judged, budget)
    if judged.loss is None:
        yield "answers what is no number"
    elif judged.loss > limit:
        yield f"{judged.lost} ({_interval(judged)}), {limit:g} allowed"


def too_noisy(judged: Quality, least: float | None) -> Iterator[str]:
    """Why the numbers are too far off for the signal-to-noise ratio that is asked.

    Decisions alone do not tell: few rows have few of them, and most are decided by far more than
    noise.
    """
    if judged.snr_db is not None and least is not None and judged.snr_db < least:
        yield (
            f"{judged.snr_db:.0f} dB of signal over the noise at {judged.noisiest}, "
            f"{least:.0f} dB asked"
        )


def unsettled(judged: Quality, budget: Budget) -> str:
    """What the rows cannot tell of a loss that is inside the budget; "" where they tell it.

    So few rows may hide a loss beyond the budget where its interval reaches beyond.
    """
    limit = _limit(judged, budget)
    if judged.loss is None or judged.high is None or judged.loss > limit:
        return ""
    if judged.rows < 2 and judged.measure == "difference":
        return "not settled on 1 row: how much an output varies is told by two or more"
    if judged.high <= limit:
        return ""
    needed = rows_needed(judged, limit)
    settles = f"about {needed:,} rows would settle it" if needed else "no number of rows settles it"
    return f"not settled on {judged.rows:,} rows, {_interval(judged)}: {settles}"


def rows_needed(judged: Quality, limit: float) -> int | None:
    """About how many rows like these bring the interval inside the limit; None where none do."""
    rows = judged.rows
    while _high(judged, rows) > limit:
        if rows > MOST_ROWS:
            return None
        rows = math.ceil(rows * (1 + PRECISION))
    step = int(10 ** max(0, len(str(rows)) - 2))
    return math.ceil(rows / step) * step


def _high(judged: Quality, rows: int) -> float:
    """The upper end of the loss's interval on so many rows, if they are like those judged on."""
    loss, high, times = judged.loss or 0.0, judged.high or 0.0, rows / judged.rows
    if not judged.counts:
        return loss + (high - loss) / math.sqrt(times)
    lost, gained = ((count or 0) * times for count in (judged.rows_lost, judged.rows_gained))
    if judged.measure == "agreement":
        return 100 * wilson(round(lost), rows).high
    return 100 * paired_loss(lost, gained, rows)[1]


def _limit(judged: Quality, budget: Budget) -> float:
    return budget.accuracy_loss if judged.counts else budget.error_increase


def _interval(judged: Quality) -> str:
    return f"{judged.low:.2f} to {judged.high:.2f}"


def _decided(
    before: Array,
    after: Array,
    labels: npt.NDArray[np.int64] | None,
) -> Quality:
    """How many rows are decided wrongly now; without labels, otherwise than before."""
    rows, flips = len(before), int((before != after).sum())
    truth = before if labels is None else labels
    right, still = before == truth, after == truth
    lost, gained = int((right & ~still).sum()), int((~right & still).sum())
    low, high = paired_loss(lost, gained, rows)
    if labels is None:
        interval = wilson(flips, rows)
        low, high = interval.low, interval.high
    return Quality(
        measure="agreement" if labels is None else "accuracy",
        rows=rows,
        reference=float(right.mean()),
        value=float(still.mean()),
        loss=100 * (lost - gained) / rows,
        low=100 * low,
        high=100 * high,
        flips=flips,
        rows_lost=lost,
        rows_gained=gained,
    )


def _mean_error(sizes: Floats, change: Floats) -> Quality:
    """The mean change as a part of the mean size, with a normal interval over the rows' changes."""
    mean = max(float(sizes.mean()), float(np.finfo(np.float32).tiny))
    middle = float(change.mean())
    spread = Z * float(change.std()) / math.sqrt(len(change))
    return Quality(
        measure="mean error",
        rows=len(change),
        reference=float(sizes.mean()),
        value=float(sizes.mean()) + middle,
        loss=100 * middle / mean,
        low=100 * (middle - spread) / mean,
        high=100 * (middle + spread) / mean,
    )


def _off(parts: Floats) -> Quality:
    """The root of the mean noise, with a normal interval over the rows' noise.

    So few rows may be alike by chance: their noise is taken to vary as much as its mean at least.
    """
    middle = float(parts.mean())
    spread = Z * max(middle, float(parts.std())) / math.sqrt(len(parts))
    return Quality(
        measure="difference",
        rows=len(parts),
        reference=0.0,
        value=math.sqrt(middle),
        loss=100 * math.sqrt(middle),
        low=100 * math.sqrt(max(0.0, middle - spread)),
        high=100 * math.sqrt(middle + spread),
    )


def _same(wanted: Answers, found: Answers, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Whether each row has the very same answers in some outputs."""
    alike = [(wanted[name] == found[name]).reshape(len(wanted[name]), -1) for name in names]
    same: npt.NDArray[np.bool_] = np.logical_and.reduce(np.concatenate(alike, axis=1), axis=1)
    return same
