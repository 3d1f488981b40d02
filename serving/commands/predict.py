"""The command `ferry predict`: its options, and what it prints."""

from typing import TYPE_CHECKING, Any

import click

from serving.commands.options import MODEL, limit_options
from serving.console import (
    PATH,
    allow_option,
    complete_path,
    json_option,
    note,
    quick_imports,
    shared_option,
    show,
    task_option,
)

if TYPE_CHECKING:
    from pathlib import Path

    from serving.batch.report import PredictReport

COUNT = click.IntRange(min=1)
STDOUT = "-"


def count(value: str) -> int | None:
    """A count, or None for "auto", which is what ferry finds best."""
    if value == "auto":
        return None
    if not value.isdecimal():
        raise click.BadParameter(f"{value!r} is neither a count nor auto")
    return COUNT.convert(int(value), None, None)


AUTO = click.types.FuncParamType(count)


@click.command()
@click.argument("model", type=MODEL)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, shell_complete=complete_path)
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    type=PATH,
    help="Where the answers go: a file, or a folder of shards. (stdout)",
)
@click.option(
    "--format",
    type=click.Choice(["csv", "jsonl", "parquet", "arrow"]),
    help="Which format to write; guessed from the suffix of --output.",
)
@click.option(
    "--csv-safe",
    is_flag=True,
    help="Write ' before texts in CSV that begin with =, +, - or @, as formulas do.",
)
@click.option(
    "--resume/--overwrite",
    default=True,
    help="Go on with what is there (the default), or replace it.",
)
@click.option("--probabilities", is_flag=True, help="Also write the score of every class.")
@click.option("--top-k", metavar="K", type=COUNT, help="Also write the K best classes.")
@task_option
@shared_option
@click.option("--resize", is_flag=True, help="Fit images to the size and colors of the model.")
@click.option("--array", metavar="NAME", help="Which array of an .npz file to read.")
@click.option(
    "--column",
    "columns",
    metavar="NAME",
    multiple=True,
    help="Which column of a table to read; may be repeated.",
)
@click.option(
    "--input-format",
    metavar="NAME",
    help="What stdin holds: list, text, csv, jsonl, npy or arrow. (what the model takes)",
)
@click.option(
    "-0", "--null", is_flag=True, help="Paths of a list end in NUL, as `find -print0` writes them."
)
@click.option(
    "--delimiter",
    metavar="CHARACTER",
    help="What divides the fields of CSV: a character, or tab. (guessed from the header)",
)
@click.option(
    "--decimal",
    type=click.Choice([".", ","]),
    help="What stands before decimals in CSV. (guessed where a comma divides no fields)",
)
@click.option(
    "--missing",
    type=click.Choice(["refuse", "nan"]),
    help="What to do with a row that lacks a number or has NaN: name it, or feed NaN. (refuse)",
)
@click.option("--cast", is_flag=True, help="Convert arrays of another dtype to the model's.")
@click.option("--limit", metavar="N", type=COUNT, help="Read at most N rows.")
@click.option(
    "--max-errors",
    metavar="N",
    type=click.IntRange(min=0),
    help="Stop when more than N rows cannot be read.",
)
@click.option(
    "--batch-size", "batch_rows", metavar="N", type=AUTO, help="Batch size, or auto. (32)"
)
@click.option("--workers", metavar="N", type=AUTO, help="Batches at a time, or auto.")
@click.option("--threads", metavar="N", type=COUNT, help="Threads within one operator. (1)")
@click.option("--provider", metavar="NAME", help="Execution provider: cpu, cuda, ... (cpu)")
@click.option(
    "--reference/--no-reference",
    default=None,
    help="Hold all rows and answers against the training data, or none. (the first rows)",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where to run: on this machine, or on a cluster of Ray.",
)
@click.option(
    "--ray-address", metavar="ADDRESS", help="Address of a running cluster; `auto` finds one."
)
@click.option(
    "--dry-run", is_flag=True, help="Run nothing; show what would be read, and the first rows."
)
@allow_option
@limit_options
@json_option
def predict(
    model: "Path",
    inputs: tuple[str, ...],
    output: "Path | None",
    dry_run: bool,
    as_json: bool,
    **settings: Any,
) -> "PredictReport | None":
    """Run MODEL, a bundle or an ONNX file, on every row of every INPUT.

    MODEL may be models:/NAME@champion or models:/NAME/3, a version of the registry.

    An INPUT is an image, a folder of images or a tar of them; an array (.npy, .npz, IDX); a table
    (.csv, .jsonl, .parquet, .arrow) of images, arrays, numbers or texts, or a folder of tables; a
    .txt file with one text a line, which like .csv and .jsonl may be a .gz or .zst; a pattern such
    as 'photos/**/*.jpg'; a split such as mnist:test; or - for stdin, which holds paths of images,
    texts or records, as the model takes them.

    Every file of a folder is read or named among what was not, but for hidden ones. Images are
    turned as the camera was held; what is transparent is read over white.

    Without --output the answers go to stdout, as CSV or, with --json, as JSON Lines. --output names
    a file (.csv, .jsonl, .parquet, .arrow) or, without a suffix, a folder of Parquet shards; --json
    then prints the report of the run. Rows that cannot be read do not stop the run: they are listed
    beside the output, in FILE.errors.jsonl.

    A classifier gives id, label, label_index and probability; a reconstruction gives id, error and
    reconstruction; a regression gives id and its targets by their names; any other model gives id
    and its outputs, and first the label if one of them is that. The id is the path of the image, or
    the file and the number of the row, counted from 0: rows.csv:12.

    A run that was stopped or killed goes on when the same command is given again; every row is
    written once.

    Exit status: 0 done, 1 failed, 2 usage, 130 or 143 when SIGINT or SIGTERM stopped the run after
    the batch in hand.

    Example: ferry predict bundles/mnist-cnn images/ --output labels.parquet

    Example: ferry predict bundles/rt-lstm reviews.txt
    """
    with quick_imports():  # the first row waits for them
        from serving.batch import predict as batch
        from serving.batch import run

    given = {name: value for name, value in settings.items() if value is not None}
    options = run.PredictOptions(
        default_format="jsonl" if as_json else "csv",
        overwrite=not given.pop("resume"),
        **given,
    )
    output = None if output is None or str(output) == STDOUT else output
    if dry_run:
        shown = run.dry_run(model, inputs, output, options)
        show(shown, as_json=as_json, text=run.as_text(shown))
        return None
    report = batch.predict(model, inputs, output=output, options=options)
    _tell(report, as_json=as_json)
    return report


def _tell(report: "PredictReport", *, as_json: bool) -> None:
    """Print what was done, and exit as a run does that a signal has stopped."""
    from serving.batch.report import summary

    if report.output:
        show(report, as_json=as_json, text=summary(report))
    else:
        note(summary(report))
    if report.stopped:
        import signal

        click.get_current_context().exit(128 + signal.Signals[report.stopped])
