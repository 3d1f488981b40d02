"""What `ferry deploy` and `ferry devices` share: which devices, and how they are reached."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from serving.console import PATH

if TYPE_CHECKING:
    from pathlib import Path

    from serving.edge.ssh import Access

Command = TypeVar("Command", bound=Callable[..., Any])


def reach_options(command: Command) -> Command:
    """Add `--hosts`, `--ssh-config`, `--python` and `--jobs`."""
    options = (
        click.option(
            "--hosts", metavar="FILE", type=PATH, help="A text file with more targets, one a line."
        ),
        click.option(
            "--ssh-config", metavar="FILE", type=PATH, help="Settings of ssh. (~/.ssh/config)"
        ),
        click.option(
            "--python",
            metavar="PATH",
            default="python3",
            show_default=True,
            help="The Python there that has numpy and onnxruntime.",
        ),
        click.option(
            "--jobs",
            metavar="N",
            type=click.IntRange(1, 256),
            default=8,
            show_default=True,
            help="Devices at a time.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def access(ssh_config: "Path | None", python: str) -> "Access":
    """How devices are reached; UsageError for what cannot be."""
    import threading

    from serving.edge.ssh import Access
    from serving.errors import MissingInputError, UsageError

    if not python.strip() or python.startswith("-"):
        raise UsageError(f"--python must be a program, for instance python3; got {python!r}")
    if ssh_config and not ssh_config.is_file():
        raise MissingInputError(f"{ssh_config} is not there; --ssh-config is a file as ssh reads")
    return Access(
        ssh_config=ssh_config.absolute() if ssh_config else None,
        python=python,
        stop=threading.Event(),
    )
