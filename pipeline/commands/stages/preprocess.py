"""The command `ferry preprocess`: split a data set into arrays."""

import click

from serving.console import json_option, show, summary


@click.command()
@click.argument("dataset")
@json_option
def preprocess(dataset: str, as_json: bool) -> None:
    """Split DATASET into training, validation and test arrays.

    Example: ferry preprocess mnist
    """
    from pipeline.commands.options import enter_project
    from pipeline.config import layout, params
    from pipeline.stages.preprocess import preprocess

    enter_project()
    settings = params.dataset(params.load(), dataset)
    manifest = preprocess(layout.raw(dataset), layout.ready(dataset), name=dataset, config=settings)
    show(manifest, as_json=as_json, text=summary({"dataset": dataset, **manifest.rows}))
