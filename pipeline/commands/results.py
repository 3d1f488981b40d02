"""The command `ferry results`, which is no stage; the group `ferry` mounts it."""

import click

from serving.console import json_option, note, show


@click.command()
@click.argument("experiments", metavar="[EXPERIMENT...]", nargs=-1)
@json_option
def results(experiments: tuple[str, ...], as_json: bool) -> None:
    """Print what was measured here: accuracy, parity, speed and size of every variant.

    Of the experiments that have run, or of those that are named.

    Example: ferry results digits-mlp digits-cnn
    """
    from pipeline import layout
    from pipeline.commands.options import load_params
    from pipeline.stages.results import as_table, results

    found = results(load_params(), experiments)
    show(found.rows, as_json=as_json, text=as_table(found.rows))
    for line in found.left_out:
        note(line)
    if found.rows and not as_json:
        shipped = [layout.bundle(row.experiment) for row in found.rows if row.shipped]
        note(
            f"\nReport   {layout.REPORT} (`ferry report` makes it)\n"
            f"Runs     make ui, then http://127.0.0.1:5000"
            + (f"\nPredict  ferry predict {shipped[-1]} FILES..." if shipped else "")
        )
