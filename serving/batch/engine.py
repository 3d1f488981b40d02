"""From chunks to their answers, in the order of the rows and with bounded memory.

On this machine batches run side by side in threads, which ONNX Runtime leaves free while it
computes, and each decodes its rows before it runs them: OpenCV leaves Python free as well. Many
images without OpenCV, or more threads than Python can lead, are decoded in processes of their own.

On a cluster of Ray the same chunks are cut and answered by actors. No row passes
through the program that started the run: an actor gets the place of a chunk, opens the inputs
itself, and sends the answers back. So every machine must see the inputs and the model under the
same names, and have ferry installed.
"""

import functools
import itertools
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from serving.batch.answers import ID, Columns, answer
from serving.batch.run import Chunks, PredictOptions, PredictRun
from serving.drift import FIRST_ROWS
from serving.errors import EngineError, ModelError
from serving.inputs.inputs import Inputs, Place
from serving.inputs.sources import Batch, Chunk, Lost, RowSource, UnreadableRow
from serving.model import Model, open_model
from serving.runtime import guard
from serving.runtime.cores import (
    AHEAD,
    allowed_cores,
    end_with_parent,
    ordered_map,
    ordered_results,
)
from serving.runtime.settings import GPU_PROVIDERS, SessionSettings
from serving.runtime.tensors import Array

NOT_FINITE = "the model gave what is not a finite number"
PROCESSES_PAY = 2000
"""From so many images on, decoding takes longer than starting processes."""
THREADS_DO = 4
"""So many threads can decode at a time: of an image of 28x28, Python itself needs a fifth."""
GRACE_SECONDS = 5
"""How long a decoding process that has to end goes on with the chunks in hand."""
ANSWER_SECONDS = 5
"""How long a cluster may take to answer at all."""
MOST_AHEAD = 8
"""Chunks for each actor that may be on their way at a time, so that one can be slow."""
LEAVE_SECONDS = 1
"""How long a run that ends early waits for the chunks that actors have in hand."""
RESTARTS = 3
"""How often an actor begins again, and its chunk with it, when its process or machine is lost."""
INPUTS: list[Inputs] = []
"""The inputs that this decoding process was started with."""


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
    """The rows that were answered, where they are held against the training data."""
    notes: frozenset[str]
    """What is to be told once of how they were read."""
    decode_seconds: float
    run_seconds: float

    @property
    def count(self) -> int:
        """The rows that were answered."""
        return len(self.columns[ID]) if self.columns else 0


def answers(run: PredictRun, chunks: Chunks, before: int) -> Generator[Answered]:
    """The answers to chunks after so many rows, in order; EngineError if a decoder dies."""
    answer_one, rows = functools.partial(_answered_in_turn, run), run.count(before)
    numbered = _numbered(chunks, before, lambda item: item[1].count)
    if guard.careful() is not None:  # each is written before the next, which may end this process
        yield from (answer_one((at, decoded(run.inputs, *item))) for at, item in numbered)
        return
    # One chunk needs no threads.
    workers = 1 if rows is not None and rows <= run.chunk_rows else run.workers
    if workers == 1 or not _decodes_in_processes(run, rows):
        # One worker has a thread as well: in the main one a long batch would hold up signals.
        threads = ThreadPoolExecutor(workers)
        try:
            yield from ordered_results(
                threads,
                lambda item: answer_one((item[0], decoded(run.inputs, *item[1]))),
                numbered,
                parallel=workers,
            )
        finally:
            # Of a run that ends early a batch may never end: what was answered is still written.
            threads.shutdown(wait=False, cancel_futures=True)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    # Not forked: the threads of ONNX Runtime would not come along, but their locks would.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(run.inputs,)) as pool:
        try:
            batches = ordered_results(pool, _decode_there, chunks, parallel=workers)
            there = _numbered(batches, before, lambda taken: len(taken.batch.ids))
            yield from ordered_map(answer_one, there, parallel=workers)
        except BrokenProcessPool as error:
            raise EngineError(
                "a process that decoded images died; the memory may be too small for --workers "
                f"{workers}, or the script that called has no `if __name__ == '__main__':`"
            ) from error


Item = TypeVar("Item")


def _numbered(
    items: Iterable[Item], before: int, rows_of: Callable[[Item], int]
) -> Iterator[tuple[int, Item]]:
    """Each item with the number of rows before it."""
    for item in items:
        yield before, item
        before += rows_of(item)


def _answered_in_turn(run: PredictRun, item: tuple[int, Decoded]) -> Answered:
    """The answers to a chunk; ModelError for one whose batch did not end in an earlier process."""
    before, taken = item
    guard.batches_from(before, run.batch_rows)
    fatal = guard.fatal_row()
    if fatal is not None and before <= fatal < before + len(taken.batch.ids):
        raise ModelError(guard.too_long(f"batch {fatal // run.batch_rows + 1}"))
    return answered(run.model, run.options, taken)


def _decodes_in_processes(run: PredictRun, rows: int | None) -> bool:
    slow = any(source.slow for source in run.inputs.sources)
    if not slow or (rows is not None and rows < PROCESSES_PAY):
        return False
    from serving.inputs.decoding import opencv

    return run.workers > THREADS_DO or opencv() is None


def decoded(inputs: Inputs, number: int, chunk: Chunk) -> Decoded:
    """The rows of a chunk of the source `number`; raises what the source does."""
    begin = time.perf_counter()
    batch = inputs.decode(number, chunk)
    return Decoded(
        batch=batch,
        end=inputs.after(number, chunk),
        digest=chunk.digest,
        seconds=time.perf_counter() - begin,
    )


def answered(model: Model, options: PredictOptions, taken: Decoded) -> Answered:
    """Run a model on a batch. Rows that give numbers that are not finite become unreadable."""
    begin = time.perf_counter()
    batch = taken.batch
    bad, rows, ids = batch.unreadable, batch.rows, batch.readable_ids
    columns: Columns | None = None
    if len(rows):
        found = answer(
            model,
            ids,
            rows,
            batch_rows=options.batch_rows,
            all_classes=options.probabilities,
            top_k=options.top_k,
        )
        nowhere = np.flatnonzero(~found.finite)
        if len(nowhere):
            bad += [UnreadableRow(ids[int(index)], NOT_FINITE) for index in nowhere]
            order = {one: index for index, one in enumerate(batch.ids)}
            bad.sort(key=lambda item: order[item.id])
            rows = rows[found.finite]
        columns = found.finite_columns() if len(rows) else None
    return Answered(
        end=taken.end,
        columns=columns,
        unreadable=bad,
        digest=taken.digest,
        rows=rows if _are_checked(options, taken) else None,
        notes=batch.notes,
        decode_seconds=taken.seconds,
        run_seconds=time.perf_counter() - begin,
    )


def _are_checked(options: PredictOptions, taken: Decoded) -> bool:
    """Whether rows are held against the training data: by default some of the first ones."""
    if options.reference is None:
        return taken.end.row - len(taken.batch.ids) < FIRST_ROWS
    return options.reference


# Decoding processes


def _begin(inputs: Inputs) -> None:
    """Make a decoding process ready."""
    # Both signals are often for the whole group; the run still waits for the chunks in hand.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_soon)
    end_with_parent()
    INPUTS.append(inputs)


def _end_soon(_number: int, _frame: object) -> None:
    end = threading.Timer(GRACE_SECONDS, os._exit, (1,))
    end.daemon = True
    end.start()


def _decode_there(item: tuple[int, Chunk]) -> Decoded:
    return decoded(INPUTS[0], *item)


# A cluster of Ray


def answers_of_cluster(run: PredictRun, chunks: Chunks) -> Generator[Answered]:
    """The answers to chunks in their order, from as many actors as the run has workers.

    Raises EngineError when a cluster cannot be had or an actor fails.
    """
    ray = import_ray(run.options.ray_address)
    first = next(chunks, None)
    if first is None:
        return
    _connect(ray, run.options.ray_address, run.workers)
    try:
        actors, kept = _actors(ray, run), [ray.put(run.inputs)]
        yield from _spread(ray, actors, kept, itertools.chain([first], chunks))
    except ray.exceptions.RayError as error:
        raise EngineError(f"Ray: {_last_line(error)}") from error
    finally:
        ray.shutdown()


def _actors(ray: Any, run: PredictRun) -> list[Any]:
    """One for each worker; those for which the cluster has no room yet start later."""
    model, session = run.model.path.resolve(), run.model.session
    settings = replace(session.settings, parallel=1)
    remote = ray.remote(Actor).options(
        num_cpus=1,
        num_gpus=1 if run.options.provider in GPU_PROVIDERS else 0,
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
    )
    given = (model, session.sha256, settings, run.options, run.chunk_rows)
    return [remote.remote(*given) for _ in range(run.workers)]


def _spread(
    ray: Any, actors: Sequence[Any], kept: Sequence[Any], chunks: Chunks
) -> Generator[Answered]:
    """The answers in order; an actor that is free gets the next chunk, so a slow one gets fewer."""
    # One in work for each, and one that waits; these first ones only show that an actor is there.
    last = {actor.answer.remote(kept): actor for actor in actors for _ in range(AHEAD)}
    waiting: deque[Any] = deque()
    try:
        for number, chunk in chunks:
            (done,), _others = ray.wait(list(last))
            actor = last.pop(done)
            content = chunk.content if isinstance(chunk.content, Lost) else None
            waiting.append(actor.answer.remote(kept, (number, replace(chunk, content=content))))
            last[waiting[-1]] = actor
            if len(waiting) == MOST_AHEAD * len(actors):
                yield from ray.get(waiting.popleft())
        for one in waiting:
            yield from ray.get(one)
    finally:
        # Ray complains of what is in work when it is left; that ends soon.
        ray.wait(list(last), num_returns=len(last), timeout=LEAVE_SECONDS)


class Actor:
    """One process of the cluster, with a session of its own."""

    def __init__(
        self,
        model: Path,
        sha256: str,
        settings: SessionSettings,
        options: PredictOptions,
        chunk_rows: int,
    ) -> None:
        """Open the model; raises ModelError when it is not the one that the run was begun with."""
        self._model = open_model(
            model,
            provider=options.provider,
            settings=settings,
            task=options.task,
            shared=options.shared,
        )
        if self._model.session.sha256 != sha256:
            raise ModelError(f"{model} is another model here than where the run was begun")
        self._options, self._chunk_rows = options, chunk_rows
        self._inputs: Inputs | None = None
        self._cutters: Sequence[Cutter] = ()

    def answer(self, kept: Sequence[Any], *places: tuple[int, Chunk]) -> list[Answered]:
        """Answer chunks, of which only what is lost has its content with it.

        `kept` holds the reference to the inputs, which the cluster keeps once for all actors.
        """
        if self._inputs is None:
            import ray

            self._inputs = opened = cast("Inputs", ray.get(kept[0]))
            self._cutters = [Cutter(source, self._chunk_rows) for source in opened.sources]
        taken = [self._read(self._inputs, *place) for place in places]
        return [answered(self._model, self._options, one) for one in taken]

    def _read(self, inputs: Inputs, number: int, chunk: Chunk) -> Decoded:
        if not isinstance(chunk.content, Lost):
            chunk = replace(self._cutters[number].chunk(chunk.start), count=chunk.count)
        return decoded(inputs, number, chunk)


@dataclass(slots=True)
class Cutter:
    """Cuts the chunks of a source that are asked for, nearly always in their order."""

    source: RowSource
    chunk_rows: int
    _chunks: Iterator[Chunk] = field(default_factory=lambda: iter(()))
    _next: int | None = None

    def chunk(self, start: int) -> Chunk:
        """The chunk that begins with the row `start`."""
        if self._next is None or start < self._next:
            self._chunks = self.source.chunks(self.chunk_rows, start)
        for chunk in self._chunks:
            self._next = chunk.start + chunk.count
            if chunk.start == start:
                return chunk
        raise ModelError(f"the input has no row {start} any more; it changed during the run")


def import_ray(address: str | None) -> Any:
    """Ray; a cluster that it starts, where `address` is None, listens on this machine alone."""
    if address is None:
        # Else its ports are open to the network, and whoever reaches them can run code. Ray reads
        # this when it is imported: it keeps a cluster to 127.0.0.1, by default on macOS only.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    return ray


def _connect(ray: Any, address: str | None, workers: int) -> None:
    """Join a cluster, or start one on this machine that ends with the run."""
    local: dict[str, Any] = {}
    if address is None:
        local = {"num_cpus": max(workers, allowed_cores()), "include_dashboard": False}
    else:
        _refuse_silent(address)
    at_end = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = address or "this machine"
        raise EngineError(f"Ray cannot be reached at {where}: {_last_line(error)}") from error
    if threading.current_thread() is threading.main_thread():
        # Not Ray's own, which ends the run with its shard half done.
        signal.signal(signal.SIGTERM, at_end)


def _refuse_silent(address: str) -> None:
    """Raise EngineError when nobody answers at HOST:PORT; Ray would go on asking for minutes."""
    import socket

    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto", and what Ray itself refuses
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise EngineError(f"Ray cannot be reached at {address}: {error.strerror}") from error


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
