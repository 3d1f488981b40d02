"""The command `ferry teach`: ask an experiment's teacher for the logits it learns from."""

import contextlib
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

    Example: ferry teach cifar10-resnet8
    """
    from pipeline.config import fitting, layout, params
    from pipeline.records import read
    from pipeline.records.train import TrainReport
    from pipeline.stages.teach import teach
    from serving.errors import FerryError

    name, teacher = experiment.name, fitting.teacher_of(experiment).experiment
    known: TrainReport | None = None
    with contextlib.suppress(FerryError):  # a student that was never trained, or by another ferry
        known = read(TrainReport, layout.details(name, "train"), f"ferry train {name}")
    teaching = teach(
        layout.ready(experiment.dataset),
        layout.weights(teacher),
        layout.details(teacher, "train"),
        layout.taught(name),
        experiment=experiment,
        by=params.load().experiment(teacher),
        known=known,
    )
    shown = ("experiment", "validation_accuracy", "views")
    show(teaching, as_json=as_json, text=summary(teaching, shown))
