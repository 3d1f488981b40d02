"""A run's records as calls of MLflow, each of which may be done twice and leaves the same.

A run, a model or an experiment is looked for before it is made, and a value has the time at which
it was measured; so a program that was killed between two calls goes on with the same record.
"""

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
    LoggedModel,
    Metrics,
    NestedRun,
    Parameters,
    Point,
    RowsRead,
    RunJournal,
    Sent,
    Tags,
    kind_of,
)
from pipeline.tracking.models import mlflow_dataset, model_of, send_model
from pipeline.tracking.store import artifact_root
from pipeline.tracking.view import experiment_tags
from serving.errors import FerryError, IntegrityError, one_line

MOST_METRICS, MOST_OTHERS = 1000, 100
"""Values, and parameters or tags, that MLflow takes in one call."""
FOR_GOOD = {400, 405, 411, 413, 414, 415, 422, 431}
"""HTTP's words for what a server will never take, as a value that is too long."""
MOST_CHARACTERS = 300
"""Of a refusal."""
SOURCE = ("mlflow.user", "mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit")
"""Tags that MLflow shows as who made a run, and with what."""
RUN_TAG, TRIAL_TAG, SHIPS_TAG = "ferry.run", "ferry.trial", "ferry.ships"
NAME_TAG, NOTE_TAG = "mlflow.runName", "mlflow.note.content"


class Upload:
    """The records of one run on their way to a server."""

    def __init__(self, mlflow: Any, run: RunJournal, sent: Sent) -> None:
        """Go on after what is `sent` of `run`; `mlflow` is set up for the server."""
        self._client = mlflow.MlflowClient()
        self._run = run
        self._sent = sent

    def resume(self, records: int) -> int:
        """Look whether the run is still there; how many of its `records` the server has.

        A server that does not know it has a new store, which the journal fills again. Raises
        FerryError for a run that somebody deleted, where something is left to send.
        """
        if self._id:
            found = self._look()
            if found is None:
                self._sent = replace(self._sent, run_id="", entries=0, refused=())
            elif found.lifecycle_stage == "deleted" and self._sent.entries < records:
                raise FerryError(
                    f"run {self._id} was deleted in MLflow; restore it there, or remove "
                    f"{self._run.folder}"
                )
        return self._sent.entries

    def _look(self) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_run(self._id).info
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        return None

    def send(self, line: bytes, number: int) -> None:
        """Bring a record there, and note that it is; one that is refused for good is as well."""
        from mlflow.exceptions import MlflowException

        kind = "record"
        refused: tuple[str, ...] = ()
        try:
            entry = self._run.parse(line, number)
            kind = kind_of(entry)
            self._send(entry)
        except (MlflowException, OSError, IntegrityError) as error:
            # Only the word of a server that is well counts.
            if not (_is_for_good(error) and self._id and self._look()):
                raise
            refused = (f"{kind}: {one_line(error, MOST_CHARACTERS)}",)
        self._sent = replace(
            self._sent,
            entries=number,
            problem="",
            refused=(*self._sent.refused, *refused),
        )
        self._run.note_sent(self._sent)

    def _send(self, entry: Entry) -> None:
        ways: dict[type[Entry], Callable[[Any], None]] = {
            Begun: self._begin,
            Parameters: self._log_parameters,
            Metrics: self._log_metrics,
            Tags: self._log_tags,
            Artifact: self._log_artifact,
            RowsRead: self._log_rows,
            LoggedModel: self._log_model,
            NestedRun: self._log_nested,
            Ended: self._end,
        }
        if not self._id and not isinstance(entry, Begun):
            raise IntegrityError(f"{self._run.path} does not say how the run began")
        ways[type(entry)](entry)

    @property
    def _id(self) -> str:
        return self._sent.run_id

    def _begin(self, begun: Begun) -> None:
        """Find the run on the server, or make it."""
        if self._id:  # a training that goes on
            self._client.update_run(self._id, status="RUNNING")
            return
        experiment = _experiment(self._client, begun.experiment)
        found = self._find(experiment, RUN_TAG, self._run.run_id)
        other = None if found else self._find_adopted(experiment, begun)
        if found is None and other is None:
            labels = {RUN_TAG: self._run.run_id, **begun.labels}
            found = self._create(experiment, begun.name, begun.begun_ms, labels)
        if found and begun.adopts:  # it trained nothing, so it took no time
            self._client.set_terminated(found, "FINISHED", begun.begun_ms)
        self._sent = replace(self._sent, run_id=found or other or "")

    def _find_adopted(self, experiment: str, begun: Begun) -> str | None:
        return self._find(experiment, WEIGHTS_TAG, begun.adopts) if begun.adopts else None

    def _find(self, experiment: str, tag: str, value: str) -> str | None:
        found = self._all(experiment, tag, value)
        return found[0] if found else None

    def _all(self, experiment: str, tag: str, value: str) -> list[str]:
        found = self._client.search_runs([experiment], f"tags.`{tag}` = '{value}'")
        return [one.info.run_id for one in found]

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
        known = self._points_of(model)
        made = [
            Metric(one.key, float(one.value), one.time_ms, one.step, **model)
            for one in values
            if (one.key, one.time_ms, one.step) not in known
        ]
        for some in _parts(made, MOST_METRICS):
            self._client.log_batch(run_id, metrics=some)

    def _points_of(self, model: Mapping[str, str]) -> set[tuple[str, int, int]]:
        """What a model has: MLflow refuses such a value again once the run names its rows."""
        if not model:
            return set()
        found = self._client.get_logged_model(model["model_id"]).metrics or []
        return {(one.key, one.timestamp, one.step) for one in found}

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
        place, kept = Path(entry.artifact), self._run.kept(entry.file)
        above = str(place.parent) if place.parent != Path() else None
        with tempfile.TemporaryDirectory() as folder:
            # MLflow calls an artifact as its file is called.
            file = shutil.copyfile(kept, Path(folder) / place.name)
            self._client.log_artifact(self._id, str(file), above)
        # What stands between may say yes for the server, and any answer would do.
        there = {one.path: one.file_size for one in self._client.list_artifacts(self._id, above)}
        if there.get(entry.artifact, -1) not in {None, kept.stat().st_size}:
            raise FerryError(f"MLflow does not have all of {entry.artifact}")

    def _log_rows(self, entry: RowsRead) -> None:
        from mlflow.entities import DatasetInput, InputTag

        context = InputTag("mlflow.data.context", entry.context)
        self._client.log_inputs(self._id, [DatasetInput(mlflow_dataset(entry), [context])])

    def _log_model(self, entry: LoggedModel) -> None:
        send_model(self._client, self._id, entry, self._run.kept)

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
        # What a sender that was killed had asked for may have been made after another one looked.
        experiment = self._client.get_run(self._id).info.experiment_id
        for run_id in self._all(experiment, RUN_TAG, self._run.run_id):
            if run_id != self._id:
                self._client.delete_run(run_id)


def _is_for_good(error: Exception) -> bool:
    if isinstance(error, IntegrityError):
        return True
    answer = getattr(error, "response", None)  # an OSError of requests, for an artifact
    status = answer.status_code if answer is not None else None
    code = getattr(error, "get_http_status_code", lambda: status)  # of MLflow
    return code() in FOR_GOOD


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
