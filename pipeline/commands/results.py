"""The command `ferry results`: what was measured here, and what is published."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands.options import complete_experiment, enter_project, load_params
from serving.console import PATH, json_option, note, program, show

if TYPE_CHECKING:
    from pipeline.config.experiment import Params

PUBLISHED = Path("docs/results")


@click.command()
@click.argument(
    "experiments", metavar="[EXPERIMENT...]", nargs=-1, shell_complete=complete_experiment
)
@click.option("--published", is_flag=True, help="Print the figures of docs/results instead.")
@click.option(
    "--publish",
    metavar="DIR",
    type=PATH,
    help="Write these figures to DIR, and the tables of the pages beside it and of README.md.",
)
@json_option
def results(
    experiments: tuple[str, ...], published: bool, publish: Path | None, as_json: bool
) -> None:
    """Print what was measured here, of every variant.

    That is accuracy, parity, speed and size. Shows the experiments that are named, or all that have
    run. A figure is shown only beside the very file that it was measured of.

    Example: ferry results digits-mlp digits-cnn

    Example: ferry results --publish docs/results
    """
    if published and publish:
        raise click.UsageError("--published prints and --publish writes: give one of them")
    if published:
        _print_published(experiments, as_json=as_json)
    elif publish:
        _publish(experiments, publish, as_json=as_json)
    else:
        _print_measured(experiments, as_json=as_json)


def _params_with(experiments: tuple[str, ...]) -> "Params":
    """What params.yaml says; a misspelt name is refused before ONNX Runtime is imported."""
    read = load_params()
    for name in experiments:
        read.experiment(name)
    return read


def _print_measured(experiments: tuple[str, ...], *, as_json: bool) -> None:
    here = enter_project()
    params = _params_with(experiments)
    import os

    from pipeline.config import layout
    from pipeline.stages.page.results import as_table, results

    found = results(params, experiments)
    show(found.rows, as_json=as_json, text=as_table(found.rows))
    for line in found.left_out:
        note(line)
    if found.rows and not as_json:
        above = Path(os.path.relpath(".", here))
        ferry, shipped = program(), [row.experiment for row in found.rows if row.shipped]
        note(
            f"\nReport   {above / layout.REPORT} (`{ferry} report` makes it)\n"
            f"Runs     {ferry} ui, then http://127.0.0.1:5000"
        )
        for name in shipped[-1:]:
            rows = f"{params.experiment(name).dataset}:test"
            there = "" if above == Path() else f" -C {above}"
            note(f"Predict  {ferry}{there} predict {layout.bundle(name)} {rows} --limit 5")


def _print_published(experiments: tuple[str, ...], *, as_json: bool) -> None:
    from pipeline.records.published import as_table, read_published, read_scripts
    from serving.errors import MissingInputError

    found = {one.experiment: one for one in read_published(PUBLISHED)}
    for name in experiments:
        if name not in found:
            raise MissingInputError(f"{PUBLISHED} has no figures of {name}")
    scripts = () if experiments else read_scripts(PUBLISHED)
    if not (found or scripts):
        raise MissingInputError(f"{PUBLISHED} has no figures")
    chosen = tuple(found[name] for name in experiments or found)
    show((*chosen, *scripts), as_json=as_json, text=as_table(chosen, scripts))


def _publish(experiments: tuple[str, ...], folder: Path, *, as_json: bool) -> None:
    here = enter_project()
    params = _params_with(experiments)
    from pipeline.records.published import write_published
    from pipeline.stages.page.results import publishable

    written = write_published(here / folder, publishable(params, experiments))
    show(written, as_json=as_json, text="\n".join(map(str, written)))
