"""The command `ferry report`: one page of all that has run."""

import click

from pipeline.commands.options import track_option
from serving.console import json_option, note, show


@click.command()
@track_option
@json_option
def report(track: bool, as_json: bool) -> None:
    """Write reports/index.html, one page of everything that has run.

    It opens offline.

    Example: ferry report
    """
    from pathlib import Path

    from pipeline.commands.options import load_params
    from pipeline.config import layout
    from pipeline.stages.report import report

    done = report(Path(), layout.REPORT, params=load_params(), track=track)
    text = f"{done.page}: {', '.join(done.experiments)}"
    show(done, as_json=as_json, text=text)
    for line in done.left_out:
        note(line)
