"""`ferry tune EXPERIMENT`: train with many settings and find those that do best on validation.

Its trials are kept in a file, so that a search that was stopped, or killed, goes on where it was;
the test set is never read.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

from pipeline import tracking
from pipeline.config import fitting
from pipeline.config.experiment import Experiment
from pipeline.records import ready
from pipeline.records.train import Epoch
from pipeline.records.train import best_of as best_epoch
from pipeline.records.tune import Setting, Trial, TuneReport, best_of, settings_text
from pipeline.tracking import Tracker
from pipeline.training import taught
from pipeline.training.setup import read_source
from pipeline.training.tuning import search
from pipeline.training.tuning.study import SearchPlan, Study
from pipeline.training.tuning.workers import TrialJob, TrialOutcome, TrialWorker, run, workers
from serving.errors import FerryError
from serving.files import write_text

logger = logging.getLogger(__name__)
BEST = "best.yaml"
"""The best settings, as a part of params.yaml."""


def tune(
    data: Path,
    weights: Path,
    folder: Path,
    *,
    experiment: Experiment,
    plan: SearchPlan,
    track: bool = True,
) -> TuneReport:
    """Train with settings out of the experiment's `search` section, and compare on validation.

    `data` is the preprocessed data set; `weights`, which is not written, is where the experiment's
    own weights belong; `folder` gets the study's journal and `best.yaml`. With more than one job
    the trials run in processes that import the caller's main module, as `multiprocessing` does.

    Raises ConfigError for a search section that cannot be followed, before anything is trained;
    MissingInputError and IntegrityError for the data and for weights to begin with; UsageError
    while another process searches there; and FerryError when no trial came to its end.
    """
    manifest = ready.open_manifest(data)
    fitting.check(experiment, manifest)
    search.check(experiment, manifest)
    if plan.sampler == "grid":
        search.check_grid(experiment)
    digest = ready.digest(manifest)
    if experiment.train.init_from:
        read_source(weights, experiment.train.init_from)
    if experiment.train.teacher:
        taught.lessons(taught.read(weights, experiment.name), experiment, digest)
    name = f"{experiment.name}-{search.identity(experiment, digest)[:12]}"
    start = time.perf_counter()
    job = TrialJob(data=data, weights=weights, experiment=experiment, neighbours=plan.jobs)
    with (
        contextlib.closing(Study(folder, name, experiment, plan)) as study,
        tracking.run_of_training(
            experiment.name, study.run_id, track=track, command="tune"
        ) as tracker,
    ):
        study.run_id = tracker.run_id or study.run_id
        _describe(tracker, experiment, plan, name)
        tracker.log_data(manifest, "train", "training")
        _run(_RunningSearch(study, plan, tracker, start), job, plan.jobs)
        report = _report(study, experiment, plan, digest, time.perf_counter() - start)
        if report.best_value is not None:
            tracker.log_metrics({f"best_{report.metric}": report.best_value})
    return _kept(report, folder / BEST)


class _RunningSearch:
    """What happens between two trials: whether there is a next one, and how the last one did."""

    def __init__(self, study: Study, plan: SearchPlan, tracker: Tracker, start: float) -> None:
        self.study = study
        self._plan = plan
        self._tracker = tracker
        self._start = start
        self._settings: dict[int, Mapping[str, Setting]] = {}

    def begin(self) -> tuple[int, Mapping[str, Setting]] | None:
        """The next trial; None when there are enough, nothing is left to try or time is over."""
        done = len(self.study.trials()) + self.study.running
        timeout = self._plan.timeout
        over = timeout is not None and time.perf_counter() - self._start >= timeout
        asked = None if over or done >= self._plan.trials else self.study.ask()
        if asked is not None:
            self._settings[asked[0]] = asked[1]
        return asked

    def end(self, number: int, outcome: TrialOutcome) -> None:
        """Note how a trial ended, and log it."""
        best = best_epoch(outcome.epochs) if outcome.epochs else None
        trial = Trial(
            number=number,
            state=outcome.state,
            settings=self._settings.pop(number),
            validation_accuracy=best.validation_accuracy if best else None,
            validation_loss=best.validation_loss if best else None,
            epochs=len(outcome.epochs),
            seconds=outcome.seconds,
            reason=outcome.reason,
        )
        self.study.tell(trial)
        self._tracker.log_trial(f"trial {number}", trial.settings, outcome.epochs, trial.state)
        logger.info("%s", _line(trial, best_of(self.study.trials())))


def _run(search: _RunningSearch, job: TrialJob, jobs: int) -> None:
    if jobs > 1:
        with workers(job, jobs) as team:
            _run_beside(search, team)
        return
    while asked := search.begin():
        number, settings = asked
        search.end(number, run(job, settings, partial(search.study.report, number)))


def _run_beside(search: _RunningSearch, team: list[TrialWorker]) -> None:
    """Keep each worker busy for as long as there are trials."""
    while True:
        for worker in team:
            if worker.trial is None and (asked := search.begin()):
                worker.begin(*asked)
        busy = [(worker, trial) for worker in team if (trial := worker.trial) is not None]
        if not busy:
            return
        told = wait([worker.connection for worker, _ in busy])
        for worker, number in busy:
            if worker.connection in told:
                _listen(search, worker, number)


def _listen(search: _RunningSearch, worker: TrialWorker, number: int) -> None:
    """Hear one thing of a worker about the trial that it has in hand."""
    message = worker.receive()
    if isinstance(message, Epoch):
        worker.answer(go_on=search.study.report(number, message))
        return
    worker.trial = None
    search.end(number, message)


def _describe(tracker: Tracker, experiment: Experiment, plan: SearchPlan, name: str) -> None:
    spaces = {f"search.{key}": space for key, space in asdict(experiment)["search"].items()}
    planned = {"sampler": plan.sampler, "pruner": plan.pruner, "sampler_seed": plan.seed}
    tracker.log_parameters(spaces | planned)
    tracker.log_tags({"ferry.study": name})


def _line(trial: Trial, best: Trial | None) -> str:
    why = f" ({trial.reason})" if trial.reason else ""
    so_far = f"best {best.reached} (trial {best.number})" if best else "none complete so far"
    return (
        f"trial {trial.number} {trial.state}{why}: {trial.reached} after {trial.epochs} epochs "
        f"with {settings_text(trial.settings)}; {so_far}"
    )


def _report(
    study: Study, experiment: Experiment, plan: SearchPlan, digest: str, seconds: float
) -> TuneReport:
    trials = study.trials()
    best = best_of(trials)
    reconstructs = experiment.train.loss == "mean_squared_error"
    value = None
    if best:
        value = best.validation_loss if reconstructs else best.validation_accuracy
    return TuneReport(
        experiment=experiment.name,
        dataset=experiment.dataset,
        study=study.name,
        metric="validation_loss" if reconstructs else "validation_accuracy",
        sampler=plan.sampler,
        states={**Counter(trial.state for trial in trials), "interrupted": study.interrupted()},
        exhausted=study.exhausted,
        best=best,
        best_value=value,
        best_settings=best.settings if best else {},
        trials=trials,
        seconds=seconds,
        data_sha256=digest,
        run_id=study.run_id,
    )


def _kept(report: TuneReport, path: Path) -> TuneReport:
    """Write the best settings; FerryError where there are none."""
    if report.best is None:
        reasons = [f"trial {one.number}: {one.reason}" for one in report.trials if one.reason]
        raise FerryError(
            f"none of the {len(report.trials)} trials of {report.experiment} came to its end"
            + (f"; {reasons[0]}" if reasons else "")
        )
    write_text(path, as_fragment(report))
    return report


def as_fragment(report: TuneReport) -> str:
    """The best settings as a part of params.yaml, with how to use it; there must be some."""
    name, best = report.experiment, report.best
    came = f", trial {best.number}: {best.reached} on validation" if best else ""
    options = search.overrides(name, report.best_settings)
    command = f", or let DVC do so:\n# dvc exp run {options} train@{name}" if options else "."
    return (
        f"# The best of {len(report.trials)} trials of `ferry tune {name}`{came}.\n"
        f"# Put the values in their places in params.yaml{command}\n"
        f"{search.fragment(name, report.best_settings)}"
    )
