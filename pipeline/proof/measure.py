"""Measure how far a model's answers are from its reference's, at several batch sizes.

The reference answers once, and its answers lie in a nameless file: the number of rows does not
matter to memory. Whether an answer depends on the rows beside it is measured as well: a model that
normalizes over the batch answers the same row differently alone, first and last.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipeline.proof.differences import (
    FAR,
    DecisionCount,
    DecisionRule,
    Differences,
    known_scores,
    largest_difference,
)
from pipeline.proof.rows import Rows, squared_errors
from pipeline.proof.sides import Side
from pipeline.proof.variation import Floats, Variation, variation_of
from pipeline.records.parity import (
    BatchDifference,
    Decisions,
    OutputDifference,
    TargetErrors,
)
from serving.errors import FerryError, InputError
from serving.runtime.tensors import Array

Numbers = npt.NDArray[np.int64]

REFERENCE_BATCH = 256
CHUNK_BYTES = 32 * 2**20
"""Of rows and of answers that are held at once, each."""
CHUNK_ROWS = 2048
ODD = 7
"""No power of two, which kernels are written for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The reference's answers to all rows."""

    outputs: Mapping[str, Array]
    """By name, each [rows, ...], mapped into memory."""
    variations: Mapping[str, Variation]
    """How much each output varies, by name."""
    rows: Rows
    chunk: int
    """Rows that are worked on at once."""

    def take(self, numbers: Numbers) -> dict[str, Array]:
        """The answers to some rows."""
        return {name: _picked(array, numbers) for name, array in self.outputs.items()}

    @property
    def noise(self) -> dict[str, float]:
        """How far right answers may be apart, by output."""
        return {name: one.noise for name, one in self.variations.items()}

    def with_noise(self, noise: Mapping[str, float]) -> "Kept":
        """The same with the noise that was measured of some outputs."""
        known = {
            name: one.with_noise(noise.get(name, 0.0)) for name, one in self.variations.items()
        }
        return replace(self, variations=known)


def progress(name: str, rows: int) -> "tqdm[NoReturn]":
    """A bar on stderr for answers to so many rows; it is gone at its end."""
    return tqdm(total=rows, desc=name, unit="row", disable=None, leave=False)


def keep(reference: Side, rows: Rows, rule: DecisionRule) -> Kept:
    """Let the reference answer all rows, once, with a bar on stderr."""
    first = reference.answer(rows.slice(0, 1), 1)
    together = known_scores(first, rule.task)
    answered = sum(array.nbytes for array in first.values())
    taken = sum(array[:1].nbytes for array in rows.inputs.values())
    chunk = max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(answered, taken, 1)))
    outputs = {name: _file(len(rows), array) for name, array in first.items()}
    with progress(reference.name, len(rows)) as bar:
        for start in range(0, len(rows), chunk):
            answers = reference.answer(rows.slice(start, start + chunk), REFERENCE_BATCH)
            for name, array in answers.items():
                outputs[name][start : start + chunk] = array
            bar.update(min(chunk, len(rows) - start))
    variations = {
        name: variation_of(
            (array[start : start + chunk] for start in range(0, len(array), chunk)),
            together=name in together,
        )
        for name, array in outputs.items()
    }
    return Kept(outputs=outputs, variations=variations, rows=rows, chunk=chunk)


def quantities(kept: Kept, rule: DecisionRule) -> list[str]:
    """The outputs that differ by how much: all but a label.

    Another label is a flip, or a near-tie by the scores beside it.
    """
    decided = rule.decided({name: array[:1] for name, array in kept.outputs.items()})
    labels = {name for name, one in decided.items() if name != one.scored_by}
    return [name for name in kept.outputs if name not in labels] or list(kept.outputs)


class BatchSizeParity:
    """The differences and decisions at one batch size, of all rows that were added so far."""

    def __init__(self, kept: Kept, rule: DecisionRule) -> None:
        """Nothing is added yet."""
        self._rule = rule
        decided = rule.decided({name: array[:1] for name, array in kept.outputs.items()})
        self._decisions = {
            name: DecisionCount(name, rule.margin(kept.variations[one.scored_by or name]))
            for name, one in decided.items()
        }
        self.measured = quantities(kept, rule)
        self._differences = {
            name: Differences(name, kept.variations[name]) for name in self.measured
        }
        self._rows, self._labels = 0, kept.rows.labels
        self._squares: Floats | None = None
        """Squared errors of both sides, [2, targets]; None where no targets are known."""

    def add(
        self,
        wanted: Mapping[str, Array],
        found: Mapping[str, Array],
        numbers: Numbers,
        labels: npt.NDArray[Any] | None,
    ) -> None:
        """Add rows: both sides' outputs by name, the rows' own numbers and their labels."""
        for name, difference in self._differences.items():
            difference.add(wanted[name], found[name], numbers)
        before, after = self._rule.decided(wanted), self._rule.decided(found)
        for name, decisions in self._decisions.items():
            decisions.add(before[name], after[name], numbers, labels)
        self._rows += len(numbers)
        squares = [squared_errors(one, labels) for one in (wanted, found)]
        if squares[0] is not None and squares[1] is not None:
            sums = np.stack([one.sum(axis=0) for one in squares if one is not None])
            self._squares = sums if self._squares is None else self._squares + sums

    def outputs(self) -> tuple[OutputDifference, ...]:
        """How far each output is off."""
        return tuple(one.report() for one in self._differences.values())

    def decisions(self) -> tuple[Decisions, ...]:
        """What each output that decides on a class decides."""
        return tuple(one.report() for one in self._decisions.values())

    def errors(self) -> TargetErrors | None:
        """How far both sides are from the targets, over those that vary; None for none."""
        if self._squares is None or self._labels is None:
            return None
        variance = np.var(self._labels, axis=0, dtype=np.float64)
        varies = variance > 0
        if not varies.any():
            return None
        parts = (self._squares / self._rows)[:, varies] / variance[varies]
        reference, other = np.nan_to_num(parts.mean(axis=1), nan=FAR, posinf=FAR).tolist()
        return TargetErrors(reference=reference, other=other)


def measure(
    kept: Kept,
    side: Side,
    numbers: Numbers,
    batch_sizes: Sequence[int],
    rule: DecisionRule,
    bar: "tqdm[NoReturn]",
) -> tuple[dict[int, BatchSizeParity], BatchDifference]:
    """Compare the answers to the rows of these numbers, int64 in rising order, at each batch size.

    Returns what was found by batch size, and how far the answers to a row are apart between them.
    """
    sizes = {size: BatchSizeParity(kept, rule) for size in batch_sizes}
    known = kept.rows.labels
    apart: dict[str, float] = {}
    for start in range(0, len(numbers), kept.chunk):
        part = numbers[start : start + kept.chunk]
        feeds, wanted = kept.rows.take(part), kept.take(part)
        labels = None if known is None else np.asarray(_picked(known, part))
        answers = []
        for size, comparison in sizes.items():
            found = side.answer(feeds, size)
            _check_shapes(wanted, found, side.name)
            comparison.add(wanted, found, part, labels)
            answers.append({name: found[name] for name in comparison.measured})
            bar.update(len(part))
        apart = _larger(apart, spread(answers))
    where = f"in batches of {', '.join(map(str, batch_sizes))}"
    return sizes, _difference(kept, apart, where, len(numbers))


def _check_shapes(wanted: Mapping[str, Array], found: Mapping[str, Array], name: str) -> None:
    for output, array in wanted.items():
        if found[output].shape != array.shape:
            raise InputError(
                f"{name} answers {output} as {list(found[output].shape)}, the other side as "
                f"{list(array.shape)}: they cannot be compared"
            )


def _picked(array: Array, numbers: Numbers) -> Array:
    """Rows of an array; neighbours are a view and no copy."""
    start, stop = int(numbers[0]), int(numbers[-1]) + 1
    return array[start:stop] if stop - start == len(numbers) else array[numbers]


def _file(rows: int, first: Array) -> Array:
    shape = (rows, *first.shape[1:])
    if 0 in shape or first.dtype.hasobject:
        return np.zeros(shape, first.dtype)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, first.dtype, "w+", 0, shape)


def spread(answers: Sequence[Mapping[str, Array]]) -> dict[str, float]:
    """The largest difference between several answers to the same rows, by output.

    NaN beside NaN is none.
    """
    return {name: _spread([one[name] for one in answers]) for name in answers[0]}


def _spread(arrays: Sequence[Array]) -> float:
    first, *others = arrays
    if first.dtype.kind in "OUSb":
        return float(any((first != other).any() for other in others))
    low = high = first
    for other in others:
        low, high = np.minimum(low, other), np.maximum(high, other)
    with np.errstate(invalid="ignore"):
        apart = np.nan_to_num(high - low, nan=0.0)
    return float(apart.max(initial=0.0))


def _larger(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: max(value, one.get(name, 0.0)) for name, value in other.items()}


def _difference(kept: Kept, apart: Mapping[str, float], where: str, rows: int) -> BatchDifference:
    """What answers in two ways are apart, by output, as one finding."""
    scaled = {name: value / kept.variations[name].overall_scale for name, value in apart.items()}
    return BatchDifference(
        max_abs_diff=max(apart.values(), default=0.0),
        max_scaled_diff=min(FAR, max(scaled.values(), default=0.0)),
        where=where,
        rows=rows,
    )


def beside_others(side: Side, kept: Kept, numbers: Numbers) -> BatchDifference:
    """Ask each of some rows alone, and as the first, in the middle and the last of an odd batch.

    `numbers` are int64 [rows]; the rows beside each are those that follow it.
    """
    feeds = kept.rows.take(np.sort(numbers))
    count = len(numbers)
    alone = side.answer(feeds, 1)
    apart: dict[str, float] = {}
    where = ""
    for place, shift in (("first", 0), ("in the middle", ODD // 2), ("last", ODD - 1)):
        for row in range(count):
            order = (np.arange(ODD) + row - shift) % count
            batch = {name: array[order] for name, array in feeds.items()}
            larger = _larger(apart, _apart(side, batch, alone, row, shift))
            if larger != apart and any(larger.values()):
                apart, where = larger, f"alone and {place} of {ODD}"
    return _difference(kept, apart, where, count)


def sample(rows: int, wanted: int, seed: int) -> Numbers:
    """Draw row numbers without putting back, int64 in rising order; all if there are not more."""
    chosen = np.random.default_rng(seed).choice(rows, min(rows, wanted), replace=False)
    return np.sort(chosen).astype(np.int64)


def _apart(
    side: Side, batch: Mapping[str, Array], alone: Mapping[str, Array], row: int, place: int
) -> dict[str, float]:
    """How far the answer at a place of a batch is from that of the row alone, by output."""
    try:
        found = side.answer(batch, ODD)
    except FerryError:
        return dict.fromkeys(alone, FAR)  # it takes the row alone, and not beside others
    return {
        name: min(FAR, largest_difference(alone[name][row : row + 1], array[place : place + 1]))
        for name, array in found.items()
    }
