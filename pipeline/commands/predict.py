"""`ferry predict`: the command of serving, whose runs MLflow can record."""

import copy
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from serving.commands.predict import predict as serving_predict
from serving.errors import redacted

if TYPE_CHECKING:
    from pathlib import Path

    from serving.batch.report import PredictReport

MOST_CHARACTERS = 500
"""Of a parameter; every store of MLflow takes that many."""
NOT_IN_NAMES = re.compile(r"[^\w./-]+", re.ASCII)
"""What a metric of MLflow may not be called, and blanks."""


def tracked(command: click.Command) -> click.Command:
    """The same command with `--track`; its callback returns the `PredictReport` of its run, if any.

    A run that was stopped is not recorded: it goes on another time.
    """

    def callback(*, track: bool, **given: Any) -> Any:
        report = command.callback(**given) if command.callback else None
        if track and report is not None:
            log_predictions(report, [str(one) for one in given["inputs"]])
        return report

    option = click.Option(
        ["--track/--no-track"], default=False, help="Whether to record it in MLflow. (no)"
    )
    ours = copy.copy(command)
    ours.params, ours.callback = [*command.params, option], callback
    return ours


def log_predictions(report: "PredictReport", inputs: Sequence[str]) -> str | None:
    """Record a run in the experiment of the bundle's name and return its id.

    One warning names what MLflow could not record, and the id is None where it could record
    nothing: the answers are written all the same.
    """
    from pipeline.tracking import run_of_predictions

    with run_of_predictions(experiment_of(report.model)) as tracker:
        tracker.log_parameters(
            {
                "model": str(report.model),
                "model_sha256": report.model_sha256,
                "inputs": redacted(" ".join(inputs))[:MOST_CHARACTERS],
            }
        )
        tracker.log_metrics(_metrics(report))
        tags = {"ferry.predict": "true"}
        if report.drift:
            moved = ", ".join(one.name for one in report.drift.moved)
            tags["ferry.moved"] = moved[:MOST_CHARACTERS] or "nothing"
        tracker.log_tags(tags)
    return tracker.run_id


def experiment_of(model: "Path") -> str:
    """The name in a bundle's manifest, which is that of its experiment; a file's stem."""
    from serving.bundles.bundle import read_manifest

    return read_manifest(model).name if model.is_dir() else model.stem


def _metrics(report: "PredictReport") -> dict[str, float]:
    names = ("rows", "errors", "seconds", "rows_per_second")
    metrics = {name: float(getattr(report, name)) for name in names}
    for one in report.drift.quantities if report.drift else ():
        metrics[f"psi.{NOT_IN_NAMES.sub('_', one.name)}"] = one.psi
    return metrics


predict = tracked(serving_predict)
