"""The commands that need no training packages.

They are mounted in `ferry`, and run alone as `python -m serving`.
"""

import click

from serving.commands.bench import bench
from serving.commands.doctor import doctor
from serving.commands.predict import predict
from serving.commands.verify import verify
from serving.console import SETTINGS, Commands, log_to_stderr


@click.group(
    cls=Commands,
    context_settings=SETTINGS,
    epilog="Example: python -m serving predict bundles/digits-cnn rows.npy",
)
def serving() -> None:
    """Run, time and check what ferry exported."""
    log_to_stderr()


for command in (predict, bench, verify, doctor):
    serving.add_command(command)


def main() -> None:
    """Run the group as a program."""
    serving(prog_name="python -m serving")
