"""MLflow, which only this package imports: one run per training, which later stages add to.

Tracking never stops a stage. One warning at the end names what MLflow could not record, and
the metrics files are complete without it.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import layout
from pipeline.records.ready import DatasetManifest
from pipeline.records.train import Epoch
from pipeline.tracking.models import (
    Signature,
    load_mlflow,
    log_data,
    log_onnx_model,
    log_torch_model,
    store_uri,
)
from serving.errors import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn


logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Failures after which nothing more is tried: a dead server costs its timeout each time."""
MAX_METRICS = 1000
"""Values that MLflow takes in one call."""
WEIGHTS_TAG = "ferry.weights_sha256"


class Tracker:
    """One MLflow run; every method records something or remembers that it could not."""

    def __init__(self) -> None:
        """Not started yet: see `run_of_training` and `run_of_weights`."""
        self.run_id: str | None = None
        self.seconds = 0.0
        """Time spent in MLflow so far."""
        self._missed: dict[str, str] = {}
        self._failures = 0

    def log_parameters(self, parameters: Mapping[str, object]) -> None:
        """Record the settings of the experiment."""
        self._record("parameters", "log_params", dict(parameters))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers, of an epoch where `step` is given."""
        self._record("metrics", "log_metrics", dict(metrics), step)

    def log_epochs(self, epochs: Sequence[Epoch]) -> None:
        """Record what epochs measured, all at once: a call of its own for each takes longer."""
        self._record("epochs", _log_epochs, tuple(epochs))

    def log_trial(
        self, name: str, settings: Mapping[str, object], epochs: Sequence[Epoch], state: str
    ) -> None:
        """Record a training that has ended as a run inside of this one."""
        self._record(name, _log_trial, name, dict(settings), tuple(epochs), state)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags."""
        self._record("tags", "set_tags", dict(tags))

    def log_figure(self, figure: "Figure", name: str) -> None:
        """Record a figure as `figures/NAME`."""
        self._record(name, "log_figure", figure, f"figures/{name}")

    def log_data(self, manifest: DatasetManifest, data: Path) -> None:
        """Record the preprocessed data set in the folder `data` with its digest."""
        self._record("data set", log_data, manifest, data)

    def log_torch_model(
        self, module: "nn.Module", example: np.ndarray[Any, Any], signature: Signature
    ) -> None:
        """Record the PyTorch model as an exported program, which holds no pickle."""
        self._record("PyTorch model", log_torch_model, module, example, signature)

    def log_onnx_model(self, path: Path, name: str, signature: Signature) -> None:
        """Record an ONNX file as the model NAME."""
        self._record("ONNX model", log_onnx_model, path, name, signature)

    def start(self, experiment: str, find: Callable[[Any], str | None]) -> None:
        """Go on with the run that `find` finds in the store, or start one."""
        self.run_id = self._record("anything", _start, experiment, find)
        if self.run_id is None:
            self._failures = MAX_FAILURES

    def finish(self, status: str) -> None:
        """Close the run and log one warning of what is missing from it."""
        self._record("the end of the run", "end_run", status)
        if self._missed:
            reasons = "; ".join(sorted(set(self._missed.values())))
            logger.warning("MLflow did not record %s: %s", ", ".join(self._missed), reasons)

    def _record(self, what: str, action: str | Callable[..., Any], *given: Any) -> Any:
        """Call a function of MLflow by its name, or one that takes MLflow first."""
        if self._failures >= MAX_FAILURES:
            if self.run_id is not None:
                self._missed.setdefault(what, "given up after several failures")
            return None
        start = time.perf_counter()
        try:
            mlflow = load_mlflow()
            if isinstance(action, str):
                return getattr(mlflow, action)(*given)
            return action(mlflow, *given)
        except Exception as error:  # noqa: BLE001 - tracking must never stop a training
            self._failures += 1
            self._missed.setdefault(what, one_line(error, 300))
            return None
        finally:
            self.seconds += time.perf_counter() - start


ELSEWHERE: list[Tracker] = []
"""The tracker in a process of its own, if the command has begun one."""


def run_of_training(
    experiment: str, run_id: str | None, *, track: bool
) -> AbstractContextManager[Tracker]:
    """Record a training: a new run, or the one that an interrupted training began.

    With `track` false nothing is recorded and MLflow is not even imported.
    """
    return _tracked(experiment, functools.partial(_existing, run_id=run_id), track=track)


@contextlib.contextmanager
def run_of_weights(experiment: str, sha256: str, *, track: bool) -> Iterator[Tracker]:
    """Add to the run that trained the weights of this sha256.

    DVC may have restored the weights from its cache, so that no run knows them: then one is
    started and tagged as restored.
    """
    with _tracked(
        experiment, lambda mlflow: _find(mlflow, experiment, sha256), track=track
    ) as tracker:
        tracker.log_tags({WEIGHTS_TAG: sha256})
        yield tracker


def run_of_predictions(experiment: str) -> AbstractContextManager[Tracker]:
    """Record that a bundle or a file answered rows: always a new run."""
    name = f"{experiment} (predict)"
    return _tracked(experiment, lambda mlflow: _new_run(mlflow, name), track=True)


@contextlib.contextmanager
def _tracked(
    experiment: str, find: Callable[[Any], str | None], *, track: bool
) -> Iterator[Tracker]:
    tracker = ELSEWHERE[0] if ELSEWHERE else Tracker()
    if not track:
        tracker._failures = MAX_FAILURES  # noqa: SLF001 - its own module
        yield tracker
        return
    tracker.start(experiment, find)
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)


def _start(mlflow: Any, experiment: str, find: Callable[[Any], str | None]) -> str:
    mlflow.set_tracking_uri(store_uri())
    if mlflow.get_experiment_by_name(experiment) is None:
        # An absolute place, else artifacts would follow the working directory.
        local = store_uri().startswith("sqlite:")
        place = (layout.project() / "mlruns").resolve().as_uri() if local else None
        mlflow.create_experiment(experiment, artifact_location=place)
    mlflow.set_experiment(experiment)
    found = find(mlflow)
    run = mlflow.start_run(
        run_id=found, run_name=None if found else experiment, log_system_metrics=found is None
    )
    identifier: str = run.info.run_id
    return identifier


def _existing(mlflow: Any, *, run_id: str | None) -> str | None:
    if run_id is None:
        return None
    try:
        mlflow.get_run(run_id)
    except mlflow.exceptions.MlflowException:
        return None  # the store was removed since
    return run_id


def _find(mlflow: Any, experiment: str, sha256: str) -> str | None:
    runs = mlflow.search_runs(
        experiment_names=[experiment],
        filter_string=f"tags.`{WEIGHTS_TAG}` = '{sha256}'",
        max_results=1,
        output_format="list",
    )
    if runs:
        identifier: str = runs[0].info.run_id
        return identifier
    return _new_run(mlflow, f"{experiment} (restored)", {"ferry.restored": "true"})


def _new_run(mlflow: Any, name: str, tags: Mapping[str, str] | None = None) -> str:
    """Make a run that no system metrics are recorded of: it trains nothing."""
    with mlflow.start_run(run_name=name, tags=tags) as run:
        identifier: str = run.info.run_id
    return identifier


def _log_trial(
    mlflow: Any, name: str, settings: Mapping[str, object], epochs: Sequence[Epoch], state: str
) -> None:
    with mlflow.start_run(run_name=name, nested=True, tags={"ferry.trial": state}):
        mlflow.log_params(settings)
        _log_epochs(mlflow, epochs)


def _log_epochs(mlflow: Any, epochs: Sequence[Epoch]) -> None:
    """Log them in the run that is active."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [
        Metric(name, value, now, epoch.epoch)
        for epoch in epochs
        for name, value in asdict(epoch).items()
        if name != "epoch" and value is not None
    ]
    client, run_id = mlflow.MlflowClient(), mlflow.active_run().info.run_id
    for start in range(0, len(metrics), MAX_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS])
