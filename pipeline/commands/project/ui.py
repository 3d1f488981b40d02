"""The command `ferry ui`, which is no stage: browse the runs that MLflow recorded."""

import click

from serving.console import json_option, note, show


@click.command()
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(min=1, max=65535),
    default=5000,
    show_default=True,
    help="Port of 127.0.0.1 to serve the pages at.",
)
@json_option
def ui(port: int, as_json: bool) -> None:
    """Serve MLflow's pages of the project's runs, until Ctrl-C.

    On this machine alone: others cannot open them.

    Example: ferry ui --port 5001
    """
    from pipeline.commands.options import enter_project
    from pipeline.project.ui import ui

    def opened(address: str) -> None:
        show({"url": address}, as_json=as_json, text=address)
        note("Ctrl-C ends it")

    enter_project()
    ui(port, opened)
