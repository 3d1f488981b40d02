"""The command `ferry train`: fit an experiment's model."""

from typing import TYPE_CHECKING

import click

from pipeline.commands.options import experiment_argument, track_option
from serving.console import json_option, show, summary

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment


@click.command()
@experiment_argument
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Device to train on, in place of the experiment's.",
)
@track_option
@json_option
def train(experiment: "Experiment", device: str | None, track: bool, as_json: bool) -> None:
    """Train EXPERIMENT's model and record the run in MLflow.

    A training that was killed goes on after its last whole epoch.

    Example: ferry train mnist-cnn
    """
    from pipeline.config import layout
    from pipeline.stages.train import train
    from pipeline.training.distributed import leads

    report = train(
        layout.ready(experiment.dataset),
        layout.weights(experiment.name),
        layout.report_files(experiment.name, "train"),
        layout.plots(experiment.name, "train"),
        experiment=experiment,
        device=device,
        track=track,
    )
    shown = ("validation_accuracy", "best_epoch", "parameters", "seconds", "device")
    found = {**report.headline, **{name: getattr(report, name) for name in shown}}
    if leads():  # among several processes one alone answers
        show(report, as_json=as_json, text=summary(found))
