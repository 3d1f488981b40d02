"""What two classifiers decide: which rows they answer differently, and whether that says anything.

A row whose two largest scores nearly tie may be decided either way by rounding alone; any other
row that is decided differently is a real flip.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from pipeline.records.parity import Decisions, Flip, Interval, McNemar

__all__ = [
    "PROBABILITIES",
    "DecisionCount",
    "margins",
    "mcnemar",
    "predicted",
    "scores_of",
    "wilson",
]

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

LOGITS, PROBABILITIES = "logits", "probabilities"
MOST_NAMED = 20
"""Rows that are named; all are counted."""
CONFIDENCE = 0.95


class DecisionCount:
    """The decisions of all rows that were added so far."""

    def __init__(self, near: float) -> None:
        """`near` is the largest margin of a near-tie."""
        self.near = near
        self.rows = self.near_tie_rows = 0
        self.flips = self.near_ties = 0
        self._named: list[Flip] = []
        self._classes: Counter[int] = Counter()
        self._right = np.zeros(4, np.int64)
        self._labelled = False

    def add(
        self,
        wanted: Mapping[str, Array],
        found: Mapping[str, Array],
        numbers: Integers,
        labels: Integers | None,
    ) -> None:
        """Add rows: both sides' outputs by name, the rows' own numbers and their classes."""
        before, after, margin = predicted(wanted), predicted(found), margins(wanted)
        near = margin <= self.near  # False for NaN: what is no number is no tie
        flipped = before != after
        self.rows += len(numbers)
        self.near_tie_rows += int(near.sum())
        self.flips += int((flipped & ~near).sum())
        self.near_ties += int((flipped & near).sum())
        self._classes.update(before[flipped & ~near].tolist())
        if labels is not None:
            self._labelled = True
            # 0: both wrong, 1: only the other is right, 2: only the reference is, 3: both are.
            cases = 2 * (before == labels) + (after == labels)
            self._right += np.bincount(cases, minlength=4)
        for index in np.flatnonzero(flipped)[: MOST_NAMED - len(self._named)]:
            self._named.append(
                Flip(
                    row=int(numbers[index]),
                    reference=int(before[index]),
                    other=int(after[index]),
                    margin=float(margin[index]) if np.isfinite(margin[index]) else None,
                    near_tie=bool(near[index]),
                    label=None if labels is None else int(labels[index]),
                )
            )

    def report(self) -> Decisions:
        """All counts."""
        both_wrong, gained, lost, both_right = (int(count) for count in self._right)
        total = both_wrong + gained + lost + both_right
        return Decisions(
            rows=self.rows,
            flips=self.flips,
            near_ties=self.near_ties,
            near_tie_rows=self.near_tie_rows,
            near_tie_margin=self.near,
            flip_rate=wilson(self.flips, self.rows),
            classes={str(label): count for label, count in sorted(self._classes.items())},
            named=tuple(self._named),
            reference_accuracy=(both_right + lost) / total if self._labelled else None,
            accuracy=(both_right + gained) / total if self._labelled else None,
            mcnemar=mcnemar(lost, gained) if self._labelled else None,
        )


def scores_of(answers: Mapping[str, Array], *, labelled: bool) -> dict[str, Array] | None:
    """The outputs that decide on a class; None for a model that answers none.

    They are called `logits` and `probabilities`; where no output is called so but rows have
    classes, the only output of floats [rows, classes] is taken for the logits.
    """
    named = {name: answers[name] for name in (LOGITS, PROBABILITIES) if name in answers}
    tables = {name: array for name, array in answers.items() if _is_table(array)}
    if any(name in tables for name in named):
        return {name: array for name, array in named.items() if array.ndim == 2}
    if labelled and len(tables) == 1:
        return {LOGITS: next(iter(tables.values()))}
    return None


def predicted(scores: Mapping[str, Array]) -> Integers:
    """The class of each row, int64 [rows]: the largest probability, or the largest logit."""
    deciding = scores[PROBABILITIES] if PROBABILITIES in scores else scores[LOGITS]
    classes: Integers = deciding.argmax(axis=1).astype(np.int64)
    return classes


def margins(scores: Mapping[str, Array]) -> npt.NDArray[np.float64]:
    """How far the largest score of each row is above the second, float64 [rows].

    Of the logits where there are some. The one logit of two classes stands for the scores of both,
    itself and its negative, so the margin is twice its size.
    """
    values = scores[LOGITS if LOGITS in scores else PROBABILITIES].astype(np.float64)
    if values.shape[1] == 1:
        return 2 * np.abs(values[:, 0])
    largest = np.partition(values, -2, axis=1)[:, -2:]
    with np.errstate(invalid="ignore"):  # infinite scores: their difference is no number
        return largest[:, 1] - largest[:, 0]


def wilson(count: int, total: int) -> Interval:
    """The 95 % interval of a rate, `count` out of `total`, as Wilson (1927) gives it."""
    if not total:
        return Interval(low=0.0, high=1.0)
    found = binomtest(count, total).proportion_ci(CONFIDENCE, "wilson")
    return Interval(low=max(0.0, float(found.low)), high=min(1.0, float(found.high)))


def mcnemar(lost: int, gained: int) -> McNemar:
    """McNemar's exact test of the rows that exactly one of two classifiers gets right.

    `p_value` is how likely a split at least as uneven is if both are equally good (McNemar 1947,
    in its exact binomial form).
    """
    both = lost + gained
    p_value = float(binomtest(lost, both).pvalue) if both else 1.0
    return McNemar(lost=lost, gained=gained, p_value=p_value)


def _is_table(array: Array) -> bool:
    return array.ndim == 2 and array.dtype.kind == "f" and array.shape[1] > 1
