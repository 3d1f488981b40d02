"""The command `ferry bench`: its options, and what it prints."""

from typing import TYPE_CHECKING, Any

import click

from serving.commands.options import MODEL, POSITIVE, limit_options
from serving.console import INTERRUPTED, PATH, allow_option, json_option, note, progress, show
from serving.runtime import guard

if TYPE_CHECKING:
    from pathlib import Path

    from serving.measuring.compare import Comparison
    from serving.measuring.report import BenchReport
    from serving.measuring.rounds import BenchOptions

SERVER = "server"


@click.command()
@click.argument("model", type=MODEL)
@click.option(
    "--provider",
    "providers",
    metavar="NAME",
    multiple=True,
    default=["cpu"],
    help="Execution provider: cpu, cuda, ...; `all` for every one here. Repeatable (cpu).",
)
@click.option(
    "--threads",
    metavar="N",
    multiple=True,
    type=int,
    help="Threads within one operator. Repeatable (all cores).",
)
@click.option(
    "--batch-size", metavar="N", multiple=True, type=int, help="Batch size to measure. Repeatable."
)
@click.option(
    "--set",
    "settings",
    metavar="NAME=VALUE",
    multiple=True,
    help="parallel=2, spinning=off, binding=on, cuda_graph=on, ... Repeatable.",
)
@click.option(
    "--seconds",
    metavar="S",
    type=POSITIVE,
    default=0.5,
    show_default=True,
    help="How long to measure each batch size or scenario.",
)
@click.option(
    "--rounds",
    "num_rounds",
    metavar="N",
    type=int,
    default=10,
    show_default=True,
    help="Turns that each subject gets.",
)
@click.option("--data", metavar="ROWS", type=PATH, help="Rows to feed: .npy, .npz or .txt.")
@click.option(
    "--growth-calls",
    metavar="N",
    type=int,
    default=0,
    help="On CPUs, make N calls of mixed batch sizes and report how memory grew.",
)
@click.option(
    "--cold-starts",
    "num_cold_starts",
    metavar="N",
    type=int,
    default=0,
    help="Start a process N times and time it to its first answer.",
)
@click.option(
    "--seed", metavar="N", type=int, default=1, help="Seed of the turns and the arrivals."
)
@click.option(
    "--scenario",
    "scenarios",
    metavar="NAME",
    multiple=True,
    help="single-stream, multi-stream, offline or server. Repeatable.",
)
@click.option("--rate", metavar="N", type=POSITIVE, help="Queries per second, for server.")
@click.option(
    "--p99-limit", metavar="MS", type=POSITIVE, help="For server: search the highest rate."
)
@click.option("--compare", metavar="WHAT", help="A model, a saved report or a revision.")
@click.option(
    "--limit",
    metavar="X",
    type=POSITIVE,
    default=1.05,
    show_default=True,
    help="How many times as long as before --compare lets a row take.",
)
@click.option("--tune", is_flag=True, help="Find the best settings; a bundle keeps them.")
@click.option(
    "--goal",
    type=click.Choice(["latency", "throughput"]),
    default="throughput",
    show_default=True,
    help="What --tune makes best.",
)
@click.option(
    "--memory-limit", metavar="MIB", type=POSITIVE, help="For --tune: the peak of a process."
)
@click.option(
    "--reduced-precision", is_flag=True, help="Let --tune try tf32 and fp16, which change answers."
)
@click.option(
    "--csv", "csv_file", metavar="FILE", type=PATH, help="Write the table there too, as CSV."
)
@click.option("-o", "--output", metavar="FILE", type=PATH, help="Where the report goes, as JSON.")
@allow_option
@limit_options
@json_option
def bench(
    model: "Path",
    tune: bool,
    compare: str | None,
    output: "Path | None",
    csv_file: "Path | None",
    as_json: bool,
    **given: Any,
) -> None:
    """Time any MODEL: load patterns, comparisons, tuning.

    MODEL is an ONNX file, a bundle or models:/NAME@champion, and every row comes with proof of the
    provider. `ferry benchmark` is the stage that times an experiment.

    It measures batch sizes 1, 8, 32 and 128 where none is given, on random inputs or on the rows of
    --data, which a model of texts needs. Each subject has a process of its own, pinned to its
    cores; several take turns. --scenario runs MLPerf's load patterns instead. A server's latency
    counts from when a query was due, and --p99-limit searches the highest rate that keeps it.

    --compare names a model, a saved report (.json) or a git revision. A model takes turns with
    MODEL; a report is compared as it is. Exit status 1 when a row is slower than --limit, beyond
    the noise.

    --tune tries threads, batch sizes, spinning and bound memory for --goal. A bundle keeps what was
    found, and `ferry predict` uses it on machines of the same kind.

    Example: ferry bench bundles/digits-cnn --batch-size 1 --batch-size 32

    Example: ferry bench bundles/digits-cnn --scenario server --p99-limit 2

    Example: ferry bench models/mnist-cnn/model.onnx --compare HEAD~1
    """
    from serving.files import write_json, write_text
    from serving.measuring.report import as_csv

    if tune:
        _tune(model, given, as_json=as_json)
        return
    limit = given.pop("limit")
    options = _options(given)
    report, compared = _measure(model, options, compare, limit)
    if output:
        write_json(output, report)
    if csv_file:
        write_text(csv_file, as_csv(report))
    _show(report, compared, as_json=as_json)
    if compared:
        compared.require()
    if report.partial:
        click.get_current_context().exit(INTERRUPTED)


def _options(given: dict[str, Any]) -> "BenchOptions":
    """The options of `serving.measuring.bench.bench`, from those of the command."""
    from serving.errors import UsageError
    from serving.measuring.rounds import BATCH_SIZES, BenchOptions
    from serving.measuring.scenarios import ScenarioPlan

    batch_sizes, scenarios = given["batch_size"], given["scenarios"]
    if SERVER not in scenarios and (given["rate"] or given["p99_limit"]) is not None:
        raise UsageError("--rate and --p99-limit are for `--scenario server`")
    plans = tuple(
        ScenarioPlan(
            scenario=name,
            batch_size=batch_sizes[0] if batch_sizes else 1,
            seconds=given["seconds"],
            rate_per_second=given["rate"] if name == SERVER else None,
            p99_limit_ms=given["p99_limit"] if name == SERVER else None,
            seed=given["seed"],
        )
        for name in scenarios
    )
    return BenchOptions(
        providers=given["providers"],
        threads=given["threads"] or None,
        settings=given["settings"],
        batch_sizes=() if scenarios else batch_sizes or BATCH_SIZES,
        seconds=given["seconds"],
        num_rounds=given["num_rounds"],
        growth_calls=given["growth_calls"],
        num_cold_starts=given["num_cold_starts"],
        scenarios=plans,
        rows=given["data"],
        seed=given["seed"],
    )


def _measure(
    model: "Path", options: "BenchOptions", what: str | None, limit: float
) -> "tuple[BenchReport, Comparison | None]":
    """Measure, and compare with what --compare names."""
    import tempfile
    from pathlib import Path

    from serving.measuring.bench import bench
    from serving.measuring.compare import compare, find_target

    with tempfile.TemporaryDirectory() as folder, progress() as log:
        if what is None:
            guard.limit_steps()
            return bench(model, options, log=log), None
        target = find_target(what, model, Path(folder))
        guard.limit_steps()
        report = bench(model, options, against=target.model, log=log)
        return report, compare(report, target, limit)


def _show(report: "BenchReport", compared: "Comparison | None", *, as_json: bool) -> None:
    from serving.measuring.compare import as_text
    from serving.measuring.report import as_table

    if compared is None:
        show(report, as_json=as_json, text=as_table(report))
    else:
        found = {"report": report, "comparison": compared}
        show(found, as_json=as_json, text=f"{as_table(report)}\n\n{as_text(compared)}")


def _tune(model: "Path", given: dict[str, Any], *, as_json: bool) -> None:
    from serving.bundles.writing import refuse_untunable, write_profile
    from serving.errors import UsageError
    from serving.measuring.tuner import TuneOptions, as_text, profile_of, tune

    if len(given["providers"]) != 1 or given["providers"] == ("all",):
        raise UsageError("--tune is for one provider at a time")
    refuse_untunable(model)
    limit_mib = given["memory_limit"]
    options = TuneOptions(
        goal=given["goal"],
        provider=given["providers"][0],
        batch_sizes=given["batch_size"],
        memory_limit_bytes=None if limit_mib is None else int(limit_mib * 2**20),
        rows=given["data"],
        seed=given["seed"],
        allow_reduced_precision=given["reduced_precision"],
    )
    guard.limit_steps()
    with progress() as log:
        report = tune(model, options, log=log)
        if model.is_dir():
            log(f"writing the profile into {model}")
            write_profile(model, profile_of(report))
    show(report, as_json=as_json, text=as_text(report))
    if model.is_dir():
        note(f"kept in {model / 'manifest.json'}: `ferry predict` uses it on machines of this kind")
