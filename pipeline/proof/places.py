"""Whether a model decides elsewhere as it does here: by other kernels, another processor, in C.

One row in a thousand may lie so near a tie that the runtime's own kernels disagree about it. Such
a row may be decided either way; any other row that is decided otherwise is a real flip.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.proof.differences import DecisionCount, decided_by, largest_difference
from serving.errors import ModelError
from serving.runtime.tensors import LOGITS, PROBABILITIES, Array


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
    wanted: Mapping[str, Array], found: Mapping[str, Array], tie: float
) -> Sameness:
    """Compare the outputs that both have, each [rows, ...], and what they decide.

    A row is a near-tie if the two best scores of what is wanted lie within `tie`.

    Raises ModelError where both have no output, or they answer another number of rows.
    """
    shared = [name for name in wanted if name in found]
    if not shared:
        raise ModelError(f"no output is both in {', '.join(wanted)} and in {', '.join(found)}")
    rows, others = len(wanted[shared[0]]), len(found[shared[0]])
    if rows != others:
        raise ModelError(f"{others} rows were answered, {rows} were asked")
    told = next((name for name in (PROBABILITIES, LOGITS) if name in shared), shared[0])
    apart = largest_difference(wanted[told], found[told])
    before, after = decided_by(wanted), decided_by({name: found[name] for name in shared})
    if before is None or after is None:
        return Sameness(
            rows=rows, equal=None, near_ties=0, flips=0, largest_diff=apart, diff_of=told
        )
    count = DecisionCount(before.output, tie)
    count.add(before, after, np.arange(rows), None)
    return Sameness(
        rows=rows,
        equal=rows - count.flips - count.near_ties,
        near_ties=count.near_ties,
        flips=count.flips,
        largest_diff=apart,
        diff_of=told,
    )
