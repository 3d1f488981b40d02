"""From chunks to their answers on this machine, in the order of the rows and with bounded memory.

Batches run side by side in threads, which ONNX Runtime leaves free while it computes. Many images
are decoded in processes of their own, because Python decodes in one thread at a time; everything
else is decoded in the thread that runs it. `decoded` and `answered` are the two steps; a cluster
takes the same ones, so that both write the same rows.
"""

import functools
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from serving.batch.answers import ID, Columns, answer
from serving.errors import EngineError
from serving.inputs.inputs import Inputs, Place
from serving.inputs.sources import Batch, Chunk, UnreadableRow
from serving.model import Model
from serving.runtime.cores import ordered_map, ordered_results

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

Array = npt.NDArray[Any]
NOT_FINITE = "the model gave what is not a finite number"
PROCESSES_PAY = 2000
"""From so many images on, decoding takes longer than starting processes."""
GRACE_SECONDS = 5
"""How long a decoding process that has to end goes on with the chunks in hand."""
INPUTS: list[Inputs] = []
"""The inputs that this decoding process was started with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """How batches are answered."""

    batch_rows: int
    probabilities: bool
    top_k: int | None
    keep_rows: bool
    """Whether the rows come with their answers, for the drift check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a run has to do."""

    inputs: Inputs
    chunks: Iterator[tuple[int, Chunk]]
    """The chunks that are left, each with the number of its source."""
    count: int | None
    """Their rows; None where only reading them all would show."""
    how: AnswerOptions
    chunk_rows: int
    """What the chunks were cut to."""
    workers: int
    """Batches at a time, and decoding processes."""


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
    """The answers; None where no row was answered."""
    unreadable: Sequence[UnreadableRow]
    """The others, in order."""
    digest: str | None
    """The chunk's."""
    rows: Array | None
    """The rows that were answered, where they are kept."""
    decode_seconds: float
    run_seconds: float

    @property
    def count(self) -> int:
        """The rows that were answered."""
        return len(self.columns[ID]) if self.columns else 0


def answers(model: Model, work: Work) -> Generator[Answered]:
    """The answers to all chunks, in their order.

    Raises what the sources and the model raise, and EngineError when a decoding process dies.
    """
    run = functools.partial(answered, model, work.how)
    processes = work.workers if _processes_pay(work) else 0
    if not processes:
        yield from ordered_map(
            lambda item: run(decoded(work.inputs, *item)), work.chunks, parallel=work.workers
        )
        return
    from concurrent.futures.process import BrokenProcessPool

    with _decoders(work.inputs, processes) as pool:
        try:
            batches = ordered_results(pool, _decode_there, work.chunks, parallel=processes)
            yield from ordered_map(run, batches, parallel=work.workers)
        except BrokenProcessPool as error:
            raise EngineError(
                "a process that decoded images died; the memory may be too small for --workers "
                f"{processes}, or the script that called has no `if __name__ == '__main__':`"
            ) from error


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


def answered(model: Model, how: AnswerOptions, taken: Decoded) -> Answered:
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
            new = [UnreadableRow(ids[int(index)], NOT_FINITE) for index in nowhere]
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


def _in_order(ids: Sequence[str], items: Sequence[UnreadableRow]) -> list[UnreadableRow]:
    at = {one: index for index, one in enumerate(ids)}
    return sorted(items, key=lambda item: at[item.id])


def _processes_pay(work: Work) -> bool:
    slow = any(source.slow for source in work.inputs.sources)
    return slow and work.workers > 1 and (work.count is None or work.count >= PROCESSES_PAY)


def _decoders(inputs: Inputs, processes: int) -> "ProcessPoolExecutor":
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Not forked: the threads of ONNX Runtime would not come along, but their locks would.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(inputs,))


def _begin(inputs: Inputs) -> None:
    """Make a decoding process ready."""
    # Both signals are often for the whole group; the run still waits for the chunks in hand.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_soon)
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    INPUTS.append(inputs)


def _end_soon(_number: int, _frame: object) -> None:
    end = threading.Timer(GRACE_SECONDS, os._exit, (1,))
    end.daemon = True
    end.start()


def _end_with_the_run() -> None:
    """End the process when the one that started it is gone, even if it was killed."""
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decode_there(item: tuple[int, Chunk]) -> Decoded:
    return decoded(INPUTS[0], *item)
