"""`ferry bundle`: the folder to deploy, of an experiment, a proven file or a registered model."""

from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import experiment_or_file_argument, from_here, track_option
from serving.commands.options import limit_options
from serving.console import PATH, json_option, note, show, summary
from serving.runtime import guard

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config.experiment import Experiment
    from pipeline.records.benchmark import BundleReport
    from serving.bundles import Target

SHOWN = (
    *("experiment", "variant", "target", "reason", "golden_rows", "reference_rows"),
    *("flash_bytes", "ram_bytes", "boards", "bytes", "digest"),
)


@click.command()
@experiment_or_file_argument
@click.option(
    "--target",
    type=click.Choice(["cpu", "arm64", "c", "triton", "web"]),
    default="cpu",
    help="The kind of place that it is for. (cpu)",
)
@click.option("--data", "rows", metavar="ROWS", help="Rows for MODEL.onnx, as for `ferry parity`.")
@click.option(
    "--parity", metavar="REPORT.json", type=PATH, help="The report that proves MODEL.onnx."
)
@click.option("-o", "--output", metavar="DIR", type=PATH, help="Where the bundle goes.")
@click.option("--labels", metavar="FILE", type=PATH, help="A text file with a line for each class.")
@click.option("--reference", metavar="ROWS", help="Rows of the training data, to detect drift.")
@track_option
@limit_options
@json_option
def bundle(
    subject: "Experiment | Path", target: "Target", track: bool, as_json: bool, **given: Any
) -> None:
    """Make the folder to deploy.

    For EXPERIMENT, it holds the best of the variants that passed their gates. It also keeps how the
    training rows are distributed, and how the model answers the validation rows, so that `ferry
    predict --reference` can warn of rows that differ. For --target cpu the best by the speed of
    this machine is shipped, and goes to bundles/EXPERIMENT. Another target takes the smallest that
    its budget in params.yaml has room for, and it goes to bundles/EXPERIMENT.TARGET. For --target c
    it holds the model as C99 sources too, and the budget is flash and RAM.

    For MODEL.onnx, any ONNX file of one input, it holds the file byte for byte. The file must have
    passed `ferry parity REFERENCE MODEL.onnx --data ROWS --output REPORT.json`, or its `ferry
    export --module`. The hardest of ROWS become the golden rows, which every device must answer
    alike. With --reference the bundle can warn of drift as well. The options from --data to
    --reference are for MODEL.onnx, but for --output.

    For models:/NAME@champion or models:/NAME/3 it copies the registered bundle to --output.

    Example: ferry bundle mnist-cnn

    Example: ferry bundle mnist-tiny --target c

    Example: ferry bundle net.onnx --data rows.npy --parity net.json -o made
    """
    from pathlib import Path

    from serving.bundles.finding import is_registered_name

    given = {name: value for name, value in given.items() if value is not None}
    if not isinstance(subject, Path):
        output = given.pop("output", None)
        if given:
            raise click.UsageError("--data, --parity, --labels and --reference are for MODEL.onnx")
        output = _folder_of(subject, target, output and from_here(output))
        report = _bundle_experiment(subject, target, output, track=track)
    elif target != "cpu":
        raise click.UsageError("--target is for EXPERIMENT, of whose variants it takes one")
    elif is_registered_name(str(subject)):
        if given.keys() != {"output"}:
            raise click.UsageError(f"{subject} needs --output, and takes nothing else")
        output = given["output"]
        report = _copy(subject, output)
    elif {"rows", "parity", "output"} - given.keys():
        raise click.UsageError(f"{subject} needs --data, --parity and --output")
    else:
        output = given["output"]
        report = _bundle_file(subject, **given)
    show(report, as_json=as_json, text=summary(report, SHOWN))
    note(f"made {output}")


def _folder_of(experiment: "Experiment", target: "Target", output: "Path | None") -> "Path":
    """Where the bundle goes, which is no place that the pipeline keeps for another one."""
    from pipeline.config import layout, params
    from serving.files import resolved

    if output is None:
        return layout.bundle(experiment.name, target)
    kept = {resolved(layout.bundle(name)): name for name in params.load().experiments}
    owner = kept.get(resolved(output))
    if owner is None:
        return output
    if (owner, target) != (experiment.name, "cpu"):
        raise click.UsageError(
            f"--output {output} is where the pipeline keeps the bundle of {owner} for cpu; "
            f"without --output it goes to {layout.bundle(experiment.name, target)}"
        )
    return layout.bundle(owner)


def _bundle_experiment(
    experiment: "Experiment", target: "Target", folder: "Path", *, track: bool
) -> "BundleReport":
    from pipeline.config import layout
    from pipeline.stages.bundle import bundle

    shipped = layout.bundle(experiment.name)
    return bundle(
        layout.models(experiment.name),
        layout.ready(experiment.dataset),
        layout.details(experiment.name, "bundle").parent,
        folder,
        layout.report_files(experiment.name, "bundle") if folder == shipped else None,
        experiment=experiment,
        target=target,
        track=track,
    )


def _copy(name: "Path", output: "Path") -> "BundleReport":
    from pipeline.stages.bundle import copy_registered

    return copy_registered(str(name), output)


def _bundle_file(model: "Path", *, output: "Path", **given: Any) -> "BundleReport":
    from pipeline.config.experiment import BundleConfig
    from pipeline.config.params import stage_defaults
    from pipeline.stages.bundle import bundle_file

    count = stage_defaults("bundle", BundleConfig).golden_rows
    guard.limit_steps()
    return bundle_file(model, output, golden_rows=count, **given)
