"""`ferry bundle`: the folder to deploy, of an experiment's best variant or of any proven file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import track_option
from serving.console import PATH, json_option, show, summary

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment

SUFFIX = ".onnx"


class Subject(click.ParamType["Experiment | Path"]):
    """An ONNX file by its suffix, else a section of params.yaml."""

    name = "experiment"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002 - click's signature
        ctx: click.Context | None,  # noqa: ARG002 - click's signature
    ) -> "Experiment | Path":
        """Read params.yaml for an experiment alone."""
        if isinstance(value, str) and value.endswith(SUFFIX):
            return Path(value)
        from pipeline.config import params

        return params.load().experiment(value)


@click.command()
@click.argument("experiment", metavar="EXPERIMENT|MODEL.onnx", type=Subject())
@click.option("--data", "rows", metavar="ROWS", help="Rows for MODEL.onnx, as `parity` takes them.")
@click.option("--parity", metavar="REPORT.json", type=PATH, help="The proof of MODEL.onnx.")
@click.option("-o", "--output", metavar="DIR", type=PATH, help="The bundle of MODEL.onnx.")
@click.option("--labels", metavar="FILE", type=PATH, help="A line for each class of MODEL.onnx.")
@click.option("--reference", metavar="ROWS", help="Training rows of MODEL.onnx, to tell drift.")
@track_option
@json_option
def bundle(
    experiment: "Experiment | Path", rows: str | None, track: bool, as_json: bool, **given: Any
) -> None:
    """Make the folder to deploy, of the best of EXPERIMENT's variants that passed their gates.

    Or of MODEL.onnx, wherever it is from, byte for byte as it is. It must have passed as the
    candidate of `ferry parity REFERENCE MODEL.onnx --data ROWS --output REPORT.json`, or in its
    `export --module`; the first 16 of ROWS become the rows that every device must answer alike. A
    model of several inputs can be compared, but not bundled: its runner feeds one.

    The bundle of an experiment keeps how the training rows are distributed, and the answers to
    those for validation, so that `ferry predict --reference` warns when its rows are others; that
    of MODEL.onnx does with --reference ROWS.

    Example: ferry bundle mnist-cnn

    Example: ferry bundle net.onnx --data rows.npy --parity net.json -o made
    """
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(experiment, Path):
        if rows is None or "parity" not in given or "output" not in given:
            raise click.UsageError(f"{experiment} needs --data, --parity and --output")
        _bundle_file(experiment, rows, as_json=as_json, **given)
    elif rows is not None or given:
        raise click.UsageError(
            "--data, --parity, --output, --labels and --reference are for MODEL.onnx"
        )
    else:
        _bundle_experiment(experiment, track=track, as_json=as_json)


def _bundle_experiment(experiment: "Experiment", *, track: bool, as_json: bool) -> None:
    from pipeline import layout
    from pipeline.stages.bundle import bundle

    report = bundle(
        layout.models(experiment.name),
        layout.ready(experiment.dataset),
        layout.details(experiment.name, "bundle").parent,
        layout.bundle(experiment.name),
        layout.report_files(experiment.name, "bundle"),
        experiment=experiment,
        track=track,
    )
    shown = ("experiment", "variant", "reason", "bytes", "digest")
    show(report, as_json=as_json, text=summary(report, shown))


def _bundle_file(
    model: Path,
    rows: str,
    *,
    parity: Path,
    output: Path,
    as_json: bool,
    **given: Any,
) -> None:
    from pipeline.bundling.foreign import bundle_file

    report = bundle_file(model, output, rows=rows, parity=parity, **given)
    show(report, as_json=as_json, text=summary(report))
