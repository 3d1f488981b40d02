"""The command `ferry rollback`: the champion before becomes it again."""

import click

from pipeline.commands.options import complete_registered, enter_project, track_option
from serving.console import json_option, show


@click.command()
@click.argument("name", shell_complete=complete_registered)
@click.option(
    "--expect",
    metavar="N",
    type=click.IntRange(min=1),
    help="Refuse unless version N is the champion.",
)
@track_option
@json_option
def rollback(name: str, expect: int | None, track: bool, as_json: bool) -> None:
    """Make the champion before the present one it again.

    Twice goes back two. Nothing is measured; the bundle must be here and unaltered.

    Example: ferry rollback mnist-cnn
    """
    from pipeline.project.registry.mlflow_mirror import mirrored
    from pipeline.project.registry.versions import rollback as go_back

    enter_project()
    with mirrored(name, wanted=track):
        report = go_back(name, expect)
    text = f"{report.name}/{report.version}  is the champion again, in place of {report.over}"
    show(report, as_json=as_json, text=text)
