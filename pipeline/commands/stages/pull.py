"""The command `ferry pull`: fetch the official files of a data set."""

import click

from serving.console import json_option, show


@click.command()
@click.argument("dataset")
@click.option(
    "--mirror",
    metavar="URL|DIR",
    envvar="FERRY_MIRROR",
    show_envvar=True,
    help="Where to look before the official addresses; it holds DATASET/FILE.",
)
@json_option
def pull(dataset: str, mirror: str | None, as_json: bool) -> None:
    """Fetch the official files of DATASET and check them.

    A download that was interrupted goes on where it stopped. Data sets such as digits come with
    the packages that ferry needs, so they take no network. The files of a data set of your own, one
    with a reader in params.yaml, are hashed where they lie.

    Example: ferry pull mnist --mirror /mnt/mirror
    """
    from pathlib import Path

    from pipeline import datasets
    from pipeline.commands.options import enter_project
    from pipeline.config import layout, params
    from pipeline.config.experiment import OwnSection
    from pipeline.stages.pull import pull, pull_own
    from serving.errors import UnknownNameError

    here = enter_project()
    settings, raw = params.load(), layout.raw(dataset)
    own = settings.datasets.get(dataset)
    if isinstance(own, OwnSection):
        report = pull_own(raw, name=dataset, section=own)
        text = f"of {own.settings.get('path')}, hashed in {raw}"
    else:
        if mirror and "://" not in mirror:
            mirror = str(here / Path(mirror).expanduser())
        if dataset not in datasets.names():
            raise UnknownNameError("data set", dataset, {*settings.datasets, *datasets.names()})
        report = pull(raw, name=dataset, mirrors=settings.mirrors, mirror=mirror)
        text = f"in {raw}"
    files = "1 file" if len(report.files) == 1 else f"{len(report.files):,} files"
    show(report, as_json=as_json, text=f"{dataset}: {files} {text}")
