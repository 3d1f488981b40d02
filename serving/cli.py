"""The commands that need no training packages.

They are mounted in `ferry`, and run alone as `python -m serving`.
"""

from typing import TYPE_CHECKING

import click

from serving.bench_command import bench
from serving.console import PATH, SETTINGS, Commands, json_option, log_to_stderr, show
from serving.predict_command import predict

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["bench", "main", "predict", "serving", "verify"]

COUNT = click.IntRange(min=1)


@click.group(
    cls=Commands,
    context_settings=SETTINGS,
    epilog="Example: python -m serving predict bundles/digits-cnn rows.npy",
)
def serving() -> None:
    """Run, time and check what ferry exported."""
    log_to_stderr()


@serving.command()
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
    from serving.verify import as_table
    from serving.verify import verify as check

    report = check(bundle, provider=provider, threads=threads)
    show(report, as_json=as_json, text=as_table(report))
    report.require()


@serving.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say what of this machine and installation will make trouble, and how to mend it.

    Exit status 1 if there is a problem, 0 if there are only warnings.

    Example: ferry doctor
    """
    from pathlib import Path

    from serving.doctor import as_text, diagnose

    diagnosis = diagnose(Path())
    show(diagnosis, as_json=as_json, text=as_text(diagnosis))
    ctx.exit(1 if diagnosis.problems else 0)


serving.add_command(predict)
serving.add_command(bench)


def main() -> None:
    """Run the group as a program."""
    serving(prog_name="python -m serving")
