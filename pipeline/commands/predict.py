"""`ferry predict`: the command of serving, whose runs MLflow can record."""

from collections.abc import Callable
from typing import Any

import click

from serving.commands.predict import predict as serving_predict


def tracked(command: click.Command) -> click.Command:
    """The same command with `--track`; its callback returns the `PredictReport` of its run, if any.

    A run that was stopped is not recorded: it goes on another time.
    """
    run: Callable[..., Any] = command.callback or _nothing

    def callback(*, track: bool, **given: Any) -> Any:
        report = run(**given)
        if track and report is not None:
            from pipeline.tracking.predictions import log_predictions

            log_predictions(report, [str(one) for one in given["inputs"]])
        return report

    option = click.Option(
        ["--track/--no-track"], default=False, help="Whether MLflow records the run. (no)"
    )
    return click.Command(
        command.name,
        params=[*command.params, option],
        callback=callback,
        help=command.help,
        short_help=command.short_help,
        epilog=command.epilog,
    )


def _nothing(**_given: Any) -> None:
    """What a command without a callback does."""


predict = tracked(serving_predict)
