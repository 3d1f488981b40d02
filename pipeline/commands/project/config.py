"""The command `ferry config`, which is no stage: what params.yaml says of an experiment."""

import click

from pipeline.commands.options import complete_experiment, enter_project, load_params
from serving.console import json_option, show, table


@click.command()
@click.argument("experiment", required=False, shell_complete=complete_experiment)
@json_option
def config(experiment: str | None, as_json: bool) -> None:
    """Print every setting of EXPERIMENT, and where it stands.

    That is its own section of params.yaml, or `defaults` for what it does not say. Without
    EXPERIMENT, list the experiments.

    Example: ferry config mnist-cnn
    """
    from pipeline.config.params import resolve
    from pipeline.config.reading import dump_value

    enter_project()
    if experiment is None:
        header = ("experiment", "dataset", "model", "epochs")
        rows = [
            (one.name, one.dataset, one.model.name, one.epochs)
            for one in load_params().experiments.values()
        ]
        listed = [dict(zip(header, row, strict=True)) for row in rows]
        show(listed, as_json=as_json, text=table(header, [tuple(map(str, row)) for row in rows]))
        return
    settings = resolve(experiment)
    lines = [(key, dump_value(one.value), one.source) for key, one in settings.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (map(str.ljust, line, widths) for line in lines)
    text = "\n".join("  ".join(line).rstrip() for line in padded)
    show(settings, as_json=as_json, text=text)
