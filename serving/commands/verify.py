"""The command `ferry verify`: check everything that a bundle says of itself."""

from typing import TYPE_CHECKING

import click

from serving.commands.options import MODEL
from serving.console import allow_option, json_option, show

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("bundle", type=MODEL)
@click.option(
    "--provider", metavar="NAME", default="cpu", help="Execution provider: cpu, cuda, ... (cpu)"
)
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(min=1),
    help="Threads within one operator. (all cores)",
)
@allow_option
@json_option
def verify(bundle: "Path", provider: str, threads: int | None, as_json: bool) -> None:
    """Check everything that BUNDLE says of itself.

    BUNDLE is a folder, its name in bundles/, or models:/NAME@champion.

    It is refused if one byte differs. The checks are the sha256 of every file, metadata, signature,
    labels, gates, golden outputs and the self-test of the runner. Exit status 1 when a check fails.

    Example: ferry verify bundles/mnist-cnn
    """
    from serving.bundles.verify import as_table
    from serving.bundles.verify import verify as check

    report = check(bundle, provider=provider, threads=threads)
    show(report, as_json=as_json, text=as_table(report))
    report.require()
