"""The command `ferry tune`: search for better settings of an experiment."""

from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import experiment_argument, track_option
from serving.commands.options import FiniteRange
from serving.console import json_option, note, show

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment

COUNT = click.IntRange(min=1)
SECONDS = FiniteRange(min=0)


@click.command()
@experiment_argument
@click.option(
    "--trials",
    metavar="N",
    type=COUNT,
    default=20,
    show_default=True,
    help="How many trials in total; those of earlier commands count.",
)
@click.option(
    "--sampler",
    type=click.Choice(["grid", "random", "tpe"]),
    default="tpe",
    show_default=True,
    help="Try every combination of values (grid), or draw them with (tpe) or without learning.",
)
@click.option(
    "--pruner",
    type=click.Choice(["median", "none"]),
    default="median",
    show_default=True,
    help="Whether to end a trial that is worse than the median of the others.",
)
@click.option(
    "--jobs", metavar="N", type=COUNT, default=1, show_default=True, help="Trials at a time."
)
@click.option("--timeout", type=SECONDS, metavar="SECONDS", help="Begin no trial after so long.")
@click.option(
    "--seed", metavar="N", type=int, default=1, show_default=True, help="Seed of the sampler."
)
@click.option("--fresh", is_flag=True, help="Forget the trials of earlier commands.")
@track_option
@json_option
def tune(experiment: "Experiment", track: bool, as_json: bool, **plan: Any) -> None:
    """Search for better settings of EXPERIMENT.

    Its section `search` lists what is tried. Trials are compared on the validation rows and kept in
    models/EXPERIMENT/tune: the same command goes on with a search that was stopped, and a larger
    --trials extends it. The best settings are printed, and written to best.yaml there, in the form
    that params.yaml takes.

    Example: ferry tune digits-mlp --trials 20 --jobs 2
    """
    from pipeline.config import layout
    from pipeline.records.tune import as_table
    from pipeline.training.tuning.study import SearchPlan
    from pipeline.training.tuning.tune import as_fragment, tune

    folder = layout.tune(experiment.name)
    report = tune(
        layout.ready(experiment.dataset),
        layout.weights(experiment.name),
        folder,
        experiment=experiment,
        plan=SearchPlan(**plan),
        track=track,
    )
    show(report, as_json=as_json, text=f"{as_table(report)}\n\n{as_fragment(report).rstrip()}")
    note(f"\nThe best settings are in {folder}/best.yaml")
