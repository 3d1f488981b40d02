"""What an engine gives for every chunk, and what it takes to make it: a model that answers batches.

The same two on this machine and on a cluster, so that both write the same rows.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.answers import Answer, Columns, answer
from serving.model import Model
from serving.readers.inputs import Place
from serving.readers.items import Batch, NumberedIds, Unreadable

__all__ = ["Answered", "Answering", "answered"]

Array = npt.NDArray[Any]
NOT_FINITE = "the model gave what is not a finite number"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """How batches are answered."""

    batch_rows: int
    probabilities: bool
    top_k: int | None
    keep_rows: bool
    """Whether the rows come with their answers, for the drift check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The answers to one chunk."""

    end: Place
    """The row after its last one."""
    columns: Columns | None
    """Of the rows that were answered; None where there is none."""
    unreadable: Sequence[Unreadable]
    """The others, in order."""
    digest: str | None
    """The chunk's."""
    rows: Array | None
    """Those that were answered, where they are kept."""
    decode_seconds: float
    run_seconds: float

    @property
    def count(self) -> int:
        """The rows that were answered."""
        return len(self.columns["id"]) if self.columns else 0


def answered(
    model: Model,
    batch: Batch,
    how: Answering,
    *,
    end: Place,
    digest: str | None,
    decode_seconds: float,
) -> Answered:
    """Run a model on a batch. Rows that give numbers that are not finite become unreadable.

    Raises what `Model.predict` and `Model.answers` raise.
    """
    begin = time.perf_counter()
    bad, rows, ids = batch.unreadable, batch.rows, batch.readable_ids
    columns: Columns | None = None
    if len(rows):
        found = answer(
            model,
            ids,
            rows,
            batch_rows=how.batch_rows,
            all_classes=how.probabilities,
            top_k=how.top_k,
        )
        columns, rows, nowhere = _finite(found, ids, rows)
        if nowhere:
            bad = _in_order(batch.ids, [*bad, *nowhere])
    return Answered(
        end=end,
        columns=columns,
        unreadable=bad,
        digest=digest,
        rows=rows if how.keep_rows else None,
        decode_seconds=decode_seconds,
        run_seconds=time.perf_counter() - begin,
    )


def _finite(
    found: Answer, ids: Sequence[str], rows: Array
) -> tuple[Columns | None, Array, list[Unreadable]]:
    """The answers whose numbers are finite; a row without has no highest one, nor would JSON."""
    if found.finite.all():
        return found.columns, rows, []
    bad = [Unreadable(ids[int(index)], NOT_FINITE) for index in np.flatnonzero(~found.finite)]
    if not found.finite.any():
        return None, rows[:0], bad
    kept = found.finite
    columns: Columns = {
        name: np.array(values[:], object)[kept] if isinstance(values, NumberedIds) else values[kept]
        for name, values in found.columns.items()
    }
    return columns, rows[kept], bad


def _in_order(ids: Sequence[str], items: Sequence[Unreadable]) -> list[Unreadable]:
    at = {one: index for index, one in enumerate(ids)}
    return sorted(items, key=lambda item: at[item.id])
