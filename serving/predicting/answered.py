"""From a chunk to its answers, in two steps that may be taken by different processes.

The same on this machine and on a cluster, so that both write the same rows.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.answers import ID, Columns, answer
from serving.model import Model
from serving.readers.inputs import Inputs, Place
from serving.readers.items import Batch, Chunk, Unreadable

__all__ = ["Answered", "Answering", "Decoded", "answered", "decoded"]

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
class Decoded:
    """A chunk whose rows are there."""

    batch: Batch
    end: Place
    digest: str | None
    seconds: float


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
        return len(self.columns[ID]) if self.columns else 0


def decoded(inputs: Inputs, number: int, chunk: Chunk) -> Decoded:
    """The rows of a chunk of the source `number`; raises what the source does."""
    begin = time.perf_counter()
    batch = inputs.sources[number].decode(chunk).first(chunk.count)
    return Decoded(
        batch=batch,
        end=Place(number, chunk.start + chunk.count),
        digest=chunk.digest,
        seconds=time.perf_counter() - begin,
    )


def answered(model: Model, how: Answering, taken: Decoded) -> Answered:
    """Run a model on a batch. Rows that give numbers that are not finite become unreadable.

    Raises what `Model.predict` and `Model.answers` raise.
    """
    begin = time.perf_counter()
    batch = taken.batch
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
        nowhere = np.flatnonzero(~found.finite)
        if len(nowhere):
            new = [Unreadable(ids[int(index)], NOT_FINITE) for index in nowhere]
            bad, rows = _in_order(batch.ids, [*bad, *new]), rows[found.finite]
        columns = found.finite_columns() if len(rows) else None
    return Answered(
        end=taken.end,
        columns=columns,
        unreadable=bad,
        digest=taken.digest,
        rows=rows if how.keep_rows else None,
        decode_seconds=taken.seconds,
        run_seconds=time.perf_counter() - begin,
    )


def _in_order(ids: Sequence[str], items: Sequence[Unreadable]) -> list[Unreadable]:
    at = {one: index for index, one in enumerate(ids)}
    return sorted(items, key=lambda item: at[item.id])
