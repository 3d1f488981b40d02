"""The command `ferry register`: a bundle becomes a version that can be promoted."""

import re
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import enter_project, track_option
from serving.commands.options import MODEL, limit_options
from serving.console import json_option, note, show, summary

if TYPE_CHECKING:
    from pathlib import Path

KEY_AND_VALUE = re.compile(r"[\w./-]+=.*", re.ASCII | re.DOTALL)


def tags(_context: click.Context, _option: click.Parameter, given: Any) -> dict[str, str]:
    """A mapping of what was given as KEY=VALUE, with keys that MLflow takes as well."""
    for one in given:
        if not KEY_AND_VALUE.fullmatch(one):
            raise click.BadParameter(f"{one!r} must be KEY=VALUE; a key has letters, digits, ./_-")
    return dict(one.split("=", 1) for one in given)


@click.command()
@click.argument("bundle", type=MODEL)
@click.option("--name", metavar="NAME", help="Of the registered model. (that of the bundle)")
@click.option("--description", metavar="TEXT", default="", help="What is new in this version.")
@click.option(
    "--tag", metavar="KEY=VALUE", multiple=True, callback=tags, help="A tag; may be repeated."
)
@track_option
@limit_options
@json_option
def register(
    bundle: "Path",
    name: str | None,
    description: str,
    tag: dict[str, str],
    track: bool,
    as_json: bool,
) -> None:
    """Make a bundle the next version of a model, and its challenger.

    BUNDLE is the name of an experiment, whose bundle lies in bundles/, or a folder. It is verified
    and copied to registry/bundles/, as the next `ferry bundle` replaces it. What happened is a line
    more in registry/NAME.jsonl, a file to commit. The same bundle again makes no second version.

    Example: ferry register mnist-cnn --description "trained on the new scans"
    """
    from pipeline.project.registry.mlflow_mirror import mirrored
    from pipeline.project.registry.versions import model_name
    from pipeline.project.registry.versions import register as add

    folder = _enter_project_with(bundle)
    name = model_name(folder, name)
    with mirrored(name, wanted=track):
        report = add(folder, name, description=description, tags=tag)
    if not report.new:
        note(f"{report.name}/{report.version} is this very bundle already: nothing is changed")
    show(report, as_json=as_json, text=summary(report))


def _enter_project_with(path: "Path") -> "Path":
    """Go to the folder of params.yaml; returns the path as it is called from there."""
    import os

    absolute = path.absolute()
    enter_project()
    return path.__class__(os.path.relpath(absolute))
