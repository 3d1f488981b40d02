"""Bound memory for batches of one size, lent to one thread at a time.

`serving.binding` binds; here any number of threads ask for answers, and each gets its own copy.
"""

import queue
from typing import Any

import numpy.typing as npt

from serving.binding import Bound, bind
from serving.session import Session, TensorInfo

__all__ = ["BoundPool", "can_bind"]

Array = npt.NDArray[Any]


def can_bind(session: Session) -> bool:
    """Whether memory for a batch size can be bound once: arrays of numbers, free in the first axis.

    An output with another free axis may have another shape for other rows.
    """
    return all(_is_plain(info) for info in (*session.inputs, *session.outputs))


class BoundPool:
    """A session with memory for as many calls at a time as its settings say."""

    def __init__(self, session: Session, batch_size: int) -> None:
        """Bind nothing yet: memory is bound when it is first needed."""
        self.batch_size = batch_size
        self._session = session
        self._idle: queue.LifoQueue[Bound | None] = queue.LifoQueue()
        for _ in range(session.settings.parallel):
            self._idle.put(None)

    def run(self, name: str, rows: Array) -> dict[str, Array]:
        """The outputs for a full batch of the input `name`; waits while all memory is in use.

        Raises InputError when the model refuses.
        """
        bound = self._idle.get()
        try:
            if bound is None:
                bound = bind(self._session, {name: rows})
            bound.inputs[name][...] = rows
            return {output: array.copy() for output, array in bound.run().items()}
        finally:
            self._idle.put(bound)


def _is_plain(info: TensorInfo) -> bool:
    is_array = not info.is_text and "(" not in info.dtype  # as in "seq(map(int64,tensor(float)))"
    return is_array and bool(info.shape) and all(isinstance(axis, int) for axis in info.shape[1:])
