"""The command `ferry init`, which is no stage: begin a project of one's own."""

from typing import TYPE_CHECKING

import click

from serving.console import PATH, json_option, note, show

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("folder", metavar="DIR", type=PATH)
@click.option(
    "--template",
    metavar="NAME",
    default="digits",
    show_default=True,
    help="What the project begins with: digits, image_folder or table.",
)
@json_option
def init(folder: "Path", template: str, as_json: bool) -> None:
    """Make a project in DIR: an experiment that runs at once.

    DIR is empty or not there yet. The project has params.yaml, dvc.yaml, a package for data sets
    and models of your own, and repositories of git and DVC, unless it lies in one of git's already.

    Example: ferry init my-project --template digits
    """
    import shlex

    from pipeline.project.init import init

    made = init(folder, template)
    top = dict.fromkeys(name.split("/")[0] + "/" * ("/" in name) for name in made.files)
    show(made, as_json=as_json, text="\n  ".join([str(folder), *top]))
    enter = "" if made.folder == made.folder.cwd() else f"cd {shlex.quote(str(folder))}\n"
    note(f"\n{enter}dvc repro    # train, prove and bundle\nferry ui     # look at the runs")
