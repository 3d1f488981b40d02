"""The command `ferry why`: the figures of a version, and whom it has beaten."""

import click

from pipeline.commands.options import complete_registered, enter_project
from serving.console import json_option, show


@click.command()
@click.argument("name", metavar="NAME[@ALIAS|/VERSION]", shell_complete=complete_registered)
@json_option
def why(name: str, as_json: bool) -> None:
    """Say why a version of a model is the champion, or is not.

    NAME alone is its champion; NAME@challenger and NAME/3 are others. It prints where the version
    is from, its figures, and what happened to it: the gates, who was beaten, when, by whom, and at
    which revision. It reads registry/NAME.jsonl and nothing else.

    Example: ferry why mnist-cnn@champion
    """
    from pipeline.project.registry.history import why as find
    from pipeline.project.registry.history import why_as_text

    enter_project()
    report = find(name)
    show(report, as_json=as_json, text=why_as_text(report))
