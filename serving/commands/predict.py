"""The command `ferry predict`: its options, and what it prints."""

from typing import TYPE_CHECKING, Any

import click

from serving.console import PATH, json_option, note, show

if TYPE_CHECKING:
    from pathlib import Path

    from serving.batch.report import PredictReport

COUNT = click.IntRange(min=1)
STDOUT = "-"


class AutoCount(click.ParamType["int | None"]):
    """A count, or "auto" for what ferry finds best."""

    name = "count"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """None for "auto"."""
        if value == "auto":
            return None
        if not str(value).isdecimal():
            self.fail(f"{value!r} is neither a count nor auto", param, ctx)
        return COUNT.convert(value, param, ctx)


AUTO = AutoCount()


@click.command()
@click.argument("model", type=PATH)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="PATH", type=PATH, help="A file or a folder, not stdout.")
@click.option(
    "--format",
    type=click.Choice(["csv", "jsonl", "parquet", "arrow"]),
    help="Of the output; by its suffix where not given.",
)
@click.option(
    "--resume/--overwrite", default=True, help="Go on with what is there (default), or replace it."
)
@click.option("--probabilities", is_flag=True, help="Write the score of every class too.")
@click.option("--top-k", metavar="K", type=COUNT, help="Write the K best classes too.")
@click.option("--resize", is_flag=True, help="Fit images to the model in size and mode.")
@click.option("--array", metavar="NAME", help="The array to take from .npz files.")
@click.option(
    "--column", "columns", metavar="NAME", multiple=True, help="Of .csv, ...; may be repeated."
)
@click.option(
    "--input-format",
    metavar="NAME",
    help="What stdin holds: list, text, csv, jsonl, npy or arrow (what the model takes).",
)
@click.option("--limit", metavar="N", type=COUNT, help="Read N rows at most.")
@click.option("--max-errors", metavar="N", type=click.IntRange(min=0), help="Stop when more fail.")
@click.option(
    "--batch-size", "batch_rows", metavar="N", type=AUTO, help="Rows a run, or auto (32)."
)
@click.option("--workers", metavar="N", type=AUTO, help="Batches at a time, or auto.")
@click.option("--threads", metavar="N", type=COUNT, help="Threads within one operator (1).")
@click.option(
    "--provider", "--device", metavar="NAME", help="Execution provider: cpu, cuda, ... (cpu)"
)
@click.option(
    "--reference", is_flag=True, help="Warn when inputs or answers are not like the training data."
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where the work is done.",
)
@click.option("--ray-address", metavar="ADDRESS", help="Of a cluster that runs; `auto` finds one.")
@click.option("--dry-run", is_flag=True, help="Show what would be read, and the first rows.")
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

    An INPUT is an image, a folder of images or a tar of them; an array (.npy, .npz, IDX); a table
    (.csv, .jsonl, .parquet, .arrow) with images, arrays, numbers or a text; a .txt file with a text
    a line; a pattern such as 'photos/**/*.jpg'; a split such as mnist:test; or - for stdin: paths
    of images, texts or records, as the model takes them.

    Answers go to stdout as CSV, with --json as JSON Lines; with --output into a file (.csv, .jsonl,
    .parquet, .arrow) or, without a suffix, into a folder of Parquet shards. What cannot be read is
    listed beside it, in FILE.errors.jsonl, and does not stop the run. --json then prints the report
    of the run. A classifier gives id, label, label_index and probability; a reconstruction id,
    error and reconstruction; any other model id and its outputs. An id is the image, or the file
    and the row, counted from 0: rows.csv:12.

    Given again, the command goes on where it was stopped or killed; every row is written once.

    Exit status: 0 done, 1 failed, 2 usage, 130 or 143 stopped by SIGINT or SIGTERM after the batch
    in hand.

    Example: ferry predict bundles/mnist-cnn images/ --output labels.parquet

    Example: ferry predict bundles/rt-lstm reviews.txt
    """
    from serving.batch.predict import dry_run as plan
    from serving.batch.predict import predict as run
    from serving.batch.report import summary
    from serving.batch.run import PredictOptions

    given = {name: value for name, value in settings.items() if value is not None}
    options = PredictOptions(
        default_format="jsonl" if as_json else "csv",
        overwrite=not given.pop("resume"),
        **given,
    )
    output = None if output is None or str(output) == STDOUT else output
    if dry_run:
        from serving.batch.run import as_text

        shown = plan(model, inputs, output=output, options=options)
        show(shown, as_json=as_json, text=as_text(shown))
        return None
    report = run(model, inputs, output=output, options=options)
    if output:
        show(report, as_json=as_json, text=summary(report))
    else:
        note(summary(report))
    if report.stopped:
        import signal

        click.get_current_context().exit(128 + signal.Signals[report.stopped])
    return report
