"""`ferry benchmark EXPERIMENT`: time every variant on every provider, beside PyTorch eager.

Each variant is timed by `ferry bench` in a process of its own; a provider that this machine cannot
run is a row with its reason.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import figures, ready, tracking
from pipeline.config import Experiment
from pipeline.figures import Point
from pipeline.graph import Graph, load_graph
from pipeline.records.benchmark import BenchmarkReport, EagerTiming, VariantBenchmark, sweeps
from serving.bench import bench_providers
from serving.environment import describe
from serving.files import require, sha256_of_file, write_json, write_text
from serving.session import allowed_cores, open_session
from serving.timing import PairedRatio, Timing, paired_ratio, time_calls

__all__ = ["benchmark"]

RATIO_SECONDS = 2.0


def benchmark(
    weights: Path,
    models: Mapping[str, Path],
    data: Path,
    metrics: Path,
    plots: Path,
    *,
    experiment: Experiment,
    skipped: Mapping[str, str] | None = None,
    track: bool = True,
) -> BenchmarkReport:
    """Time each variant in `models` and the weights they were made from.

    `skipped` tells why other variants were not made. Writes `metrics` and `plots`/benchmark.csv.
    Raises MissingInputError and ModelError.
    """
    config = experiment.benchmark
    for path in models.values():
        require(path, f"dvc repro quantize@{experiment.name}")
    rows = data / "test_inputs.npy"
    variants = {
        name: VariantBenchmark(
            providers=bench_providers(
                path, batch_sizes=config.batch_sizes, seconds=config.seconds, rows=rows
            )
        )
        for name, path in models.items()
    }
    graph = load_graph(weights, experiment, ready.open_manifest(data))
    inputs = np.array(ready.open_split(data, "test").inputs[: max(config.batch_sizes)])
    report = BenchmarkReport(
        experiment=experiment.name,
        environment=describe(),
        torch_version=torch.__version__,
        weights_sha256=sha256_of_file(weights),
        variants=variants,
        eager=tuple(_eager(graph, inputs, config.batch_sizes, config.seconds)),
        eager_ratio=_eager_ratio(graph, models["fp32"], inputs[:1]),
        skipped=dict(skipped or {}),
    )
    timed = sweeps(report)
    write_text(plots / "benchmark.csv", _csv(timed))
    write_json(metrics, report)
    _record(report, timed, track=track)
    return report


def _call(graph: Graph, rows: np.ndarray[Any, Any]) -> object:
    return graph(graph.tensor(rows))


def _eager(
    graph: Graph, inputs: np.ndarray[Any, Any], sizes: Sequence[int], seconds: float
) -> Iterator[EagerTiming]:
    threads = allowed_cores()
    torch.set_num_threads(threads)
    with torch.inference_mode():
        for size in sizes:
            # A test set smaller than the batch is repeated to fill it.
            batch = np.resize(inputs, (size, *inputs.shape[1:]))
            call = functools.partial(_call, graph, batch)
            timing: Timing = time_calls(call, batch_size=size, seconds=seconds)
            yield EagerTiming(
                batch_size=size,
                threads=threads,
                p50_ms=timing.p50_ms,
                p90_ms=timing.p90_ms,
                p99_ms=timing.p99_ms,
                rows_per_second=timing.rows_per_second,
                num_calls=timing.num_calls,
            )


def _eager_ratio(graph: Graph, model: Path, row: np.ndarray[Any, Any]) -> PairedRatio:
    """Interleave PyTorch eager and ONNX Runtime on the same row, one thread each."""
    session = open_session(model, threads=1)
    feeds = {session.inputs[0].name: row}
    names = [output.name for output in session.outputs]
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return paired_ratio(
                functools.partial(_call, graph, row),
                functools.partial(session.raw.run, names, feeds),
                seconds=RATIO_SECONDS,
                seed=0,
            )
    finally:
        torch.set_num_threads(allowed_cores())


def _csv(timed: Mapping[str, Sequence[Point]]) -> str:
    lines = [
        f"{name},{point.batch_size},{point.p50_ms},{point.rows_per_second}"
        for name, points in timed.items()
        for point in points
    ]
    return "\n".join(["name,batch_size,p50_ms,rows_per_second", *lines]) + "\n"


def _record(report: BenchmarkReport, timed: Mapping[str, Sequence[Point]], *, track: bool) -> None:
    with tracking.run_of_weights(report.experiment, report.weights_sha256, track=track) as tracker:
        for name, points in timed.items():
            key = f"benchmark.{name.replace(' · ', '.').replace(' ', '_')}"
            for point in points:
                tracker.log_metrics(
                    {
                        f"{key}.b{point.batch_size}.p50_ms": point.p50_ms,
                        f"{key}.b{point.batch_size}.rows_per_second": point.rows_per_second,
                    }
                )
        tracker.log_metrics({"benchmark.eager_ratio": report.eager_ratio.median})
        tracker.log_figure(figures.latency_throughput(timed), "latency_throughput.png")
