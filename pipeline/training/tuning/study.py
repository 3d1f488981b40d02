"""Optuna, and the only place that imports it: a study in a file, which outlives a killed search.

One process writes the file, the one that holds its lock; those that train only talk to that one.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock, Timeout
from optuna import distributions
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from pipeline.config.experiment import Experiment, Interval
from pipeline.records.train import Epoch
from pipeline.records.tune import Setting, Trial
from pipeline.training.tuning.search import combinations
from serving.errors import IntegrityError, UsageError
from serving.files import write_bytes

Sampler = Literal["grid", "random", "tpe"]
RESULT, UNCOUNTED, RUN = "result", "uncounted", "run_id"
STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "diverged": TrialState.PRUNED,  # what is known of it counts against its settings
    "failed": TrialState.FAIL,
}
TRIALS_BEFORE_PRUNING = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """How a search goes about it."""

    trials: int
    """In total, those of earlier commands included."""
    sampler: Sampler = "tpe"
    pruner: Literal["median", "none"] = "median"
    jobs: int = 1
    """Processes that train at the same time."""
    timeout: float | None = None
    """Seconds after which no trial begins."""
    seed: int = 1
    """Of the sampler; the trainings keep the experiment's."""
    fresh: bool = False
    """Whether the trials of earlier commands are forgotten."""


class Study:
    """The trials of one search, in `FOLDER/study.journal`."""

    def __init__(self, folder: Path, name: str, experiment: Experiment, plan: SearchPlan) -> None:
        """Open the study of that name, or begin it.

        Trials that an earlier command left running are marked as failed and tried again. Raises
        UsageError while another process has the file, and IntegrityError for one that is damaged.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name = name
        self._plan = plan
        self._experiment = experiment
        self._running: dict[int, optuna.Trial] = {}
        self._lock = _locked(folder)
        self._journal = folder / "study.journal"
        with contextlib.ExitStack() as stack:
            stack.callback(self._lock.release)
            self._study = _opened(_storage(self._journal), name, experiment, plan)
            self._give_back(self._frozen(TrialState.RUNNING))
            stack.pop_all()  # it is open: `close` releases

    def close(self) -> None:
        """Note that what still runs is to be tried again, and let others have the file."""
        _unlock(self._journal)  # Ctrl-C may have come right behind the line that took it
        self._give_back([trial for trial in self._frozen() if trial.number in self._running])
        self._lock.release()

    @property
    def run_id(self) -> str | None:
        """The MLflow run that records the study."""
        return self._study.user_attrs.get(RUN)

    @run_id.setter
    def run_id(self, run_id: str | None) -> None:
        if run_id != self.run_id:
            self._study.set_user_attr(RUN, run_id)

    @property
    def running(self) -> int:
        """How many trials run now."""
        return len(self._running)

    def trials(self) -> tuple[Trial, ...]:
        """The trials that have ended, by number, but those that were interrupted."""
        ended = [one for one in self._frozen() if RESULT in one.user_attrs and _counts(one)]
        return tuple(_record(one) for one in ended)

    def interrupted(self) -> int:
        """How many trials were interrupted, and tried again."""
        return sum(one.user_attrs.get(UNCOUNTED) == "interrupted" for one in self._frozen())

    @property
    def exhausted(self) -> bool:
        """Whether every combination of the listed values was begun; never with an interval."""
        return self._is_finite and next(self._untried(), None) is None

    def ask(self) -> tuple[int, dict[str, Setting]] | None:
        """Begin a trial: its number and settings; None when nothing new is left."""
        if self.exhausted:
            return None
        if self._plan.sampler == "grid" and not self._frozen(TrialState.WAITING):
            self._study.enqueue_trial(next(self._untried()))
        tried = self._tried() if self._is_finite else []
        trial = self._draw()
        while trial.params in tried:  # a training that was done would only give the same again
            trial.set_user_attr(UNCOUNTED, "repeated")
            self._study.tell(trial, state=TrialState.FAIL)
            self._study.enqueue_trial(next(self._untried()))
            trial = self._draw()
        self._running[trial.number] = trial
        return trial.number, _decoded(trial.params)

    def report(self, number: int, epoch: Epoch) -> bool:
        """Note an epoch of a running trial; whether the trial is worth going on with.

        By accuracy on validation, or by the loss where no class is predicted.
        """
        trial = self._running[number]
        right = epoch.validation_accuracy
        trial.report(epoch.validation_loss if right is None else right, epoch.epoch)
        return not trial.should_prune()

    def tell(self, result: Trial) -> None:
        """End a trial."""
        trial = self._running.pop(result.number)
        trial.set_user_attr(RESULT, asdict(result) | {"settings": {}})
        right = result.validation_accuracy
        value = result.validation_loss if right is None else right
        complete = result.state == "complete"
        self._study.tell(trial, value if complete else None, state=STATES[result.state])

    @property
    def _is_finite(self) -> bool:
        return not any(isinstance(space, Interval) for space in self._experiment.search.values())

    def _frozen(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)

    def _tried(self) -> list[dict[str, Any]]:
        begun = [one for one in self._frozen() if one.state != TrialState.WAITING]
        return [one.params for one in begun if _counts(one)]

    def _untried(self) -> Iterator[dict[str, Any]]:
        """The combinations that are left, as Optuna has them; there must be no interval."""
        tried = self._tried()
        for settings in combinations(self._experiment):
            encoded = {key: json.dumps(value) for key, value in settings.items()}
            if encoded not in tried:
                yield encoded

    def _draw(self) -> optuna.Trial:
        # Each trial draws with a seed of its own number, so that a search that was interrupted
        # neither repeats what it drew nor draws what it would not have drawn.
        seed = (self._plan.seed * 100_003 + len(self._frozen())) % 2**32
        self._study.sampler = _sampler(self._plan, seed)
        spaces = self._experiment.search.items()
        return self._study.ask({key: _distribution(space) for key, space in spaces})

    def _give_back(self, trials: list[FrozenTrial]) -> None:
        """Mark trials as failed, and put their settings first in the queue."""
        for trial in trials:
            running = optuna.Trial(self._study, trial._trial_id)  # noqa: SLF001 - no other way to it
            running.set_user_attr(UNCOUNTED, "interrupted")
            self._study.tell(trial.number, state=TrialState.FAIL)
            self._study.enqueue_trial(trial.params)
        self._running.clear()


def _locked(folder: Path) -> FileLock:
    """Let one search have the folder: two would take each other's trials for interrupted ones.

    The lock is the operating system's, which ends with its process however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"another `ferry tune` has {folder}; wait for its end, or stop it and use --jobs"
        ) from error
    return lock


def _storage(path: Path) -> JournalStorage:
    """Open Optuna's journal, a line per event, and clear what a kill or a full disk left of it.

    Optuna skips a last line that was cut short, but writes the next one right behind it, and both
    are lost. SQLite, which needs no repair, syncs several times per event and took 20 times as
    long.
    """
    _unlock(path)
    content = path.read_bytes() if path.exists() else b""
    if not content.endswith(b"\n") and content:
        write_bytes(path, content[: content.rfind(b"\n") + 1])
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{path} is no journal of a study: {error}; remove it, and the search begins anew"
        ) from error


def _unlock(journal: Path) -> None:
    """Take away Optuna's own lock, for which it would wait 30 seconds; nobody has it: `_locked`."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)


def _opened(
    storage: JournalStorage, name: str, experiment: Experiment, plan: SearchPlan
) -> optuna.Study:
    if plan.fresh and name in [one.study_name for one in storage.get_all_studies()]:
        optuna.delete_study(study_name=name, storage=storage)
    reconstructs = experiment.train.loss == "mean_squared_error"
    return optuna.create_study(
        storage=storage,
        study_name=name,
        direction="minimize" if reconstructs else "maximize",
        load_if_exists=True,
        pruner=_pruner(experiment, plan),
    )


def _distribution(space: tuple[Setting, ...] | Interval) -> distributions.BaseDistribution:
    if not isinstance(space, Interval):
        # As text, for Optuna takes no lists and holds 1, 1.0 and true for the same.
        return distributions.CategoricalDistribution([json.dumps(choice) for choice in space])
    if isinstance(space.low, int) and isinstance(space.high, int):
        return distributions.IntDistribution(space.low, space.high, log=space.log)
    return distributions.FloatDistribution(space.low, space.high, log=space.log)


def _decoded(params: Mapping[str, Any]) -> dict[str, Setting]:
    return {key: _setting(value) for key, value in params.items()}


def _setting(value: str | float) -> Setting:
    """A setting of what Optuna drew; of numbers four digits, as a person would write them."""
    if not isinstance(value, str):
        return value if isinstance(value, int) else float(f"{value:.4g}")
    choice: Any = json.loads(value)
    return tuple(choice) if isinstance(choice, list) else choice


def _sampler(plan: SearchPlan, seed: int) -> optuna.samplers.BaseSampler:
    if plan.sampler == "tpe":
        # Of trials that run beside it a new one keeps its distance.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=plan.jobs > 1)
    return optuna.samplers.RandomSampler(seed)


def _pruner(experiment: Experiment, plan: SearchPlan) -> optuna.pruners.BasePruner:
    if plan.pruner == "none":
        return optuna.pruners.NopPruner()
    # A schedule that warms up tells little in its first quarter.
    warmup = math.ceil(experiment.epochs / 4)
    return optuna.pruners.MedianPruner(TRIALS_BEFORE_PRUNING, n_warmup_steps=warmup)


def _counts(trial: FrozenTrial) -> bool:
    return UNCOUNTED not in trial.user_attrs


def _record(trial: FrozenTrial) -> Trial:
    kept = trial.user_attrs[RESULT] | {"settings": _decoded(trial.params)}
    return Trial(**kept)
