"""`ferry quantize`: an experiment's variants, or those of any ONNX file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import track_option
from serving.console import PATH, json_option, note, show

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment

SUFFIX = ".onnx"
MIN_SPEEDUP = {"int8": 1.0, "fp16": 0.7}
DEFAULTS: dict[str, Any] = {
    "variant": ("int8",),
    "accuracy_loss": 0.3,
    "error_increase": 5.0,
    "min_speedup": None,
    "goal": "speed",
    "batch": (1, 32),
    "recipe": (),
}


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
@click.option("--data", metavar="ROWS", help="Rows for MODEL.onnx, as `parity` takes them.")
@click.option("-o", "--output", metavar="DIR", type=PATH, help="Where its variants go.")
@click.option("--variant", type=click.Choice(["int8", "fp16"]), multiple=True, help="(int8)")
@click.option(
    "--accuracy-loss",
    metavar="POINTS",
    type=click.FloatRange(min=0),
    help="Most points of accuracy, or of agreement, to lose. (0.3)",
)
@click.option(
    "--error-increase",
    metavar="PERCENT",
    type=click.FloatRange(min=0),
    help="The same for values that decide on no class. (5)",
)
@click.option(
    "--min-speedup",
    metavar="RATIO",
    type=click.FloatRange(min=0, min_open=True),
    help="How many times as fast as fp32 at least. (int8 1, fp16 0.7)",
)
@click.option("--goal", type=click.Choice(["speed", "size"]), help="What the best is. (speed)")
@click.option(
    "--batch",
    metavar="ROWS",
    type=click.IntRange(min=1),
    multiple=True,
    help="Batch size to be fast at; may be repeated. (1 and 32)",
)
@click.option("--recipe", metavar="NAME", multiple=True, help="Try this one; may be repeated.")
@track_option
@json_option
def quantize(
    experiment: "Experiment | Path",
    data: str | None,
    output: Path | None,
    track: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Make EXPERIMENT's model smaller or faster, inside two budgets.

    Recipes are tried in order; the fastest or smallest is kept that loses no more accuracy than
    allowed, on rows that are no test's, and is as fast beside fp32 on this machine as asked. Where
    none is, no file is written and the figures say why: fp32 ships, and the exit status is 0. What
    an experiment allows stands in params.yaml.

    Or the same for MODEL.onnx, wherever it is from: at most half of ROWS, up to 512, are calibrated
    on, the others judged on. Without labels, agreement with its own decisions takes the place of
    accuracy. Its inputs and outputs stay as they are.

    Example: ferry quantize mnist-cnn

    Example: ferry quantize net.onnx --data rows.npz --output small
    """
    given = {name: value for name, value in settings.items() if value not in (None, ())}
    if isinstance(experiment, Path):
        if data is None or output is None:
            raise click.UsageError(f"{experiment} needs --data and --output")
        _quantize_file(experiment, data, output, {**DEFAULTS, **given}, as_json=as_json)
    elif data is not None or output is not None or given:
        raise click.UsageError("only MODEL.onnx takes options; an experiment's are in params.yaml")
    else:
        _quantize_experiment(experiment, track=track, as_json=as_json)


def _quantize_experiment(experiment: "Experiment", *, track: bool, as_json: bool) -> None:
    from pipeline import layout
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
    model: Path, rows: str, folder: Path, settings: dict[str, Any], *, as_json: bool
) -> None:
    from pipeline.quantization.foreign import FileSettings, quantize_file
    from pipeline.records.quantize import Budget, as_table

    asked = settings["min_speedup"]
    budgets = {
        variant: Budget(
            accuracy_loss=settings["accuracy_loss"],
            error_increase=settings["error_increase"],
            min_speedup=MIN_SPEEDUP[variant] if asked is None else asked,
        )
        for variant in settings["variant"]
    }
    report = quantize_file(
        model,
        rows,
        folder,
        settings=FileSettings(
            budgets=budgets,
            goal=settings["goal"],
            batch_sizes=settings["batch"],
            recipes=settings["recipe"],
        ),
    )
    show(report, as_json=as_json, text=as_table(report))
    for variant in report.variants:
        note(f"{folder / f'{model.stem}.{variant}.onnx'}")
