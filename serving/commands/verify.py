"""The command `ferry verify`: recompute all that a bundle says of itself."""

from typing import TYPE_CHECKING

import click

from serving.console import PATH, json_option, show

if TYPE_CHECKING:
    from pathlib import Path
COUNT = click.IntRange(min=1)


@click.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--provider", metavar="NAME", default="cpu", help="Execution provider: cpu, cuda, ..."
)
@click.option("--threads", metavar="N", type=COUNT, help="Threads within one operator (all cores).")
@json_option
def verify(bundle: "Path", provider: str, threads: int | None, as_json: bool) -> None:
    """Recompute all that BUNDLE says of itself, and refuse it if one byte differs.

    Sums of every file, metadata, signature, labels, gates, golden outputs, and the runner's own
    self-test. Exit status 1 when a check fails.

    Example: ferry verify bundles/mnist-cnn
    """
    from serving.bundles.verify import as_table
    from serving.bundles.verify import verify as check

    report = check(bundle, provider=provider, threads=threads)
    show(report, as_json=as_json, text=as_table(report))
    report.require()
