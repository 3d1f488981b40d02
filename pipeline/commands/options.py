"""The arguments and options that several commands of `ferry` share."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from serving.console import complete_path, note

if TYPE_CHECKING:
    from pathlib import Path

    from click.shell_completion import CompletionItem

    from pipeline.config.experiment import Experiment, Params

Command = TypeVar("Command", bound=Callable[..., Any])
HERE = "ferry.here"
"""Where the person is, in click's own notes of a command that has entered the project."""


def enter_project() -> "Path":
    """Go to the folder of params.yaml, here or above, and return the way back to where one was.

    What a person types is relative to where he is: join it to the result.
    """
    import os
    from pathlib import Path

    from pipeline.config import layout

    here = Path.cwd()
    os.chdir(layout.project())
    return Path(os.path.relpath(here))


def from_here(path: "Path") -> "Path":
    """The way from the project to a path that was typed beside EXPERIMENT."""
    here: Path | None = click.get_current_context().meta.get(HERE)
    return here / path if here else path


class ExperimentName(click.ParamType["Experiment"]):
    """A section of params.yaml, looked up when the command runs and never for its help."""

    name = "experiment"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002 - click's signature
        ctx: click.Context | None,
    ) -> "Experiment":
        """Read params.yaml and find the experiment."""
        from pipeline.config import params

        here = enter_project()
        if ctx:
            ctx.meta[HERE] = here
        return params.load().experiment(value)


class ExperimentOrFile(click.ParamType["Experiment | Path"]):
    """A name that ends in .onnx or begins with models:/ is a path, any other an experiment's."""

    name = "experiment"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> "Experiment | Path":
        """Make a path of what is one, and find the experiment of any other name."""
        from serving.bundles.finding import is_registered_name

        if str(value).endswith(".onnx") or is_registered_name(str(value)):
            from pathlib import Path

            return Path(value)
        return ExperimentName().convert(value, param, ctx)


def complete_experiment(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> "list[str] | list[CompletionItem]":
    """The experiments whose names begin so, for a shell; where there are none, it may be a file."""
    from pipeline.config import layout, params
    from serving.errors import FerryError

    names = []
    # A shell has nowhere to show an error; the command will tell.
    with contextlib.suppress(FerryError):
        found = params.load(layout.project() / layout.PARAMS).experiments
        names = [name for name in found if name.startswith(incomplete)]
    return names or complete_path(context, parameter, incomplete)


def complete_registered(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[str]:
    """The registered models whose names begin so, for a shell."""
    from pipeline.config import layout
    from serving.bundles.registry import REGISTRY, names

    return [name for name in names(layout.project() / REGISTRY) if name.startswith(incomplete)]


def experiment_argument(command: Command) -> Command:
    """Add the argument EXPERIMENT."""
    argument = click.argument(
        "experiment", type=ExperimentName(), shell_complete=complete_experiment
    )
    return argument(command)


def experiment_or_file_argument(command: Command) -> Command:
    """Add the argument EXPERIMENT or MODEL.onnx, which the command receives as `subject`."""
    argument = click.argument(
        "subject",
        metavar="EXPERIMENT|MODEL.onnx",
        type=ExperimentOrFile(),
        shell_complete=complete_experiment,
    )
    return argument(command)


def load_params() -> "Params":
    """Read params.yaml for a command that goes on without the experiments that are broken."""
    from pipeline.config import params

    enter_project()
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
        help="Whether to record it in MLflow.",
    )
    return option(command)
