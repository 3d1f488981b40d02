"""The command `ferry parity`: the stage of an experiment, or any two models on any rows."""

from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import (
    ExperimentName,
    complete_experiment,
    enter_project,
    track_option,
)
from serving.commands.options import POSITIVE, limit_options
from serving.console import PATH, json_option, shared_option, show, task_option
from serving.runtime import guard

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.command()
@click.argument(
    "sides",
    metavar="EXPERIMENT | A B",
    nargs=-1,
    required=True,
    shell_complete=complete_experiment,
)
@click.option("--data", metavar="ROWS", help="Rows to ask A and B: see above.")
@click.option(
    "--limit",
    type=POSITIVE,
    help="Largest absolute difference of any output; without it, 1e-4 of the output's own scale.",
)
@click.option(
    "--flips",
    type=click.IntRange(min=0),
    help="Most rows whose predicted class may really change.",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    metavar="N",
    type=click.IntRange(min=1),
    multiple=True,
    help="Batch size to ask A and B at; may be repeated.",
)
@click.option(
    "--hostile/--no-hostile",
    default=True,
    show_default=True,
    help="Whether to ask rows that no data set holds as well.",
)
@task_option
@shared_option
@click.option("--explain", is_flag=True, help="Name the layer that differs, even on success.")
@click.option("-o", "--output", type=PATH, metavar="REPORT", help="Where the report goes, as JSON.")
@track_option
@limit_options
@json_option
def parity(sides: tuple[str, ...], track: bool, as_json: bool, **options: Any) -> None:
    """Prove that models answer alike.

    EXPERIMENT alone is the stage: its ONNX variants against its trained weights over the whole test
    set, with the gates of params.yaml. The report is written all the same, to
    reports/details/EXPERIMENT/parity.json. Exit status 1 when a limit is not met.

    A and B are any two of: an experiment's weights in PyTorch (mnist-cnn), one of its ONNX files
    (mnist-cnn:int8), an ONNX file (model.onnx), a bundle (bundles/mnist-cnn), each ONNX one on a
    provider if wanted (model.onnx@cuda). ROWS are a .npy, a .npz with an array of each input and
    perhaps `labels`, a folder of images, lines of text, a table, or a data set's split
    (mnist:test). The options from --data to --output are for A and B; without --flips or
    --batch-size, the values of fp32 in `defaults.parity` of params.yaml hold. The scale of an
    output is how much it varies from row to row, column by column.

    Example: ferry parity mnist-cnn

    Example: ferry parity model.onnx model.int8.onnx@cuda --data rows.npz
    """
    from serving.errors import UsageError

    if len(sides) == 1 and options["data"] is None:
        _stage(sides[0], explain=bool(options["explain"]), track=track, as_json=as_json)
    elif len(sides) == 2 and options["data"] is not None:
        _pair(sides, options, as_json=as_json)
    else:
        raise UsageError(
            f"give one experiment, or two models and --data ROWS; got {len(sides)} "
            f"({', '.join(sides)}) and {'no ' if options['data'] is None else ''}--data"
        )


def _stage(name: str, *, explain: bool, track: bool, as_json: bool) -> None:
    from pipeline.config import layout

    # Before what follows imports PyTorch.
    experiment = ExperimentName().convert(name, None, None)
    from pipeline.errors import ParityError
    from pipeline.proof.tables import parity_table
    from pipeline.records import read
    from pipeline.records.parity import ParityReport
    from pipeline.stages.parity import parity

    files = layout.report_files(name, "parity")
    try:
        report = parity(
            layout.weights(name),
            layout.models(name),
            layout.ready(experiment.dataset),
            files,
            experiment=experiment,
            explain=explain,
            track=track,
        )
    except ParityError:
        failed = read(ParityReport, files.details, f"ferry parity {name}")
        show(failed, as_json=as_json, text=parity_table(failed))
        raise
    show(report, as_json=as_json, text=parity_table(report))


def _experiment_of(side: str) -> str | None:
    """The experiment that A or B names, as `open_side` reads it; None for a file or a bundle."""
    from pathlib import Path

    name = side.rpartition("@")[0] or side
    if "/" in name or name.endswith(".onnx") or Path(name).exists() or Path(side).exists():
        return None
    return name.partition(":")[0]


def _pair(sides: tuple[str, ...], options: "Mapping[str, Any]", *, as_json: bool) -> None:
    from pathlib import Path

    from pipeline.config.experiment import ParityConfig
    from pipeline.config.params import load, stage_defaults

    names = list(map(_experiment_of, sides))
    here = enter_project() if any(names) else Path()
    for name in filter(None, names):
        load().experiment(name)  # before what follows imports PyTorch
    data, output = here / options["data"], options["output"]
    typed = [side if name else str(here / side) for side, name in zip(sides, names, strict=True)]
    from pipeline.proof.pair import compare, limits_of_pair, refuse_failures
    from pipeline.proof.rows import open_rows
    from pipeline.proof.sides import open_side
    from pipeline.proof.tables import pair_table
    from serving.files import write_json

    usual = stage_defaults("parity", ParityConfig)
    limit, flips, shared = options["limit"], options["flips"], options["shared"]
    reference, other = (
        open_side(side, lambda name: load().experiment(name), shared) for side in typed
    )
    guard.limit_steps()
    report = compare(
        reference,
        other,
        open_rows(str(data) if data.exists() else options["data"], reference.inputs),
        limits=limits_of_pair(limit, usual.fp32.flips if flips is None else flips),
        batch_sizes=options["batch_sizes"] or usual.batch_sizes,
        hostile=options["hostile"],
        explain=options["explain"],
        task=options["task"],
    )
    if output:
        write_json(here / output, report)
    show(report, as_json=as_json, text=pair_table(report))
    refuse_failures({other.name: report.result}, options["output"])
