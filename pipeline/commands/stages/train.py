"""The command `ferry train`: fit an experiment's model."""

import os
from typing import TYPE_CHECKING

import click

from pipeline.commands.options import experiment_argument, track_option
from serving.console import json_option, note, show, summary

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment


@click.command()
@experiment_argument
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Device to train on, in place of the experiment's.",
)
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Setting to change for this run alone, as `ferry config` names it; may be repeated.",
)
@track_option
@json_option
def train(
    experiment: "Experiment",
    device: str | None,
    settings: tuple[str, ...],
    track: bool,
    as_json: bool,
) -> None:
    """Train EXPERIMENT's model and record the run in MLflow.

    A training that was killed goes on after its last whole epoch.

    What --set changes of the epochs, the model or the training is recorded with the run. Weights of
    another model than that of params.yaml are refused by the stages that follow, and `dvc repro`
    trains as params.yaml says.

    Example: ferry train mnist-cnn

    Example: ferry train mnist-cnn --set train.lr=0.01 --set epochs=3
    """
    from pipeline.config import layout
    from pipeline.tracking import sender_started

    leads = os.environ.get("RANK", "0") == "0"  # among the processes of torchrun
    with sender_started(wanted=track and leads):
        from pipeline.stages.train import train
        from pipeline.training.tuning.search import with_settings

        experiment, overrides = with_settings(experiment, settings)
        report = train(
            layout.ready(experiment.dataset),
            layout.weights(experiment.name),
            layout.report_files(experiment.name, "train"),
            layout.plots(experiment.name, "train"),
            experiment=experiment,
            device=device,
            overrides=overrides,
            track=track,
        )
    shown = ("validation_accuracy", "best_epoch", "parameters", "seconds", "device")
    found = {**report.headline, **{name: getattr(report, name) for name in shown}}
    if leads:  # one alone answers
        show(report, as_json=as_json, text=summary(found))
        if overrides:
            note("With settings of this run alone; `dvc repro` trains as params.yaml says")
