"""How far a model's answers are from its reference's: the values, and the classes they decide on.

Both are added up row by row in a fixed amount of memory. A value that is NaN or infinite is the
worst there is. A row whose two largest scores nearly tie may be decided either way by rounding
alone; any other row that is decided differently is a real flip.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from pipeline.proof.variation import FAINTEST, MOST_NOISE, Variation, in_pieces
from pipeline.records.parity import (
    ConfidenceInterval,
    Decisions,
    Flip,
    McNemar,
    OutputDifference,
    Quantile,
)
from serving.runtime.classes import Task, class_outputs, margins
from serving.runtime.tensors import LOGITS, Array, infos_of, is_table

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

RELATIVE_FLOOR = 0.01
"""Values below this part of the largest one of their row are divided by that part of it: ratios of
values near zero say nothing."""
QUANTILES = (0.5, 0.9, 0.99, 0.999)
SHIFT = 16
"""Bits of a float32 that its bin drops: 7 of the fraction stay, 128 bins to each power of two."""
BINS = 2 ** (31 - SHIFT)
ULP_BINS = 66
"""Of units in the last place: 0, 1, 2, 3 to 4, 5 to 8, and so on, to all 64 bits."""
HUGE = 1e300
"""The most that a ratio is given as: JSON knows no infinity."""
FAR = float(np.finfo(np.float32).max)
"""As far off as can be: JSON knows no infinity."""
NEAR_TIE = 10
"""Two scores that are no further apart than so many times their noise nearly tie."""
MOST_NAMED = 20
"""Rows that are named; all are counted."""
CONFIDENCE = 0.95


def largest_difference(left: Array, right: Array) -> float:
    """The largest absolute difference of two arrays, 0 for no values at all.

    Arrays of two shapes are infinitely far off. Texts and truth values differ by 1 or by 0. NaN and
    infinities that stand in both are no difference; beside anything else they are infinitely far
    off.
    """
    if left.shape != right.shape:
        return math.inf
    if left.dtype.kind in "OUSb":
        return float(np.any(left != right))  # of single texts numpy gives a bool of Python's
    left, right = left.astype(np.float64), right.astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):  # infinities on both sides
        apart = np.nan_to_num(np.abs(left - right), nan=math.inf, posinf=math.inf)
    return float(np.where(same, 0.0, apart).max(initial=0.0))


class Differences:
    """The differences of one output, of all rows that were added so far."""

    def __init__(self, output: str, variation: Variation) -> None:
        """Nothing is added yet; `variation` is that of what is wanted, over all rows."""
        self.output = output
        self.variation = variation
        self.values = 0
        self.nonfinite = 0
        self.largest = 0.0
        self.max_abs, self.max_rel, self.max_scaled = 0.0, 0.0, 0.0
        self._broken_at: tuple[int, ...] = ()
        self._abs_at: tuple[int, ...] = ()
        self._rel_at: tuple[int, ...] = ()
        self._scaled_at: tuple[int, ...] = ()
        self._sum = 0.0
        # Of wanted², found² and wanted·found.
        self._products = np.zeros(3)
        self._noise = np.zeros_like(variation.deviation)
        self._bins = np.zeros(BINS, np.int64)
        self._ulps = np.zeros(ULP_BINS, np.int64)

    def add(self, wanted: Array, found: Array, numbers: Integers) -> None:
        """Add rows: what was wanted and what was found, both [rows, ...] of one shape.

        `numbers` are the rows' own numbers, int64 [rows], by which places are named.
        """
        for piece in in_pieces(len(wanted), wanted.shape[1:]):
            self._add(wanted[piece], found[piece], numbers[piece])

    def report(self) -> OutputDifference:
        """All figures; the places are () while nothing differs."""
        signal, power, product = (float(value) for value in self._products)
        finite = self.values - self.nonfinite
        filled = np.flatnonzero(self._ulps)
        return OutputDifference(
            output=self.output,
            values=self.values,
            nonfinite=self.nonfinite,
            max_abs_diff=self.max_abs,
            max_abs_at=self._broken_at or self._abs_at,
            largest=self.largest,
            max_rel_diff=self.max_rel,
            max_rel_at=self._broken_at or self._rel_at,
            max_scaled_diff=self.max_scaled,
            max_scaled_at=self._broken_at or self._scaled_at,
            mean_abs_diff=self._sum / finite if finite else 0.0,
            quantiles=tuple(self._quantile(part, finite) for part in QUANTILES),
            ulps=tuple(int(count) for count in self._ulps[: filled[-1] + 1 if len(filled) else 0]),
            snr_db=self._snr_db(),
            cosine=product / math.sqrt(signal * power) if signal and power else None,
        )

    def _add(self, wanted: Array, found: Array, numbers: Integers) -> None:
        if wanted.dtype.kind in "OUSb":
            wanted, found = np.zeros(wanted.shape), (wanted != found).astype(np.float64)
        ulps = units_in_the_last_place(wanted, found)
        rounded = (ulps <= 1) & (wanted.dtype.kind == "f")
        left, right = wanted.astype(np.float64), found.astype(np.float64)
        self.values += left.size
        broken = ~(np.isfinite(left) & np.isfinite(right))
        if broken.any():
            self._broken_at = self._broken_at or _place(broken, numbers)
            self.nonfinite += int(broken.sum())
            left, right = np.where(broken, 0.0, left), np.where(broken, 0.0, right)
            ulps = ulps[~broken]
        self._ulps += np.bincount(ulp_bins(ulps).ravel(), minlength=ULP_BINS)
        errors = np.abs(left - right)
        self._add_errors(errors, left, numbers, errors[~broken])
        deviation = self.variation.deviation.reshape(self.variation.beside(errors.ndim))
        # The next float is as near as can be, up to a thousandth of what the output varies by: a
        # model of little training may answer 0.5 to all rows, but for a hundredth.
        rounded &= errors <= MOST_NOISE * deviation
        self._noise += self.variation.by_column(np.where(rounded, 0.0, errors) ** 2)
        for index, (a, b) in enumerate(((left, left), (right, right), (left, right))):
            self._products[index] += np.dot(a.ravel(), b.ravel())

    def _add_errors(
        self, errors: Floats, wanted: Floats, numbers: Integers, finite: Floats
    ) -> None:
        self._sum += float(errors.sum())
        self._bins += np.bincount(_bin(finite), minlength=BINS)
        worst = float(errors.max(initial=0.0))
        if worst > self.max_abs:
            self.max_abs, self._abs_at = worst, _place(errors, numbers)
        axes = tuple(range(1, errors.ndim))
        scale = np.abs(wanted)
        self.largest = max(self.largest, float(scale.max(initial=0.0)))
        floor = RELATIVE_FLOOR * scale.max(axis=axes, keepdims=True, initial=0.0)
        relative = errors / np.maximum(np.maximum(scale, floor), FAINTEST)
        largest = min(float(relative.max(initial=0.0)), HUGE)
        if largest > self.max_rel:
            self.max_rel, self._rel_at = largest, _place(relative, numbers)
        scales = self.variation.scale.reshape(self.variation.beside(errors.ndim))
        scaled = errors / scales
        largest = min(float(scaled.max(initial=0.0)), HUGE)
        if largest > self.max_scaled:
            self.max_scaled, self._scaled_at = largest, _place(scaled, numbers)

    def _snr_db(self) -> float | None:
        """Of the noisiest column; None where nothing differs and for what has no noise."""
        off = self._noise > 0
        if self.variation.exact or not off.any():
            return None
        count = self.values / self._noise.size
        signal = np.maximum(self.variation.deviation[off] ** 2, FAINTEST)
        return float(10 * np.log10((signal * count / self._noise[off]).min()))

    def _quantile(self, part: float, finite: int) -> Quantile:
        """The upper edge of the bin that holds the difference of that rank, at most the largest."""
        rank = math.ceil(part * finite)
        found = int(np.searchsorted(np.cumsum(self._bins), max(rank, 1)))
        if not finite or found == 0:
            return Quantile(part=part, diff=0.0)
        edge = np.array([(found + 1) << SHIFT], np.int32).view(np.float32)[0]
        return Quantile(part=part, diff=min(float(edge), self.max_abs))


def units_in_the_last_place(wanted: Array, found: Array) -> npt.NDArray[np.uint64]:
    """How many values of the wanted dtype lie between two, uint64 of their shape.

    The bits of a float, read as an integer, count the floats from zero; those below zero count
    downwards (Bruce Dawson, "Comparing Floating Point Numbers", 2012). Integers count by 1.
    """
    if wanted.dtype.kind != "f":
        return np.abs(wanted.astype(np.float64) - found.astype(np.float64)).astype(np.uint64)
    with np.errstate(over="ignore"):
        other = found.astype(wanted.dtype)
    left, right = _counted(wanted), _counted(other)
    larger, smaller = np.maximum(left, right), np.minimum(left, right)
    # As unsigned numbers, for between the ends of float64 there are more than int64 holds.
    return larger.astype(np.uint64) - smaller.astype(np.uint64)


def ulp_bins(ulps: npt.NDArray[np.uint64]) -> Integers:
    """The bin of each number of units: 0, 1, 2, 3 to 4, 5 to 8, ... are 0, 1, 2, 3, 4, ...."""
    _, exponents = np.frexp(np.maximum(ulps, 1).astype(np.float64) - 1)
    return np.where(ulps == 0, 0, 1 + exponents.astype(np.int64))


def _counted(values: Array) -> Integers:
    integers = {2: np.int16, 4: np.int32, 8: np.int64}[values.dtype.itemsize]
    bits = np.ascontiguousarray(values).view(integers).astype(np.int64)
    magnitude = bits & (2 ** (8 * values.dtype.itemsize - 1) - 1)
    counted: Integers = np.where(bits < 0, -magnitude, magnitude)
    return counted


def _bin(errors: Floats) -> Integers:
    single = np.minimum(errors, FAR).astype(np.float32)
    return (single.view(np.int32) >> SHIFT).astype(np.int64).ravel()


def _place(values: Array, numbers: Integers) -> tuple[int, ...]:
    """Where the first largest value is: the row's own number, then the other axes."""
    row, *others = np.unravel_index(int(values.argmax()), values.shape)
    return (int(numbers[row]), *(int(axis) for axis in others))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """The class of each row, as one output decides it."""

    output: str
    """What the decision is called after."""
    classes: Array
    """int64 or text [rows]."""
    scores: Array | None
    """What tells how sure that is, floats [rows, classes]; None where nothing does."""
    scored_by: str | None
    """The output that these are."""

    def known(self, labels: npt.NDArray[Any] | None) -> Integers | None:
        """The rows' own classes, int64 [rows], where they can be compared.

        Names are no numbers, and targets are no classes.
        """
        if labels is None or labels.dtype.kind == "f" or self.classes.dtype.kind != "i":
            return None
        return labels

    def margins(self) -> Floats:
        """How far the largest score of each row is above the second; NaN where there are none."""
        if self.scores is None:
            return np.full(len(self.classes), np.nan)
        return margins(self.scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRule:
    """Which outputs decide on a class, and when two scores nearly tie."""

    near: float | None
    """Largest margin of a near-tie; None for what the noise of the scores can decide."""
    every_table: bool = False
    """Whether each output of floats [rows, classes] decides, whatever it is called."""
    task: Task | None = None
    """What is known of the model besides the names of its outputs, as `class_outputs` takes it."""

    def decided(self, answers: Mapping[str, Array]) -> dict[str, Decided]:
        """What is decided, by the output that it is called after.

        Without `every_table` there is one decision at most, as `decided_by` tells it.
        """
        if not self.every_table:
            one = decided_by(answers, self.task)
            return {one.output: one} if one else {}
        tables = {name: array for name, array in answers.items() if is_table(array)}
        return {
            name: Decided(output=name, classes=array.argmax(axis=1), scores=array, scored_by=name)
            for name, array in tables.items()
        }

    def margin(self, scores: Variation) -> float:
        """The largest margin of a near-tie of scores that vary so."""
        return NEAR_TIE * scores.noise if self.near is None else self.near


class DecisionCount:
    """The decisions of all rows that were added so far."""

    def __init__(self, output: str, near: float) -> None:
        """`near` is the largest margin of a near-tie."""
        self.output = output
        self.near = near
        self.rows = self.near_tie_rows = 0
        self.flips = self.near_ties = 0
        self._named: list[Flip] = []
        self._classes: Counter[str] = Counter()
        self._right = np.zeros(4, np.int64)
        self._labelled = False

    def add(
        self,
        wanted: Decided,
        found: Decided,
        numbers: Integers,
        labels: npt.NDArray[Any] | None,
    ) -> None:
        """Add rows: what both sides decide, the rows' own numbers and their labels."""
        before, after, margin = wanted.classes, found.classes, wanted.margins()
        labels = wanted.known(labels)
        near = margin <= self.near  # False for NaN: what is no number is no tie
        flipped = before != after
        self.rows += len(numbers)
        self.near_tie_rows += int(near.sum())
        self.flips += int((flipped & ~near).sum())
        self.near_ties += int((flipped & near).sum())
        self._classes.update(map(str, before[flipped & ~near].tolist()))
        if labels is not None:
            self._labelled = True
            # 0: both wrong, 1: only the other is right, 2: only the reference is, 3: both are.
            cases = 2 * (before == labels) + (after == labels)
            self._right += np.bincount(cases, minlength=4)
        for index in np.flatnonzero(flipped)[: MOST_NAMED - len(self._named)]:
            self._named.append(
                Flip(
                    row=int(numbers[index]),
                    reference=before[index : index + 1].tolist()[0],
                    other=after[index : index + 1].tolist()[0],
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
            output=self.output,
            rows=self.rows,
            flips=self.flips,
            near_ties=self.near_ties,
            near_tie_rows=self.near_tie_rows,
            near_tie_margin=self.near,
            flip_rate=wilson(self.flips, self.rows),
            classes=dict(sorted(self._classes.items(), key=_by_number)),
            named=tuple(self._named),
            reference_accuracy=(both_right + lost) / total if self._labelled else None,
            accuracy=(both_right + gained) / total if self._labelled else None,
            mcnemar=mcnemar(lost, gained) if self._labelled else None,
        )


def decided_by(answers: Mapping[str, Array], task: Task | None = None) -> Decided | None:
    """The class of each row by the output that tells it; None for a model that tells none.

    `class_outputs` says which one that is. The logits, where there are some, tell how sure it is.
    """
    which = class_outputs(infos_of(answers), task)
    name = which.scores.name if which.scores else None
    scores = answers[name] if name else None
    if which.label:
        classes = answers[which.label.name].reshape(-1)
        return Decided(output=which.label.name, classes=classes, scores=scores, scored_by=name)
    if name is None or scores is None:
        return None
    surer = LOGITS if LOGITS in answers and answers[LOGITS].ndim == 2 else name
    return Decided(
        output=surer, classes=scores.argmax(axis=1), scores=answers[surer], scored_by=surer
    )


def known_scores(answers: Mapping[str, Array], task: Task | None = None) -> set[str]:
    """The outputs that are known as the scores of classes, which vary as one."""
    which = class_outputs(infos_of(answers), task)
    return {which.scores.name, LOGITS} & answers.keys() if which.scores else set()


def _by_number(item: tuple[str, int]) -> tuple[int, str]:
    """Classes in the order of their numbers, then those that are names."""
    name = item[0]
    return (int(name), "") if name.lstrip("-").isdecimal() else (0, name)


def wilson(count: int, total: int) -> ConfidenceInterval:
    """The 95 % interval of a rate, `count` out of `total`, as Wilson (1927) gives it."""
    if not total:
        return ConfidenceInterval(low=0.0, high=1.0)
    found = binomtest(count, total).proportion_ci(CONFIDENCE, "wilson")
    return ConfidenceInterval(low=max(0.0, float(found.low)), high=min(1.0, float(found.high)))


def mcnemar(lost: int, gained: int) -> McNemar:
    """McNemar's exact test of the rows that exactly one of two classifiers gets right.

    `p_value` is how likely a split at least as uneven is if both are equally good (McNemar 1947,
    in its exact binomial form).
    """
    both = lost + gained
    p_value = float(binomtest(lost, both).pvalue) if both else 1.0
    return McNemar(lost=lost, gained=gained, p_value=p_value)
