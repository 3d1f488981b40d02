"""A run's records as calls of MLflow, each of which may be done twice and leaves the same.

A run, a model or an experiment is looked for before it is made, and a value has the time at which
it was measured; so a program that was killed between two calls goes on with the same record.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pipeline.tracking.journal import (
    WEIGHTS_TAG,
    Artifact,
    Begun,
    Ended,
    Entry,
    Journal,
    Metrics,
    Model,
    NestedRun,
    Parameters,
    Point,
    Rows,
    Sent,
    Tags,
)
from pipeline.tracking.models import mlflow_dataset, model_of, send_model
from pipeline.tracking.store import artifact_root
from pipeline.tracking.view import experiment_tags
from serving.errors import one_line

MOST_METRICS, MOST_OTHERS = 1000, 100
"""Values, and parameters or tags, that MLflow takes in one call."""
MOST_CHARACTERS = 300
"""Of a refusal."""
SOURCE = ("mlflow.user", "mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit")
"""Tags that MLflow shows as who made a run, and with what."""
RUN_TAG, TRIAL_TAG, SHIPS_TAG = "ferry.run", "ferry.trial", "ferry.ships"
NAME_TAG, NOTE_TAG = "mlflow.runName", "mlflow.note.content"


class Upload:
    """The records of one run on their way to a server."""

    def __init__(self, mlflow: Any, run: Journal, sent: Sent) -> None:
        """Go on after what is `sent` of `run`; `mlflow` is set up for the server."""
        self._client = mlflow.MlflowClient()
        self._run = run
        self._sent = sent

    def send(self, entry: Entry) -> None:
        """Bring one record there, and note that it is."""
        ways: dict[type[Entry], Callable[[Any], None]] = {
            Begun: self._begin,
            Parameters: self._log_parameters,
            Metrics: self._log_metrics,
            Tags: self._log_tags,
            Artifact: self._log_artifact,
            Rows: self._log_rows,
            Model: self._log_model,
            NestedRun: self._log_nested,
            Ended: self._end,
        }
        with self._refusals(entry):
            ways[type(entry)](entry)
        self._sent = replace(self._sent, entries=self._sent.entries + 1, problem="")
        self._run.note_sent(self._sent)

    @contextlib.contextmanager
    def _refusals(self, entry: Entry) -> Iterator[None]:
        """Go on without what the server will never take, as a value that is too long."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE" or not self._id:
                raise
            reason = f"{type(entry).__name__.lower()}: {one_line(error, MOST_CHARACTERS)}"
            self._sent = replace(self._sent, refused=(*self._sent.refused, reason))

    @property
    def _id(self) -> str:
        return self._sent.run_id

    def _begin(self, begun: Begun) -> None:
        """Find the run on the server, or make it."""
        experiment = _experiment(self._client, begun.experiment)
        found = self._find(experiment, RUN_TAG, self._run.run_id)
        if found:
            self._client.update_run(found, status="RUNNING")  # a training that goes on
        elif begun.adopts:
            found = self._find(experiment, WEIGHTS_TAG, begun.adopts)
        if found is None:
            labels = {RUN_TAG: self._run.run_id, **begun.labels}
            found = self._create(experiment, begun.name, begun.begun_ms, labels)
            if begun.adopts:  # it trained nothing, so it took no time
                self._client.set_terminated(found, "FINISHED", begun.begun_ms)
        self._sent = replace(self._sent, run_id=found)

    def _find(self, experiment: str, tag: str, value: str) -> str | None:
        found = self._client.search_runs([experiment], f"tags.`{tag}` = '{value}'", max_results=1)
        return found[0].info.run_id if found else None

    def _create(self, experiment: str, name: str, begun_ms: int, labels: Mapping[str, str]) -> str:
        run = self._client.create_run(experiment, begun_ms, dict(labels), run_name=name)
        identifier: str = run.info.run_id
        return identifier

    def _log_parameters(self, entry: Parameters) -> None:
        self._log_settings(self._id, entry.parameters)

    def _log_settings(self, run_id: str, settings: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        for some in _parts([Param(*one) for one in settings.items()], MOST_OTHERS):
            self._client.log_batch(run_id, params=some)

    def _log_metrics(self, entry: Metrics) -> None:
        self._log_points(self._id, entry.points, entry.of_model)

    def _log_points(
        self, run_id: str, values: Sequence[Point], of_model: str | None = None
    ) -> None:
        from mlflow.entities import Metric

        model = model_of(self._client, run_id, of_model) if of_model else {}
        made = [Metric(one.key, float(one.value), one.time_ms, one.step, **model) for one in values]
        for some in _parts(made, MOST_METRICS):
            self._client.log_batch(run_id, metrics=some)

    def _log_tags(self, entry: Tags) -> None:
        from mlflow.entities import RunTag

        name = entry.tags.get(NAME_TAG)
        if name:
            self._client.update_run(self._id, name=name)
        if SHIPS_TAG in entry.tags:
            run = self._client.get_run(self._id).info
            says = f"{run.run_name}, ships {entry.tags[SHIPS_TAG]}"
            self._client.set_experiment_tag(run.experiment_id, NOTE_TAG, says)
        tags = [RunTag(key, value) for key, value in entry.tags.items() if key != NAME_TAG]
        for some in _parts(tags, MOST_OTHERS):
            self._client.log_batch(self._id, tags=some)

    def _log_artifact(self, entry: Artifact) -> None:
        place = Path(entry.artifact)
        with tempfile.TemporaryDirectory() as folder:
            # MLflow calls an artifact as its file is called.
            file = shutil.copyfile(self._run.file(entry.file), Path(folder) / place.name)
            above = str(place.parent) if place.parent != Path() else None
            self._client.log_artifact(self._id, str(file), above)

    def _log_rows(self, entry: Rows) -> None:
        from mlflow.entities import DatasetInput, InputTag

        context = InputTag("mlflow.data.context", entry.context)
        self._client.log_inputs(self._id, [DatasetInput(mlflow_dataset(entry), [context])])

    def _log_model(self, entry: Model) -> None:
        send_model(self._client, self._id, entry, self._run.file)

    def _log_nested(self, entry: NestedRun) -> None:
        parent = self._client.get_run(self._id)
        experiment = parent.info.experiment_id
        run_id = self._find(experiment, RUN_TAG, entry.run)
        if run_id is None:
            labels = {RUN_TAG: entry.run, TRIAL_TAG: entry.state, "mlflow.parentRunId": self._id}
            labels |= {key: one for key, one in parent.data.tags.items() if key in SOURCE}
            begun = entry.history[0].time_ms if entry.history else entry.ended_ms
            run_id = self._create(experiment, entry.name, begun, labels)
        self._log_settings(run_id, entry.settings)
        self._log_points(run_id, entry.history)
        self._client.set_terminated(run_id, "FINISHED", entry.ended_ms)

    def _end(self, entry: Ended) -> None:
        self._client.set_terminated(self._id, entry.status, entry.ended_ms)


def _experiment(client: Any, name: str) -> str:
    """The id of an experiment, which is made where there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_root(), experiment_tags()))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another training was quicker
            if found is None:
                raise
    return str(found.experiment_id)


Thing = TypeVar("Thing")


def _parts(things: Sequence[Thing], most: int) -> Iterator[Sequence[Thing]]:
    return (things[start : start + most] for start in range(0, len(things), most))
