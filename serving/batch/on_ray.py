"""The engine on a cluster of Ray: the same chunks, cut and answered by actors of Ray Data.

No row passes through the program that started the run: an actor gets the place of a chunk, opens
the inputs itself, and sends the answers back. So every machine must see the inputs and the model
under the same names, and have ferry installed. The answers come back in order, into the same
shards.
"""

import logging
import socket
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.batch.engine import Answered, AnswerOptions, Work, answered, decoded
from serving.errors import EngineError, ModelError, UsageError
from serving.inputs.inputs import Inputs
from serving.inputs.sources import Chunk
from serving.model import Model, open_model
from serving.runtime.cores import allowed_cores
from serving.runtime.settings import GPU_PROVIDERS, SessionSettings

Array = npt.NDArray[Any]

ANSWER_SECONDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What an actor needs to begin."""

    model: Path
    model_sha256: str
    provider: str
    settings: SessionSettings
    inputs: Inputs
    how: AnswerOptions
    chunk_rows: int


def answers(model: Model, work: Work, *, address: str | None) -> Generator[Answered]:
    """The answers to all chunks, in their order, from `work.workers` actors.

    Raises UsageError for a stream, which only one process can read, and EngineError when a cluster
    cannot be had or an actor fails.
    """
    import ray

    if work.inputs.fingerprint() is None:
        raise UsageError("--engine ray reads files; a stream is for the engine on this machine")
    task = Task(
        model=model.path.resolve(),
        model_sha256=model.session.sha256,
        provider=model.session.provider,
        settings=model.session.settings,
        inputs=work.inputs,
        how=work.how,
        chunk_rows=work.chunk_rows,
    )
    places = [
        {"source": number, "start": chunk.start, "count": chunk.count}
        for number, chunk in work.chunks
    ]
    if not places:
        return
    _connect(ray, address, work.workers)
    try:
        data = ray.data.from_items(places, override_num_blocks=len(places))
        answered_places = data.map_batches(
            Actor,
            fn_constructor_args=(task,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=work.workers),
            num_cpus=1,
            num_gpus=1 if model.session.provider in GPU_PROVIDERS else 0,
        )
        for batch in answered_places.iter_batches(batch_size=None, prefetch_batches=1):
            yield from batch["answered"]
    except ray.exceptions.RayError as error:
        raise EngineError(f"Ray: {_last_line(error)}") from error
    finally:
        ray.shutdown()


class Actor:
    """One process of the cluster, with a session of its own."""

    def __init__(self, task: Task) -> None:
        """Open the model; raises ModelError when it is not the one that the run was begun with."""
        self._task = task
        one_at_a_time = replace(task.settings, parallel=1)
        self._model = open_model(task.model, provider=task.provider, settings=one_at_a_time)
        if self._model.session.sha256 != task.model_sha256:
            raise ModelError(f"{task.model} is another model here than where the run was begun")
        self._cutters: dict[int, Cutter] = {}

    def __call__(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Answer the chunks that `batch` names by source, start and count."""
        places = zip(batch["source"], batch["start"], batch["count"], strict=True)
        made = np.empty(len(batch["start"]), object)
        for index, (source, start, count) in enumerate(places):
            made[index] = self._answered(int(source), int(start), int(count))
        return {"answered": made}

    def _answered(self, number: int, start: int, count: int) -> Answered:
        cutter = self._cutters.setdefault(number, Cutter(self._task, number))
        chunk = replace(cutter.chunk(start), count=count)
        return answered(self._model, self._task.how, decoded(self._task.inputs, number, chunk))


@dataclass(slots=True)
class Cutter:
    """Cuts the chunks of a source that are asked for, nearly always in their order."""

    task: Task
    number: int
    _chunks: Iterator[Chunk] = field(default_factory=lambda: iter(()))
    _next: int | None = None

    def chunk(self, start: int) -> Chunk:
        """The chunk that begins with the row `start`."""
        if self._next is None or start < self._next:
            self._begin(start)
        for chunk in self._chunks:
            self._next = chunk.start + chunk.count
            if chunk.start == start:
                return chunk
        raise ModelError(f"the input has no row {start} any more; it changed during the run")

    def _begin(self, start: int) -> None:
        source = self.task.inputs.sources[self.number]
        self._chunks = source.chunks(self.task.chunk_rows, start)
        self._next = start


def _connect(ray: Any, address: str | None, workers: int) -> None:
    """Join a cluster, or start one on this machine that ends with the run."""
    local: dict[str, Any] = {}
    if address is None:
        local = {"num_cpus": max(workers, allowed_cores()), "include_dashboard": False}
    else:
        _refuse_silent(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = address or "this machine"
        raise EngineError(f"Ray cannot be reached at {where}: {_last_line(error)}") from error
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it prints its plan at every run


def _refuse_silent(address: str) -> None:
    """Raise EngineError when nobody answers at HOST:PORT; Ray would go on asking for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto", and what Ray itself refuses
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise EngineError(f"Ray cannot be reached at {address}: {error.strerror}") from error


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
