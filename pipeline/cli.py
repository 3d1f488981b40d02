"""`ferry`: one command per stage, and those of serving.

Every command is a few lines over a public function and imports its work inside its body, so that
`ferry --help` stays as fast as click.
"""

import os
from typing import TYPE_CHECKING

import click

from pipeline.arguments import experiment_argument, track_option
from pipeline.asides import results
from pipeline.commands.bundle import bundle
from pipeline.commands.export import export
from pipeline.commands.parity import parity
from pipeline.commands.predict import predict
from pipeline.commands.quantize import quantize
from pipeline.tuning.cli import tune
from serving import cli as serving_cli
from serving.console import SETTINGS, Commands, json_option, log_to_stderr, show, summary

if TYPE_CHECKING:
    from pipeline.config import Experiment

__all__ = ["ferry", "main"]


# Read by OpenMP when torch loads it. Threads that spin for long between two loops steal the cores
# of a shared machine, and those that sleep at once double the time of a small network.
OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}


@click.group(
    cls=Commands,
    context_settings=SETTINGS,
    epilog="Example: ferry train digits-mlp",
)
@click.version_option(package_name="onnx-ferry")
@click.option("-C", "--directory", metavar="DIR", help="Work in DIR, the folder of params.yaml.")
def ferry(directory: str | None) -> None:
    """Carry a model from training to where it runs, proven the same at every step.

    The stages, in order: pull, preprocess, train, evaluate, export, quantize, parity, benchmark,
    bundle and report. `dvc repro` runs those that are out of date.

    An option may also come from the environment: FERRY_TRAIN_DEVICE=cpu is `ferry train --device
    cpu`.
    """
    for variable, value in OPENMP.items():
        os.environ.setdefault(variable, value)
    log_to_stderr()
    if directory:
        os.chdir(directory)


def main() -> None:
    """Run `ferry` as a program."""
    ferry(prog_name="ferry")


@ferry.command()
@click.argument("dataset")
@click.option(
    "--mirror",
    metavar="URL|DIR",
    envvar="FERRY_MIRROR",
    show_envvar=True,
    help="Tried before the official addresses; laid out as MIRROR/DATASET/FILE.",
)
@json_option
def pull(dataset: str, mirror: str | None, as_json: bool) -> None:
    """Fetch the official files of DATASET and check them.

    An interrupted download goes on where it was. The data sets digits and its like come with
    ferry's packages and need no network.

    Example: ferry pull mnist --mirror /mnt/mirror
    """
    from pipeline import layout, params
    from pipeline.pull import pull

    report = pull(layout.raw(dataset), name=dataset, mirrors=params.load().mirrors, mirror=mirror)
    text = f"{dataset}: {len(report.files)} files in {layout.raw(dataset)}"
    show(report, as_json=as_json, text=text)


@ferry.command()
@click.argument("dataset")
@json_option
def preprocess(dataset: str, as_json: bool) -> None:
    """Split DATASET into training, validation and test arrays.

    Example: ferry preprocess mnist
    """
    from pipeline import layout, params
    from pipeline.preprocess import preprocess

    settings = params.load().dataset(dataset)
    manifest = preprocess(layout.raw(dataset), layout.ready(dataset), name=dataset, config=settings)
    rows = {split: sum(counts) for split, counts in manifest.class_counts.items()}
    show(manifest, as_json=as_json, text=summary({"dataset": dataset, **rows}))


@ferry.command()
@experiment_argument
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Overrides the experiment's device.",
)
@track_option
@json_option
def train(experiment: "Experiment", device: str | None, track: bool, as_json: bool) -> None:
    """Train EXPERIMENT's model and record the run in MLflow.

    A killed training goes on after its last whole epoch.

    Example: ferry train mnist-cnn
    """
    from pipeline import layout
    from pipeline.train import train
    from pipeline.training.distributed import leads

    report = train(
        layout.ready(experiment.dataset),
        layout.weights(experiment.name),
        layout.metrics(experiment.name, "train"),
        layout.plots(experiment.name, "train"),
        experiment=experiment,
        device=device,
        track=track,
    )
    shown = (
        "accuracy",
        "loss",
        "validation_accuracy",
        "best_epoch",
        "parameters",
        "seconds",
        "device",
    )
    if leads():  # among several processes one alone answers
        show(report, as_json=as_json, text=summary(report, shown))


@ferry.command()
@experiment_argument
@track_option
@json_option
def evaluate(experiment: "Experiment", track: bool, as_json: bool) -> None:
    """Look inside EXPERIMENT's trained network: pictures, calibration, attacks.

    The pictures are SVG files in reports/pictures/EXPERIMENT, which the report shows.

    Example: ferry evaluate mnist-cnn
    """
    from pipeline import layout
    from pipeline.evaluate import evaluate
    from pipeline.records.evaluate import headline

    report = evaluate(
        layout.weights(experiment.name),
        layout.ready(experiment.dataset),
        layout.ready(experiment.evaluate.against),
        layout.metrics(experiment.name, "evaluate"),
        layout.pictures(experiment.name),
        experiment=experiment,
        track=track,
    )
    found = {"experiment": report.experiment, **headline(report), "pictures": len(report.pictures)}
    show(report, as_json=as_json, text=summary(found))


@ferry.command()
@experiment_argument
@track_option
@json_option
def benchmark(experiment: "Experiment", track: bool, as_json: bool) -> None:
    """Time EXPERIMENT's variants on every provider of this machine, beside PyTorch eager.

    Example: ferry benchmark mnist-cnn
    """
    from pipeline import layout
    from pipeline.benchmark import benchmark
    from pipeline.records import read
    from pipeline.records.benchmark import as_table
    from pipeline.records.quantize import QuantizeReport
    from serving.console import progress

    made = layout.metrics(experiment.name, "quantize")
    with progress() as tell:
        report = benchmark(
            layout.weights(experiment.name),
            layout.models(experiment.name),
            layout.ready(experiment.dataset),
            layout.metrics(experiment.name, "benchmark"),
            layout.plots(experiment.name, "benchmark"),
            experiment=experiment,
            skipped=read(QuantizeReport, made, f"ferry quantize {experiment.name}").skipped,
            track=track,
            tell=tell,
        )
    show(report, as_json=as_json, text=as_table(report))
    if report.bench.partial:
        click.get_current_context().exit(1)


@ferry.command()
@json_option
def report(as_json: bool) -> None:
    """Write reports/index.html: everything that has run, on one page that opens offline.

    Example: ferry report
    """
    from pipeline import layout, params
    from pipeline.report import report

    done = report(layout.METRICS, layout.PICTURES, layout.REPORT, params=params.load())
    text = f"{done.page}: {', '.join(done.experiments)}"
    show(done, as_json=as_json, text=text)


ferry.add_command(bundle)
ferry.add_command(export)
ferry.add_command(parity)
ferry.add_command(quantize)
ferry.add_command(results)
ferry.add_command(tune)
ferry.add_command(predict)
ferry.add_command(serving_cli.bench)
ferry.add_command(serving_cli.verify)
ferry.add_command(serving_cli.doctor)
