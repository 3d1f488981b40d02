"""The commands that need no training packages.

They are mounted in `ferry`, and run alone as `python -m serving`.
"""

from typing import TYPE_CHECKING, Any

import click

from serving.bench_command import bench
from serving.console import PATH, SETTINGS, Commands, json_option, log_to_stderr, note, show

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
@click.argument("model", type=PATH)
@click.argument("inputs", metavar="INPUT...", type=PATH, nargs=-1, required=True)
@click.option("-o", "--output", metavar="FILE", type=PATH, help="Not stdout.")
@click.option(
    "--format",
    type=click.Choice(["csv", "jsonl", "parquet"]),
    help="Of the output; by its suffix where not given.",
)
@click.option("--probabilities", is_flag=True, help="Write the score of every class too.")
@click.option("--resize", is_flag=True, help="Fit images to the model in size and mode.")
@click.option("--array", metavar="NAME", help="The array to take from .npz files.")
@click.option(
    "--column", "columns", metavar="NAME", multiple=True, help="Of .csv, ...; may be repeated."
)
@click.option("--batch-size", "batch_rows", metavar="N", type=COUNT, help="Rows a run (32).")
@click.option("--provider", metavar="NAME", help="Execution provider: cpu, cuda, ... (cpu)")
@click.option("--threads", metavar="N", type=COUNT, help="Threads within one operator (all cores).")
@json_option
def predict(
    model: "Path", inputs: "tuple[Path, ...]", output: "Path | None", as_json: bool, **settings: Any
) -> None:
    """Run MODEL, a bundle or an ONNX file, on every row of every INPUT.

    An INPUT is a .npy or .npz file; for images also an image or a folder of them; for text a .txt
    file, a text a line in UTF-8, or a column of a .csv, .jsonl or .parquet file (the only one, or
    "text" or "sentence", unless --column names it); for rows of numbers the columns of such a file,
    all in their order or those that --column names.

    Answers go to stdout as CSV, with --json as JSON Lines; with --output into a file (.csv, .jsonl
    or .parquet), with what could not be read beside it in FILE.errors.jsonl, and --json then prints
    the report of the run. A classifier gives id, label, label_index and probability; a
    reconstruction id, error and reconstruction; any other model id and its outputs. An id is the
    image, or the file and the row, counted from 0: rows.csv:12.

    Example: ferry predict bundles/mnist-cnn images/ --output labels.csv

    Example: ferry predict bundles/rt-lstm reviews.txt
    """
    from serving.predict import PredictOptions, summary
    from serving.predict import predict as run

    given = {name: value for name, value in settings.items() if value is not None}
    options = PredictOptions(default_format="jsonl" if as_json else "csv", **given)
    report = run(model, inputs, output=output, options=options)
    if output:
        show(report, as_json=as_json, text=summary(report))
    else:
        note(summary(report))


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


serving.add_command(bench)


def main() -> None:
    """Run the group as a program."""
    serving(prog_name="python -m serving")
