"""Processes that train the trials of a search side by side, each on its share of the cores.

They are told settings and tell epochs, as JSON; whatever happens to one of them costs one trial.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from tqdm import tqdm

from pipeline.epoch import Epoch
from pipeline.errors import FerryError
from pipeline.records.tune import Setting
from pipeline.tuning.trial import Job, Outcome, run
from serving.files import dump_json
from serving.records import read_record

__all__ = ["Worker", "workers"]

# A fresh interpreter: threads of torch and CUDA do not survive a fork.
SPAWN = multiprocessing.get_context("spawn")


class Worker:
    """One process, and the trial that it has in hand."""

    def __init__(self, job: Job) -> None:
        """Start it."""
        self._job = job
        self.trial: int | None = None
        """The number of the trial in hand."""
        self._process, self._connection = _start(job)

    @property
    def ready(self) -> Connection:
        """What to wait for until there is something to receive."""
        return self._connection

    def begin(self, number: int, settings: Mapping[str, Setting]) -> None:
        """Give it a trial."""
        self.trial = number
        with contextlib.suppress(OSError):  # it is dead, which `receive` tells
            self._connection.send_bytes(json.dumps(settings).encode())

    def receive(self) -> Epoch | Outcome:
        """What it has to tell; after an epoch it waits for `answer`.

        A process that died, for want of memory say, is a failed trial, and is started again. Raises
        FerryError for what would stop every trial.
        """
        try:
            message = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            return self._restarted()
        match message:
            case {"epoch": content}:
                return read_record(Epoch, content, "an epoch")
            case {"outcome": content}:
                return read_record(Outcome, content, "an outcome")
        raise FerryError(message["error"])

    def answer(self, *, go_on: bool) -> None:
        """Say whether the trial goes on."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(json.dumps(go_on).encode())

    def stop(self) -> None:
        """End it at once, whatever it does."""
        self._process.terminate()
        self._process.join()
        self._connection.close()

    def _restarted(self) -> Outcome:
        self._process.join()
        reason = f"its process ended with status {self._process.exitcode}"
        self._connection.close()
        self._process, self._connection = _start(self._job)
        return Outcome(state="failed", reason=reason, epochs=(), seconds=0.0)


@contextlib.contextmanager
def workers(job: Job, count: int) -> Iterator[list[Worker]]:
    """Some workers, all of which are stopped at the end."""
    with contextlib.ExitStack() as stack:
        started = [Worker(job) for _ in range(count)]
        for worker in started:
            stack.callback(worker.stop)
        yield started


def _start(job: Job) -> tuple[SpawnProcess, Connection]:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_work, args=(theirs, job), daemon=True)
    # Ctrl-C reaches the whole group; the one that started the others ends them.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    theirs.close()
    return process, ours


def _work(connection: Connection, job: Job) -> None:
    """Train what is asked for until nobody asks any more."""
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which outlives a process
    threading.Thread(target=_end_with_the_parent, daemon=True).start()

    def worth_going_on(epoch: Epoch) -> bool:
        _send(connection, {"epoch": epoch})
        wanted: bool = json.loads(connection.recv_bytes())
        return wanted

    with contextlib.suppress(EOFError):
        while True:
            settings = _settings(json.loads(connection.recv_bytes()))
            try:
                _send(connection, {"outcome": run(job, settings, worth_going_on)})
            except FerryError as error:
                _send(connection, {"error": str(error)})


def _end_with_the_parent() -> None:
    """A killed parent cannot stop its children, and their trials are nobody's."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _send(connection: Connection, message: object) -> None:
    connection.send_bytes(dump_json(message).encode())


def _settings(raw: dict[str, Any]) -> dict[str, Setting]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
