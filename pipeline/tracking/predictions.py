"""A run of `ferry predict` in MLflow: how much was answered, how fast, and what has moved."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.tracking.runs import Tracker
from serving.batch.report import PredictReport
from serving.bundles.bundle import read_manifest

MOST_CHARACTERS = 500
"""Of a parameter; every store of MLflow takes that many."""
NOT_IN_NAMES = re.compile(r"[^\w./-]+", re.ASCII)
"""What a metric of MLflow may not be called, and blanks."""


def log_predictions(report: PredictReport, inputs: Sequence[str]) -> str | None:
    """Record a run in the experiment of the bundle's name, and return its id.

    What MLflow could not record is told in one warning, and what it could not record at all gives
    None: the answers are written all the same.
    """
    tracker = Tracker()
    name = experiment_of(report)
    tracker.start(name, lambda mlflow: _new_run(mlflow, f"{name} (predict)"))
    if tracker.run_id is not None:
        tracker.log_parameters(_parameters(report, inputs))
        tracker.log_metrics(_metrics(report))
        tracker.log_tags(_tags(report))
    tracker.finish("FINISHED")
    return tracker.run_id


def experiment_of(report: PredictReport) -> str:
    """The name that the bundle's manifest has, which is that of its experiment; a file's stem."""
    return read_manifest(report.model).name if report.model.is_dir() else report.model.stem


def _new_run(mlflow: Any, name: str) -> str:
    with mlflow.start_run(run_name=name) as run:
        identifier: str = run.info.run_id
    return identifier


def _parameters(report: PredictReport, inputs: Sequence[str]) -> Mapping[str, object]:
    return {
        "model": str(report.model),
        "model_sha256": report.model_sha256,
        "inputs": " ".join(inputs)[:MOST_CHARACTERS],
    }


def _metrics(report: PredictReport) -> dict[str, float]:
    metrics = {
        "rows": float(report.rows),
        "errors": float(report.errors),
        "seconds": report.seconds,
        "rows_per_second": report.rows_per_second,
    }
    drift = report.drift
    for one in drift.quantities if drift else ():
        metrics[f"psi.{NOT_IN_NAMES.sub('_', one.name)}"] = one.psi
    return metrics


def _tags(report: PredictReport) -> dict[str, str]:
    tags = {"ferry.predict": "true"}
    if report.drift:
        moved = ", ".join(one.name for one in report.drift.moved)
        tags["ferry.moved"] = moved[:MOST_CHARACTERS] or "nothing"
    return tags
