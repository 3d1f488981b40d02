"""The command `ferry list`, which is no stage: what there is, and how far it is."""

import click

from serving.console import json_option, show


@click.command()
@click.argument(
    "kind",
    metavar="[experiments|datasets|models|recipes]",
    type=click.Choice(["experiments", "datasets", "models", "recipes"]),
    required=False,
)
@json_option
def list(kind: str | None, as_json: bool) -> None:  # noqa: A001 - a command has its name
    """List experiments with what has run, data sets, models and recipes.

    Or one kind of these in full.

    Example: ferry list models
    """
    from pipeline.commands.options import load_params
    from pipeline.project.listing import as_text, listed, overview

    params = load_params()
    if kind:
        found = listed(kind, params)
        show(found, as_json=as_json, text=as_text(kind, found))
    else:
        all_kinds = overview(params)
        text = "\n\n".join(as_text(name, found) for name, found in all_kinds.items())
        show(all_kinds, as_json=as_json, text=text)
