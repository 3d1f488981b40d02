"""The command `ferry teach`: ask an experiment's teacher for the logits it learns from."""

from typing import TYPE_CHECKING

import click

from pipeline.commands.options import experiment_argument
from serving.console import json_option, show, summary

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment


@click.command()
@experiment_argument
@json_option
def teach(experiment: "Experiment", as_json: bool) -> None:
    """Ask the teacher of EXPERIMENT for the logits to learn from.

    The teacher is another experiment of the same data, which `train.teacher` names; it must be
    trained. It answers each training row in several random changes, its views, once for all
    trainings of EXPERIMENT. A run that was killed goes on after its last whole view.

    Example: ferry teach mnist-tiny
    """
    from pipeline.config import fitting, layout, params
    from pipeline.records import read
    from pipeline.records.train import TrainReport
    from pipeline.stages.teach import teach

    name, teacher = experiment.name, fitting.teacher_of(experiment).experiment
    known = layout.details(name, "train")
    teaching = teach(
        layout.ready(experiment.dataset),
        layout.weights(teacher),
        layout.details(teacher, "train"),
        layout.taught(name),
        experiment=experiment,
        by=params.load().experiment(teacher),
        known=read(TrainReport, known, f"ferry train {name}") if known.exists() else None,
    )
    shown = ("experiment", "validation_accuracy", "views")
    show(teaching, as_json=as_json, text=summary(teaching, shown))
