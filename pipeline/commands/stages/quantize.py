"""`ferry quantize`: the variants of an experiment, or of any ONNX file."""

from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import experiment_or_file_argument, track_option
from serving.commands.options import POSITIVE, FiniteRange, limit_options
from serving.console import PATH, json_option, note, shared_option, show, task_option
from serving.runtime import guard

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config.experiment import Experiment


@click.command()
@experiment_or_file_argument
@click.option("--data", metavar="ROWS", help="Rows for MODEL.onnx, as for `ferry parity`.")
@click.option("-o", "--output", metavar="DIR", type=PATH, help="Where the variants go.")
@click.option(
    "--variant",
    "variants",
    type=click.Choice(["int8", "fp16"]),
    multiple=True,
    help="Variant to make; may be repeated. [default: int8]",
)
@click.option(
    "--accuracy-loss",
    metavar="POINTS",
    type=FiniteRange(min=0),
    help="Most percentage points of accuracy, or of agreement with fp32, to lose.",
)
@click.option(
    "--error-increase",
    metavar="PERCENT",
    type=FiniteRange(min=0),
    help="Most per cent by which a model that predicts no class may be further off.",
)
@click.option(
    "--min-snr",
    "min_snr_db",
    metavar="DB",
    type=FiniteRange(min=0),
    help="Least signal-to-noise ratio of any output, in decibels.",
)
@click.option(
    "--min-speedup",
    metavar="RATIO",
    type=POSITIVE,
    help="Least speedup over fp32.",
)
@click.option(
    "--goal", type=click.Choice(["speed", "size"]), help="Keep the fastest or the smallest."
)
@click.option(
    "--batch-size",
    "batch_sizes",
    metavar="N",
    type=click.IntRange(min=1),
    multiple=True,
    help="Batch size to be fast at; may be repeated.",
)
@click.option(
    "--recipe",
    "recipes",
    metavar="NAME",
    multiple=True,
    help="Try this recipe, and no others; may be repeated.",
)
@click.option(
    "--needs",
    type=click.Choice(["vnni"]),
    multiple=True,
    help="What every processor has that int8 will run on. [default: nothing]",
)
@task_option
@shared_option
@track_option
@limit_options
@json_option
def quantize(
    subject: "Experiment | Path",
    data: str | None,
    output: "Path | None",
    track: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Make a model smaller or faster, within a budget for accuracy.

    Recipes are tried in order. The fastest or smallest one is kept that loses no more accuracy than
    allowed, on rows that are not the test's, and that is fast enough beside fp32 on this machine.
    If there is none, no file is written, the report says why, fp32 ships, and the exit status is 0.

    For EXPERIMENT, the settings are in params.yaml. For MODEL.onnx, any ONNX file, they are the
    options; one that is not given is taken from `defaults.quantize` in params.yaml, and --min-snr
    from `defaults.parity`. At most half of ROWS are used for calibration, and the others to judge
    the variants. If ROWS have no labels, agreement with fp32 takes the place of accuracy; if the
    model tells no classes, what counts is how far its worst output is off, in per cent of how much
    that output varies (--error-increase). Where so few rows cannot tell, the verdict says how many
    could.

    Example: ferry quantize mnist-cnn

    Example: ferry quantize net.onnx --data rows.npz --output small
    """
    from pathlib import Path

    given = {name: value for name, value in settings.items() if value not in (None, (), {})}
    if not isinstance(subject, Path):
        if data is not None or output is not None or given:
            raise click.UsageError(
                "only MODEL.onnx takes options; an experiment's are in params.yaml"
            )
        _quantize_experiment(subject, track=track, as_json=as_json)
    elif data is None or output is None:
        raise click.UsageError(f"{subject} needs --data and --output")
    else:
        _quantize_file(subject, data, output, given, as_json=as_json)


def _quantize_experiment(experiment: "Experiment", *, track: bool, as_json: bool) -> None:
    from pipeline.config import layout
    from pipeline.records.quantize import as_table
    from pipeline.stages.quantize import quantize

    report = quantize(
        layout.model(experiment.name),
        layout.ready(experiment.dataset),
        layout.quantized(experiment.name),
        layout.report_files(experiment.name, "quantize"),
        layout.plots(experiment.name, "quantize"),
        experiment=experiment,
        track=track,
    )
    show(report, as_json=as_json, text=as_table(report))


def _quantize_file(
    model: "Path", rows: str, folder: "Path", given: dict[str, Any], *, as_json: bool
) -> None:
    from dataclasses import replace

    from pipeline.config.experiment import MinSpeedup, ParityConfig, QuantizeConfig
    from pipeline.config.params import stage_defaults
    from pipeline.records.quantize import as_table
    from pipeline.stages.quantize import asked_snr_db, quantize_file

    variants = given.pop("variants", ("int8",))
    asked = asked_snr_db(stage_defaults("parity", ParityConfig))
    if "min_snr_db" in given:
        asked = dict.fromkeys(asked, given.pop("min_snr_db"))
    said = {"task": given.pop("task", None), "shared": given.pop("shared", {})}
    if "min_speedup" in given:
        ratio = given["min_speedup"]
        given["min_speedup"] = MinSpeedup(fp16=ratio, int8=ratio)
    config = replace(stage_defaults("quantize", QuantizeConfig), **given)
    guard.limit_steps()
    report = quantize_file(
        model, rows, folder, config=config, variants=variants, min_snr_db=asked, **said
    )
    show(report, as_json=as_json, text=as_table(report))
    for variant in report.variants:
        kept = report.kept_try(variant)
        doubt = f": {kept.unsettled}" if kept and kept.unsettled else ""
        note(f"{folder / f'{model.stem}.{variant}.onnx'}{doubt}")
