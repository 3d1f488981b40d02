"""`ferry export`: a trained experiment, or any `torch.nn.Module`, as one ONNX file."""

from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import ExperimentName, complete_experiment, track_option
from serving.commands.options import POSITIVE
from serving.console import PATH, json_option, show, summary

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config.experiment import Experiment

SHOWN = ("module", "model", "bytes", "parameters", "nodes", "opset", "export_seconds")


@click.command()
@click.argument(
    "experiment", type=ExperimentName(), required=False, shell_complete=complete_experiment
)
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
    help="Input of the module: see above; repeated for each, in order.",
)
@click.option(
    "-o", "--output", metavar="FILE.onnx", type=PATH, help="Where the module's model goes."
)
@click.option(
    "--data", "rows", metavar="ROWS", help="Rows to prove the module on, as for `ferry parity`."
)
@click.option("--opset", metavar="N", type=click.IntRange(min=18), help="ONNX opset to write.")
@click.option(
    "--limit",
    metavar="DIFF",
    type=POSITIVE,
    help="Largest absolute difference of any output; without it, 1e-4 of the output's own scale.",
)
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
    """Export a model to one ONNX graph: raw rows in, answer out.

    EXPERIMENT is exported with its trained weights. With --module, any torch.nn.Module is exported
    that a function of yours returns; the folder that ferry runs in is importable.

    A SPEC is NAME:float32[batch,3,224,224], the same without a name, or a .npy file of rows. The
    first axis takes any number of rows, and every other axis that has a name any size, or any in a
    range: tokens:int64[batch,length=1..512]. The file is compared with the module over ROWS, or
    over random rows, at several batch sizes and at several sizes of every named axis, and a report
    is written beside it. The exit status is 1 when an output is further off than --limit or its
    largest value is another one; the model is then kept as FILE.failed.onnx. The scale of an output
    is how much it varies from row to row, column by column. The opset that is not given is that of
    `defaults.export` in params.yaml.

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
        raise click.UsageError("--input, --output, --data, --opset and --limit are for --module")
    else:
        _export_experiment(experiment, track=track, as_json=as_json)


def _export_experiment(experiment: "Experiment", *, track: bool, as_json: bool) -> None:
    from pipeline.config import layout
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
    opset: int | None = None,
    limit: float | None = None,
) -> None:
    from pipeline.config.experiment import ExportConfig
    from pipeline.config.params import stage_defaults
    from pipeline.exporting.module import export_module
    from pipeline.exporting.signatures import load_module, parse_input
    from pipeline.proof.tables import pair_table

    specs = [parse_input(text) for text in inputs]
    report = export_module(
        load_module(function),
        specs,
        output,
        rows=rows,
        source=function,
        opset=opset or stage_defaults("export", ExportConfig).opset,
        limit=limit,
    )
    text = "\n\n".join([summary(report, SHOWN), pair_table(report.parity), *report.notes])
    show(report, as_json=as_json, text=text)
