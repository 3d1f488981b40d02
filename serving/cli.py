"""The commands that need no training packages.

They are mounted in `ferry`, and run alone as `python -m serving`.
"""

import os
import sys

import click

from serving.console import SETTINGS, Commands, log_to_stderr

HERE = "serving.commands"
COMMANDS = {
    "predict": (HERE, "Run MODEL, a bundle or an ONNX file, on every row of every INPUT."),
    "bench": (HERE, "Time any MODEL: load patterns, comparisons, tuning."),
    "verify": (HERE, "Check everything that BUNDLE says of itself."),
    "demo": (HERE, "Serve the page of BUNDLE, until Ctrl-C."),
    "doctor": (HERE, "Say what on this machine will cause trouble, and how to fix it."),
}
"""Each with its package and the first line of its help."""
WATCHED = {
    *("bench", "bundle", "lint", "parity", "predict", "promote", "quantize", "register", "sign"),
    "verify",
}
"""The commands that run models which somebody else may have made."""


@click.group(
    cls=Commands,
    sections={"Commands": COMMANDS},
    context_settings=SETTINGS,
    epilog="Example: python -m serving predict bundles/digits-cnn rows.npy",
)
def serving() -> None:
    """Run, time and check what ferry exported."""
    log_to_stderr()


def begin() -> None:
    """Where a command runs models, leave this process to watch it, and go on in another."""
    _open_streams()
    if WATCHED.intersection(sys.argv):
        from serving.runtime.guard import watch

        watch()


def _open_streams() -> None:
    """Give each standard stream that is closed a file, or the next one that is opened becomes it.

    What is written to a closed stdout is an error, as of other programs.
    """
    for name, mode, flags in (
        ("stdin", "r", os.O_RDONLY),
        ("stdout", "w", os.O_RDONLY),
        ("stderr", "w", os.O_WRONLY),
    ):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode))


def main() -> None:
    """Run the group as a program."""
    begin()
    serving(prog_name="python -m serving")
