"""Train the trials of a search, one after the other here or side by side in processes.

A trial writes nothing, and the test set is not even opened: settings that were chosen by it would
make its figures worthless. Processes share the cores. They receive settings and send epochs;
whatever happens to one of them costs one trial.
"""

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from tqdm import tqdm

from pipeline.config.experiment import Experiment
from pipeline.errors import ConfigError, DivergedError
from pipeline.records.ready import open_manifest
from pipeline.records.train import Epoch
from pipeline.records.tune import Setting
from pipeline.training.distributed import Team, choose_device
from pipeline.training.setup import prepare
from pipeline.training.tuning.search import apply
from serving.errors import FerryError
from serving.runtime.cores import end_with_parent, start_without_ctrl_c


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialJob:
    """What all trials of a search share."""

    data: Path
    weights: Path
    """Where the experiment's own weights belong; those of `train.init_from` lie beside."""
    experiment: Experiment
    neighbours: int
    """Trials that run at the same time and share the cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOutcome:
    """How a trial ended."""

    state: str
    """"complete", "pruned", "diverged" or "failed"."""
    reason: str | None
    epochs: tuple[Epoch, ...]
    seconds: float


def run(
    job: TrialJob, settings: Mapping[str, Setting], worth_going_on: Callable[[Epoch], bool]
) -> TrialOutcome:
    """Train with some settings changed; `worth_going_on` is asked after each epoch.

    A loss that is not a number and settings that do not fit together end the trial alone. What
    would stop every trial is raised: MissingInputError, IntegrityError and UsageError.
    """
    start = time.perf_counter()
    epochs: list[Epoch] = []
    state = "complete"
    reason = None
    try:
        changed = apply(job.experiment, settings, open_manifest(job.data))
        if not _train(job, changed, epochs, worth_going_on):
            state = "pruned"
    except DivergedError as error:
        state, reason = "diverged", str(error)
    except ConfigError as error:
        state, reason = "failed", str(error)
    seconds = time.perf_counter() - start
    return TrialOutcome(state=state, reason=reason, epochs=tuple(epochs), seconds=seconds)


def _train(
    job: TrialJob,
    experiment: Experiment,
    epochs: list[Epoch],
    worth_going_on: Callable[[Epoch], bool],
) -> bool:
    """Run the epochs, each of which is added to `epochs`; False when the trial was cut short."""
    team = Team(device=choose_device(experiment.train.device), neighbours=job.neighbours)
    loop = prepare(job.data, job.weights, experiment, team).loop
    while not loop.ended:
        epoch = loop.run_epoch()
        epochs.append(epoch)
        if not worth_going_on(epoch) and not loop.ended:
            return False
    return True


# A fresh interpreter: threads of torch and CUDA do not survive a fork.
SPAWN = multiprocessing.get_context("spawn")


class TrialWorker:
    """One process, and the trial that it has in hand."""

    def __init__(self, job: TrialJob) -> None:
        """Start it."""
        self._job = job
        self.trial: int | None = None
        """The number of the trial in hand."""
        self._process, self.connection = _start(job)
        """And what to wait for until there is something to receive."""

    def begin(self, number: int, settings: Mapping[str, Setting]) -> None:
        """Give it a trial."""
        self.trial = number
        with contextlib.suppress(OSError):  # it is dead, and `receive` says so
            self.connection.send(settings)

    def receive(self) -> Epoch | TrialOutcome:
        """Its next message; after an epoch it waits for `answer`.

        A process that died, for want of memory say, is a failed trial, and is started again. Raises
        FerryError for what would stop every trial.
        """
        try:
            message: Epoch | TrialOutcome | FerryError = self.connection.recv()
        except (EOFError, OSError):
            return self._restarted()
        if isinstance(message, FerryError):
            raise message
        return message

    def answer(self, *, go_on: bool) -> None:
        """Say whether the trial goes on."""
        with contextlib.suppress(OSError):
            self.connection.send(go_on)

    def stop(self) -> None:
        """End it at once, whatever it does."""
        self._process.terminate()
        self._process.join()
        self.connection.close()

    def _restarted(self) -> TrialOutcome:
        self._process.join()
        reason = f"its process ended with status {self._process.exitcode}"
        self.connection.close()
        self._process, self.connection = _start(self._job)
        return TrialOutcome(state="failed", reason=reason, epochs=(), seconds=0.0)


@contextlib.contextmanager
def workers(job: TrialJob, count: int) -> Iterator[list[TrialWorker]]:
    """Some workers, all of which are stopped at the end."""
    with contextlib.ExitStack() as stack:
        started = [TrialWorker(job) for _ in range(count)]
        for worker in started:
            stack.callback(worker.stop)
        yield started


def _start(job: TrialJob) -> tuple[SpawnProcess, Connection]:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_work, args=(theirs, job), daemon=True)
    start_without_ctrl_c(process)
    theirs.close()
    return process, ours


def _work(connection: Connection, job: TrialJob) -> None:
    """Train what is asked for until nobody asks any more."""
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which outlives a process
    end_with_parent()

    def worth_going_on(epoch: Epoch) -> bool:
        connection.send(epoch)
        return bool(connection.recv())

    with contextlib.suppress(EOFError):
        while True:
            settings = connection.recv()
            try:
                connection.send(run(job, settings, worth_going_on))
            except FerryError as error:
                connection.send(FerryError(str(error)))
