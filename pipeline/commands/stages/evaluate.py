"""The command `ferry evaluate`: look inside a trained network."""

from typing import TYPE_CHECKING

import click

from pipeline.commands.options import experiment_argument, track_option
from serving.console import json_option, show, summary

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment


@click.command()
@experiment_argument
@track_option
@json_option
def evaluate(experiment: "Experiment", track: bool, as_json: bool) -> None:
    """Look into EXPERIMENT's network: pictures, calibration, attacks.

    The pictures are SVG files in reports/pictures/EXPERIMENT, which the report shows.

    Example: ferry evaluate mnist-cnn
    """
    from pipeline.config import layout
    from pipeline.records.evaluate import tracked
    from pipeline.stages.evaluate import evaluate

    report = evaluate(
        layout.weights(experiment.name),
        layout.ready(experiment.dataset),
        layout.ready(experiment.evaluate.against or experiment.dataset),
        layout.report_files(experiment.name, "evaluate"),
        layout.pictures(experiment.name),
        experiment=experiment,
        track=track,
    )
    found = {"experiment": report.experiment, **tracked(report), "pictures": len(report.pictures)}
    show(report, as_json=as_json, text=summary(found))
