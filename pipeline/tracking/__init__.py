"""MLflow, which only this package imports: one run per training, which later stages add to.

A stage writes what is to be recorded to a journal in files, and a process of its own sends it.
Tracking never stops a stage, and never makes it wait for more than seconds: what a server did not
take in that time stays in the journal, and the next stage or `ferry track --sync` sends it.
"""

import contextlib
import functools
import getpass
import io
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.records import ReportFiles, ready
from pipeline.records.ready import DatasetManifest
from pipeline.records.train import Epoch
from pipeline.tracking import journal
from pipeline.tracking.journal import (
    WEIGHTS_TAG,
    Artifact,
    Begun,
    Ended,
    Entry,
    LoggedModel,
    Metrics,
    NestedRun,
    Parameters,
    Point,
    RowsRead,
    RunJournal,
    Signature,
    Tags,
)
from pipeline.tracking.sending import Sender, state_of
from pipeline.tracking.store import store_root
from serving.errors import IntegrityError
from serving.machine.environment import git_revision
from serving.runtime.tensors import TensorInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

MOST_DIGITS = 6
MAX_WAIT_SECONDS = 4.5
"""That a stage waits, at its end, for what it recorded to be sent: less than 5 in all."""

GIT_COMMIT = re.compile(r"[0-9a-f]{40}")


class Tracker:
    """One run; every method writes to its journal, or does nothing where nothing is recorded."""

    def __init__(self, journal: RunJournal | None) -> None:
        """Of a run; of none with `journal` None."""
        self._journal = journal
        self.seconds = 0.0
        """Time that recording took so far."""
        self._last_epoch = 0
        self.grew = False
        """Whether something was recorded."""

    @property
    def run_id(self) -> str | None:
        """The id of the run, which its run in MLflow has as the tag `ferry.run`."""
        return self._journal.run_id if self._journal else None

    def log_parameters(self, parameters: Mapping[str, object]) -> None:
        """Record the settings of the experiment."""
        self._append(Parameters(parameters=_texts(parameters)))

    def log_metrics(self, metrics: Mapping[str, float | None], of_model: str | None = None) -> None:
        """Record the numbers that are known; of a model of this run where `of_model` names one."""
        known = {
            key: float(f"{value:.{MOST_DIGITS}g}")  # MLflow shows all that there are
            for key, value in metrics.items()
            if value is not None
        }
        if known:
            values = journal.points(known, 0, journal.now_ms())
            self._append(Metrics(points=values, of_model=of_model))

    def log_epochs(self, epochs: Sequence[Epoch]) -> None:
        """Record what epochs measured."""
        if self._journal and epochs:
            with self._timed():
                # A training that goes on repeats what it did after its last checkpoint.
                self._last_epoch = self._last_epoch or self._journal.last_epoch()
                new = [one for one in epochs if one.epoch > self._last_epoch]
            if new:
                self._append(Metrics(points=_history(new), of_model=None))
                self._last_epoch = new[-1].epoch

    def log_trial(
        self, name: str, settings: Mapping[str, object], epochs: Sequence[Epoch], state: str
    ) -> None:
        """Record a training that has ended as a run inside of this one."""
        self._append(
            NestedRun(
                run=journal.new_run_id(),
                name=name,
                settings=_texts(settings),
                state=state,
                history=_history(epochs),
                ended_ms=journal.now_ms(),
            )
        )

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags; those of weights let later stages find the run."""
        self._append(Tags(tags=dict(tags)))
        if self._journal and WEIGHTS_TAG in tags:
            with _telling("which weights it trained"):
                journal.note_weights(store_root(), tags[WEIGHTS_TAG], self._journal.run_id)

    def log_figure(self, figure: "Figure", name: str) -> None:
        """Record a figure as `figures/NAME`."""
        if self._journal:
            content = io.BytesIO()
            figure.savefig(content, format="png")
            self.log_artifact(content.getvalue(), f"figures/{name}")

    def log_artifact(self, content: bytes, name: str) -> None:
        """Record a file under the path `name`."""
        if self._journal:
            with self._timed(), _telling(name):
                kept = self._journal.keep(content, Path(name).suffix)
                self._append(Artifact(artifact=name, file=kept))

    def log_report(self, files: ReportFiles) -> None:
        """Record all that a stage measured, as `reports/STAGE.json`."""
        if self._journal:
            with _telling(str(files.details)):
                content = files.details.read_bytes()
                self.log_artifact(content, f"reports/{files.details.name}")

    def log_data(self, manifest: DatasetManifest, split: str, context: str) -> None:
        """Record that the run read a split of a preprocessed data set, for instance to train."""
        inputs, labels = (manifest.arrays[f"{split}_{part}.npy"] for part in ("inputs", "labels"))
        source = {"homepage": manifest.homepage, "licence": manifest.licence}
        self._append(
            RowsRead(
                context=context,
                dataset=f"{manifest.dataset} ({split})",
                digest=inputs.sha256[: journal.MOST_OF_DIGEST],
                source=source | {"data_sha256": ready.digest(manifest)},
                features=TensorInfo(name="inputs", dtype=inputs.dtype, shape=inputs.shape),
                targets=TensorInfo(name="labels", dtype=labels.dtype, shape=labels.shape),
            )
        )

    def log_note(self, markdown: str) -> None:
        """Record what the run's own page says of it, in place of what it said before."""
        self.log_tags({"mlflow.note.content": markdown})

    def log_model(
        self,
        name: str,
        path: Path,
        sha256: str,
        example: np.ndarray[Any, Any],
        signature: Signature,
    ) -> None:
        """Record the file `path`, ONNX or an exported program, as the model `name` of the run.

        `sha256` is that of the file, or of the weights of an exported program, whose bytes differ
        each time; `example` are a few raw rows that it answers.
        """
        if self._journal is None:
            return
        with self._timed(), _telling(f"the model {name}"):
            rows = io.BytesIO()
            np.save(rows, example, allow_pickle=False)
            self._append(
                LoggedModel(
                    model=name,
                    file=self._journal.keep_file(path, sha256),
                    sha256=sha256,
                    example=self._journal.keep(rows.getvalue(), ".npy"),
                    inputs=signature[0],
                    outputs=signature[1],
                )
            )

    def end(self, status: str) -> None:
        """Record the end of the run: FINISHED, FAILED or KILLED."""
        self._append(Ended(status=status, ended_ms=journal.now_ms()))

    def wait(self, sender: Sender) -> None:
        """Wait a little for what is not sent yet, end the sender, and tell what is left."""
        if self._journal is None:
            return
        with self._timed():
            died = sender.finish(MAX_WAIT_SECONDS)
        if self._journal.failure:
            logger.warning("MLflow will lack a part of this run: %s", self._journal.failure)
        state = state_of(self._journal)
        if state.sent < state.records:
            logger.warning(
                "MLflow does not have all of this run yet: %s; the rest is kept in %s, and "
                "`ferry track --sync` sends it",
                *(state.problem or died, self._journal.folder),
            )
        if state.refused:
            *others, last = state.refused
            more = f", and {len(others)} records more" if others else ""
            logger.warning("MLflow does not take all of this run: %s%s", last, more)

    def _append(self, entry: Entry) -> None:
        if self._journal is None:
            return
        with self._timed(), _telling(journal.kind_of(entry)):
            # A stage that was run again says much that is known.
            if not self._journal.says(entry):
                self._journal.append(entry)
                self.grew = True

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        start, before = time.perf_counter(), self.seconds
        yield
        # Not a sum: a block may be inside of another one.
        self.seconds = before + time.perf_counter() - start


STARTED: list[Sender] = []
"""The process that sends, if the command has begun one already."""


@contextlib.contextmanager
def sender_started(*, wanted: bool) -> Iterator[None]:
    """Begin the process that sends now, for the first run that is recorded in the block.

    It imports MLflow, which takes seconds, while the training is prepared.
    """
    if wanted:
        STARTED.append(Sender())
    try:
        yield
    finally:
        while STARTED:
            STARTED.pop().finish(0)


def run_of_training(
    experiment: str, run_id: str | None, *, track: bool, command: str = "train"
) -> AbstractContextManager[Tracker]:
    """Record a training, or a search: a new run, or the one that an interrupted one began."""
    begin = functools.partial(_begun, experiment, command, f"{experiment} · {command}")
    return _tracked(begin, run_id, track=track)


@contextlib.contextmanager
def run_of_weights(experiment: str, sha256: str, *, track: bool) -> Iterator[Tracker]:
    """Add to the run that trained the weights of this sha256.

    DVC may have restored the weights from its cache, so that no journal knows them: then it is the
    run that the server has, else a new one, which is tagged as restored.
    """
    known = journal.of_weights(store_root(), sha256) if track else None
    begin = functools.partial(_begun, experiment, "train", f"{experiment} · restored", sha256)
    with _tracked(begin, known, track=track, adds=True) as tracker:
        if known is None:
            tracker.log_tags({WEIGHTS_TAG: sha256})
        yield tracker


@contextlib.contextmanager
def known_runs(weights: Iterable[str], *, track: bool) -> Iterator[dict[str, Tracker]]:
    """Add to those runs that were recorded here which trained weights of these sha256."""
    root = store_root()
    found = {sha256: journal.of_weights(root, sha256) for sha256 in weights} if track else {}
    trackers = {one: Tracker(journal.of_run(root, run)) for one, run in found.items() if run}
    yield trackers
    grown = [one for one in trackers.values() if one.grew]
    if grown:
        sender = Sender()
        for one in grown:
            sender.follow(one.run_id or "")
        for one in grown:
            one.wait(sender)


def run_of_predictions(experiment: str) -> AbstractContextManager[Tracker]:
    """Record that a bundle or a file answered rows: always a new run."""
    begin = functools.partial(_begun, experiment, "predict", f"{experiment} · predict")
    return _tracked(begin, None, track=True)


def _begun(experiment: str, command: str, name: str, adopts: str | None = None) -> Begun:
    """A run that a command begins; one that `adopts` weights was trained somewhere else."""
    labels = {
        "mlflow.source.name": f"ferry {command} {experiment}",
        "mlflow.source.type": "LOCAL",
    }
    if adopts:
        labels["ferry.restored"] = "true"
    with contextlib.suppress(OSError, KeyError):  # nobody has a name, as in some containers
        labels["mlflow.user"] = getpass.getuser()
    revision, _, dirty = git_revision().partition("-")
    if GIT_COMMIT.fullmatch(revision):
        labels |= {"mlflow.source.git.commit": revision}
        labels |= {"ferry.dirty": "true"} if dirty else {}
    return Begun(
        experiment=experiment,
        name=name,
        labels=labels,
        adopts=adopts,
        begun_ms=journal.now_ms(),
    )


@contextlib.contextmanager
def _tracked(
    begin: Callable[[], Begun], run_id: str | None, *, track: bool, adds: bool = False
) -> Iterator[Tracker]:
    """Record what the block does; a stage that `adds` to a run neither begins nor ends it."""
    if not track:
        yield Tracker(None)
        return
    run = journal.of_run(store_root(), run_id or journal.new_run_id())
    if not (adds and run.count()):
        run.append(begin())
    sender = STARTED.pop() if STARTED else Sender()
    sender.follow(run.run_id)
    tracker, status = Tracker(run), "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if not adds:
            tracker.end(status)
        tracker.wait(sender)


@contextlib.contextmanager
def _telling(what: str) -> Iterator[None]:
    """Go on without `what` where a file cannot be written."""
    try:
        yield
    except (OSError, IntegrityError) as error:
        logger.warning("MLflow will lack %s: %s", what, error)


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


FIRST = ("validation_accuracy", "validation_loss")
"""Of an epoch: MLflow's page of a run and its comparison of runs begin with what was sent first."""


def _history(epochs: Sequence[Epoch]) -> tuple[Point, ...]:
    return tuple(
        point
        for epoch in epochs
        for point in journal.points(_measured(epoch), epoch.epoch, journal.now_ms())
    )


def _measured(epoch: Epoch) -> dict[str, float]:
    values = asdict(epoch)
    names = dict.fromkeys((*FIRST, *values))
    return {
        f"train/{name}": values[name]
        for name in names
        if name != "epoch" and values[name] is not None
    }
