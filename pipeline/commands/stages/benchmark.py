"""The command `ferry benchmark`: time every variant of an experiment."""

from typing import TYPE_CHECKING

import click

from pipeline.commands.options import experiment_argument, track_option
from serving.console import json_option, show

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment


@click.command()
@experiment_argument
@track_option
@json_option
def benchmark(experiment: "Experiment", track: bool, as_json: bool) -> None:
    """Time EXPERIMENT's variants beside PyTorch, as a stage.

    It runs them on every provider of this machine, with the settings of params.yaml, and MLflow and
    the report show what it found. `ferry bench` times any model, with more to ask for.

    Example: ferry benchmark mnist-cnn
    """
    from pipeline.config import layout
    from pipeline.records.benchmark import as_table
    from pipeline.stages.benchmark import benchmark
    from serving.console import progress

    with progress() as log:
        report = benchmark(
            layout.weights(experiment.name),
            layout.models(experiment.name),
            layout.ready(experiment.dataset),
            layout.report_files(experiment.name, "benchmark"),
            layout.plots(experiment.name, "benchmark"),
            experiment=experiment,
            track=track,
            log=log,
        )
    show(report, as_json=as_json, text=as_table(report))
    if report.bench.partial:
        click.get_current_context().exit(1)
