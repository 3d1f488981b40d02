"""One training of a search: settings in, how far it came on validation out. It writes nothing.

The test set is not even opened: settings that were chosen by it would make its figures worthless.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pipeline.config import Experiment
from pipeline.epoch import Epoch
from pipeline.errors import ConfigError, DivergedError
from pipeline.records.tune import Setting
from pipeline.train import choose_device
from pipeline.training.distributed import Team
from pipeline.training.setup import prepare
from pipeline.tuning.search import apply

__all__ = ["Job", "Outcome", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What all trials of a search share."""

    data: Path
    weights: Path
    """Where the experiment's own weights belong; those of `train.init_from` lie beside."""
    experiment: Experiment
    neighbours: int
    """Trials that run at the same time and share the cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a trial ended."""

    state: str
    """"complete", "pruned", "diverged" or "failed"."""
    reason: str | None
    epochs: tuple[Epoch, ...]
    seconds: float


def run(
    job: Job, settings: Mapping[str, Setting], worth_going_on: Callable[[Epoch], bool]
) -> Outcome:
    """Train with some settings changed; `worth_going_on` is asked after each epoch.

    A loss that is not a number and settings that do not fit together end the trial alone. What
    would stop every trial is raised: MissingInputError, IntegrityError and UsageError.
    """
    start = time.perf_counter()
    epochs: list[Epoch] = []
    state = "complete"
    reason = None
    try:
        if not _train(job, apply(job.experiment, settings), epochs, worth_going_on):
            state = "pruned"
    except DivergedError as error:
        state, reason = "diverged", str(error)
    except ConfigError as error:
        state, reason = "failed", str(error)
    seconds = time.perf_counter() - start
    return Outcome(state=state, reason=reason, epochs=tuple(epochs), seconds=seconds)


def _train(
    job: Job,
    experiment: Experiment,
    epochs: list[Epoch],
    worth_going_on: Callable[[Epoch], bool],
) -> bool:
    """Run the epochs, each of which is added to `epochs`; False when the trial was cut short."""
    team = Team(device=choose_device(experiment.train.device), neighbours=job.neighbours)
    loop = prepare(job.data, job.weights, experiment, team).loop
    with tqdm(disable=True) as bar:
        while not loop.ended:
            epoch = loop.run_epoch(bar)
            epochs.append(epoch)
            if not worth_going_on(epoch) and not loop.ended:
                return False
    return True
