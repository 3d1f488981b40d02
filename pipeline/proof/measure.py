"""Measure how far a model's answers are from its reference's, at several batch sizes.

The reference answers once, and its answers lie in a nameless file: the number of rows does not
matter to memory. Whether an answer depends on the rows beside it is measured as well: a model that
normalizes over the batch answers the same row differently alone, first and last.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipeline.proof.differences import (
    FAR,
    DecisionCount,
    DecisionRule,
    Differences,
    largest_difference,
)
from pipeline.proof.rows import Rows
from pipeline.proof.sides import Side
from pipeline.records.parity import BatchDifference, Decisions, OutputDifference
from serving.errors import FerryError, InputError
from serving.runtime.tensors import Array

Numbers = npt.NDArray[np.int64]

REFERENCE_BATCH = 256
CHUNK_BYTES = 32 * 2**20
"""Of rows and of answers that are held at once, each."""
CHUNK_ROWS = 2048
STILL = 1e-6
"""Answers to different rows that are no further apart, in parts of the largest, are the same."""
ODD = 7
"""No power of two, which kernels are written for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The reference's answers to all rows."""

    outputs: Mapping[str, Array]
    """By name, each [rows, ...], mapped into memory."""
    rows: Rows
    chunk: int
    """Rows that are worked on at once."""

    def take(self, numbers: Numbers) -> dict[str, Array]:
        """The answers to some rows."""
        return {name: _picked(array, numbers) for name, array in self.outputs.items()}

    def largest(self) -> dict[str, float]:
        """The largest finite size of a value of each output, over a chunk of rows."""
        chunk = self.take(np.arange(min(self.chunk, len(self.rows))))
        return {
            name: float(np.abs(values[np.isfinite(values)].astype(np.float64)).max(initial=0.0))
            for name, values in chunk.items()
            if values.dtype.kind in "fiu"
        }

    def alike(self) -> tuple[str, ...]:
        """The outputs that answer every row alike; none where there is a single row."""
        return tuple(
            name
            for name, array in self.outputs.items()
            if len(array) > 1 and array.dtype.kind in "fiu" and self._is_still(array)
        )

    def _is_still(self, array: Array) -> bool:
        first = _finite(array[:1])
        for start in range(0, len(array), self.chunk):
            part = _finite(array[start : start + self.chunk])
            largest = float(np.abs(part).max(initial=0.0))
            if float(np.abs(part - first).max(initial=0.0)) > STILL * largest:
                return False
        return True


def progress(name: str, rows: int) -> "tqdm[NoReturn]":
    """A bar on stderr for answers to so many rows; it is gone at its end."""
    return tqdm(total=rows, desc=name, unit="row", disable=None, leave=False)


def keep(reference: Side, rows: Rows) -> Kept:
    """Let the reference answer all rows, once, with a bar on stderr."""
    first = reference.answer(rows.slice(0, 1), 1)
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
    return Kept(outputs=outputs, rows=rows, chunk=chunk)


class BatchSizeParity:
    """The differences and decisions at one batch size, of all rows that were added so far."""

    def __init__(self, kept: Kept, rule: DecisionRule) -> None:
        """Nothing is added yet."""
        self._rule = rule
        self._differences = {name: Differences(name) for name in kept.outputs}
        first = {name: array[:1] for name, array in kept.outputs.items()}
        largest = kept.largest()
        self._decisions = {
            name: DecisionCount(name, rule.margin(largest.get(name, 0.0)))
            for name in rule.decided(first)
        }

    def add(
        self,
        wanted: Mapping[str, Array],
        found: Mapping[str, Array],
        numbers: Numbers,
        labels: Numbers | None,
    ) -> None:
        """Add rows: both sides' outputs by name, the rows' own numbers and their classes."""
        for name, difference in self._differences.items():
            difference.add(wanted[name], found[name], numbers)
        before, after = self._rule.decided(wanted), self._rule.decided(found)
        for name, decisions in self._decisions.items():
            decisions.add(before[name], after[name], numbers, labels)

    def outputs(self) -> tuple[OutputDifference, ...]:
        """How far each output is off."""
        return tuple(one.report() for one in self._differences.values())

    def decisions(self) -> tuple[Decisions, ...]:
        """What each output that decides on a class decides."""
        return tuple(one.report() for one in self._decisions.values())


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
    spread = 0.0
    for start in range(0, len(numbers), kept.chunk):
        part = numbers[start : start + kept.chunk]
        feeds, wanted = kept.rows.take(part), kept.take(part)
        labels = None if known is None else np.asarray(_picked(known, part))
        answers = []
        for size, comparison in sizes.items():
            found = side.answer(feeds, size)
            _check_shapes(wanted, found, side.name)
            comparison.add(wanted, found, part, labels)
            answers.append(found)
            bar.update(len(part))
        spread = max(spread, _spread(answers))
    where = f"in batches of {', '.join(map(str, batch_sizes))}"
    return sizes, BatchDifference(max_abs_diff=spread, where=where, rows=len(numbers))


def _check_shapes(wanted: Mapping[str, Array], found: Mapping[str, Array], name: str) -> None:
    for output, array in wanted.items():
        if found[output].shape != array.shape:
            raise InputError(
                f"{name} answers {output} as {list(found[output].shape)}, the other side as "
                f"{list(array.shape)}: they cannot be compared"
            )


def _finite(values: Array) -> npt.NDArray[np.float64]:
    """The same values with zeros for those that are no finite numbers."""
    return np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)


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


def _spread(answers: Sequence[Mapping[str, Array]]) -> float:
    """The largest difference between several answers to the same rows; NaN beside NaN is none."""
    largest = 0.0
    for name, first in answers[0].items():
        if first.dtype.kind in "OUSb":
            differs = any((first != other[name]).any() for other in answers[1:])
            largest = max(largest, float(differs))
            continue
        low = high = first
        for other in answers[1:]:
            low, high = np.minimum(low, other[name]), np.maximum(high, other[name])
        with np.errstate(invalid="ignore"):
            apart = np.nan_to_num(high - low, nan=0.0)
        largest = max(largest, float(apart.max(initial=0.0)))
    return largest


def beside_others(side: Side, rows: Rows, numbers: Numbers) -> BatchDifference:
    """Ask each of some rows alone, and as the first, in the middle and the last of an odd batch.

    `numbers` are int64 [rows]; the rows beside each are those that follow it.
    """
    feeds = rows.take(np.sort(numbers))
    count = len(numbers)
    alone = side.answer(feeds, 1)
    worst, where = 0.0, ""
    for place, shift in (("first", 0), ("in the middle", ODD // 2), ("last", ODD - 1)):
        for row in range(count):
            order = (np.arange(ODD) + row - shift) % count
            batch = {name: array[order] for name, array in feeds.items()}
            apart = _apart(side, batch, alone, row, shift)
            if not apart <= worst:
                worst, where = apart, f"alone and {place} of {ODD}"
    return BatchDifference(max_abs_diff=worst, where=where, rows=count)


def sample(rows: int, wanted: int, seed: int) -> Numbers:
    """Draw row numbers without putting back, int64 in rising order; all if there are not more."""
    chosen = np.random.default_rng(seed).choice(rows, min(rows, wanted), replace=False)
    return np.sort(chosen).astype(np.int64)


def _apart(
    side: Side, batch: Mapping[str, Array], alone: Mapping[str, Array], row: int, place: int
) -> float:
    """How far the answer at a place of a batch is from that of the row alone."""
    try:
        found = side.answer(batch, ODD)
    except FerryError:
        return FAR  # it takes the row alone, and not beside others
    apart = (
        largest_difference(alone[name][row : row + 1], array[place : place + 1])
        for name, array in found.items()
    )
    return min(FAR, max(apart))
