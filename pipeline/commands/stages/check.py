"""The command `ferry check`: read an experiment's settings, and say what is wrong with them."""

import click

from serving.console import json_option, show


@click.command()
@click.argument("experiment")
@json_option
def check(experiment: str, as_json: bool) -> None:
    """Check the settings of EXPERIMENT before a stage runs with them.

    `dvc repro` does so first: DVC removes what a stage made before it runs it, and a misspelt
    setting should cost nothing.

    Example: ferry check mnist-cnn
    """
    from pipeline.commands.options import enter_project
    from pipeline.config import layout
    from pipeline.stages.check import check

    enter_project()
    found = check(layout.mark(experiment), name=experiment)
    show(found, as_json=as_json, text=f"{experiment}: its settings can be read")
