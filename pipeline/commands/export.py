"""`ferry export`: a trained experiment, or any `torch.nn.Module`, as one ONNX file."""

from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import optional_experiment_argument, track_option
from serving.console import PATH, json_option, show, summary

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config.experiment import Experiment

SHOWN = ("module", "model", "bytes", "parameters", "nodes", "opset", "export_seconds")


@click.command()
@optional_experiment_argument
@click.option(
    "--module",
    "function",
    metavar="PACKAGE.FILE:FUNCTION",
    help="Export what this function returns. It is imported and called: it runs your own code.",
)
@click.option(
    "--input",
    "inputs",
    metavar="SPEC",
    multiple=True,
    help="Of the module, in order; may be repeated.",
)
@click.option("--output", metavar="FILE.onnx", type=PATH, help="Where the module's model goes.")
@click.option("--rows", metavar="ROWS", help="Real rows to prove a module on: .npz, .npy, ...")
@click.option("--opset", metavar="N", type=click.IntRange(min=18), help="Of a module. (20)")
@click.option("--limit", metavar="DIFF", type=float, help="Largest difference. (1e-4)")
@track_option
@json_option
def export(
    experiment: "Experiment | None",
    function: str | None,
    output: "Path | None",
    track: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Export EXPERIMENT's weights to one ONNX graph: raw rows in, answer out.

    Or, with --module, any torch.nn.Module that a function of yours returns: the folder that ferry
    runs in is importable. A SPEC is NAME:float32[batch,3,224,224], the same without a name, or a
    .npy file of rows; the first axis takes any number of rows, and so does every axis that has a
    name. The file is proven against the module over ROWS, or over random rows, at several batch
    sizes, and a report is written beside it. Exit status 1 when an output is further off than
    --limit or its largest value is another one: then the model is kept as FILE.failed.onnx.

    Example: ferry export --module nets.small:build --input float32[batch,3,32,32] --output net.onnx

    Example: ferry export mnist-cnn
    """
    given = {name: value for name, value in settings.items() if value not in (None, ())}
    if function is not None and experiment is not None:
        raise click.UsageError("EXPERIMENT and --module are two things to export: give one")
    if function is not None:
        if output is None or "inputs" not in given:
            raise click.UsageError("--module needs --input and --output")
        _export_module(function, output, as_json=as_json, **given)
    elif experiment is None:
        raise click.UsageError("Missing argument 'EXPERIMENT', or --module")
    elif output or given:
        raise click.UsageError("--input, --output, --rows, --opset and --limit are for --module")
    else:
        _export_experiment(experiment, track=track, as_json=as_json)


def _export_experiment(experiment: "Experiment", *, track: bool, as_json: bool) -> None:
    from pipeline import layout
    from pipeline.stages.export import export

    report = export(
        layout.weights(experiment.name),
        layout.details(experiment.name, "train"),
        layout.ready(experiment.dataset),
        layout.model(experiment.name),
        layout.report_files(experiment.name, "export"),
        experiment=experiment,
        track=track,
    )
    show(report, as_json=as_json, text=summary(report))


def _export_module(
    function: str,
    output: "Path",
    *,
    inputs: tuple[str, ...],
    as_json: bool,
    rows: str | None = None,
    **settings: Any,
) -> None:
    from pipeline.exporting.module import ModuleOptions, export_module
    from pipeline.exporting.signatures import parse_input
    from pipeline.exporting.users_code import load_module
    from pipeline.proof.tables import pair_table

    specs = [parse_input(text) for text in inputs]
    options = ModuleOptions(source=function, **settings)
    report = export_module(load_module(function), specs, output, rows=rows, options=options)
    text = "\n\n".join([summary(report, SHOWN), pair_table(report.parity), *report.notes])
    show(report, as_json=as_json, text=text)
