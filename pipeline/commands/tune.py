"""The command `ferry tune`, which the group `ferry` mounts."""

from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import experiment_argument, track_option
from serving.console import json_option, note, show

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment

COUNT = click.IntRange(min=1)
SECONDS = click.FloatRange(min=0)


@click.command()
@experiment_argument
@click.option(
    "--trials", type=COUNT, default=20, show_default=True, help="In total, resumed or not."
)
@click.option(
    "--sampler",
    type=click.Choice(["grid", "random", "tpe"]),
    default="tpe",
    show_default=True,
    help="Every combination of the listed values, or draws that do or do not learn from results.",
)
@click.option(
    "--pruner",
    type=click.Choice(["median", "none"]),
    default="median",
    show_default=True,
    help="Whether a trial ends early that is behind the median of the others.",
)
@click.option("--jobs", type=COUNT, default=1, show_default=True, help="Trials at the same time.")
@click.option("--timeout", type=SECONDS, metavar="SECONDS", help="No trial begins after that.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the sampler.")
@click.option("--fresh", is_flag=True, help="Forget the trials of earlier commands.")
@track_option
@json_option
def tune(experiment: "Experiment", track: bool, as_json: bool, **plan: Any) -> None:
    """Search EXPERIMENT's better settings, as its `search` section allows.

    They are compared on the validation rows. The trials are kept in models/EXPERIMENT/tune: the
    same command goes on with a search that was stopped, and a larger --trials continues it. The
    best settings are printed, and written to best.yaml there, as a part of params.yaml.

    Example: ferry tune digits-mlp --trials 20 --jobs 2
    """
    from pipeline import layout
    from pipeline.records.tune import as_table
    from pipeline.stages.tune import as_fragment, tune
    from pipeline.training.tuning.study import SearchPlan

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
