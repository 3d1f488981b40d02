"""The command `ferry lineage`, which is no stage: where a file comes from."""

import click

from pipeline.commands.options import complete_experiment
from serving.console import json_option, show


@click.command()
@click.argument("path_or_name", metavar="PATH|NAME", shell_complete=complete_experiment)
@click.option("--deep", is_flag=True, help="Hash the arrays of a data set over 100 MB as well.")
@json_option
def lineage(path_or_name: str, deep: bool, as_json: bool) -> None:
    """Trace a model or its predictions back to data and commit.

    PATH is a bundle, an ONNX file, weights (.safetensors) or an output of `ferry predict`, wherever
    it lies; NAME is an experiment, or a model of the registry (models:/NAME@champion). Each link is
    held against the hashes that the stages recorded, and against dvc.lock and git. Exit status 1
    when a link is contradicted.

    Example: ferry lineage bundles/mnist-cnn

    Example: ferry lineage answers.csv --json
    """
    from pipeline.commands.options import enter_project

    there = enter_project() / path_or_name
    if not there.exists():
        _refuse_unknown(path_or_name)
    from pipeline.project.lineage import as_table, lineage

    found = lineage(str(there) if there.exists() else path_or_name, deep=deep)
    show(found, as_json=as_json, text=as_table(found))
    found.require()


def _refuse_unknown(name: str) -> None:
    """Refuse the name of no experiment, and that of one which has not run."""
    from pathlib import Path

    from pipeline.config import layout, params
    from serving.bundles.finding import located
    from serving.errors import MissingInputError

    is_path = len(Path(name).parts) > 1 or Path(name).suffix or ":" in name
    if is_path or located(name).exists() or layout.details(name, "train").exists():
        return
    if layout.PARAMS.exists():
        params.load().experiment(name)
        raise MissingInputError(f"{name} has not run; `dvc repro bundle@{name}` runs it")
