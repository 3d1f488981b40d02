"""Whether a model decides elsewhere as it does here: by other kernels, another processor, in C.

One row in a thousand may lie so near a tie that the runtime's own kernels disagree about it. Such
a row may be decided either way; any other row that is decided otherwise is a real flip.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.proof.differences import DecisionCount, decided_by, largest_difference
from serving.errors import ModelError
from serving.runtime.tensors import LOGITS, Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Sameness:
    """How far two sets of answers to the same rows agree."""

    rows: int
    equal: int | None
    """Rows that are decided alike; None where no class is told."""
    near_ties: int
    flips: int
    """Rows that are decided otherwise: those within the tie, and the real flips."""
    largest_diff: float
    diff_of: str
    """The output that differs so."""


def compare_answers(
    wanted: Mapping[str, Array], found: Mapping[str, Array], *, scores: str | None, tie: float
) -> Sameness:
    """Compare the outputs that both have, each [rows, ...], and what they decide.

    `scores` are the output whose two best values, where they are within `tie` in what is wanted,
    make a row a near-tie: as the bundle tells them.

    Raises ModelError where both have no output, or they answer another number of rows.
    """
    shared = [name for name in wanted if name in found and (name != LOGITS or name == scores)]
    if not shared:
        raise ModelError(f"no output is both in {', '.join(wanted)} and in {', '.join(found)}")
    rows, others = len(wanted[shared[0]]), len(found[shared[0]])
    if rows != others:
        raise ModelError(f"{others} rows were answered, {rows} were asked")
    told = scores if scores in shared else shared[0]
    before, after = (decided_by({name: one[name] for name in shared}) for one in (wanted, found))
    count = DecisionCount(told, tie)
    if before and after:
        count.add(before, after, np.arange(rows), None)
    return Sameness(
        rows=rows,
        equal=rows - count.flips - count.near_ties if before and after else None,
        near_ties=count.near_ties,
        flips=count.flips,
        largest_diff=largest_difference(wanted[told], found[told]),
        diff_of=told,
    )
