"""The arguments and options that several commands of `ferry` share."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config.experiment import Experiment, Params

Command = TypeVar("Command", bound=Callable[..., Any])


class ExperimentName(click.ParamType["Experiment"]):
    """A section of params.yaml, looked up when the command runs and never for its help."""

    name = "experiment"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002 - click's signature
        ctx: click.Context | None,  # noqa: ARG002 - click's signature
    ) -> "Experiment":
        """Read params.yaml and find the experiment."""
        from pipeline.config import params

        return params.load().experiment(value)


class ExperimentOrFile(click.ParamType["Experiment | Path"]):
    """A name that ends in .onnx is a file, any other an experiment of params.yaml."""

    name = "experiment"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> "Experiment | Path":
        """Make a path of what ends in .onnx, and find the experiment of any other name."""
        if str(value).endswith(".onnx"):
            from pathlib import Path

            return Path(value)
        return ExperimentName().convert(value, param, ctx)


def experiment_argument(command: Command) -> Command:
    """Add the argument EXPERIMENT."""
    return click.argument("experiment", type=ExperimentName())(command)


def experiment_or_file_argument(command: Command) -> Command:
    """Add the argument EXPERIMENT or MODEL.onnx, which the command receives as `subject`."""
    argument = click.argument("subject", metavar="EXPERIMENT|MODEL.onnx", type=ExperimentOrFile())
    return argument(command)


def load_params() -> "Params":
    """Read params.yaml for a command that goes on without the experiments that are broken."""
    from pipeline.config import params
    from serving.console import note

    read = params.load()
    for message in read.broken.values():
        note(f"Warning: {message}; left out")
    return read


def track_option(command: Command) -> Command:
    """Add `--track/--no-track`."""
    option = click.option(
        "--track/--no-track",
        default=True,
        show_envvar=True,
        envvar="FERRY_TRACK",
        help="Whether MLflow records the run.",
    )
    return option(command)
