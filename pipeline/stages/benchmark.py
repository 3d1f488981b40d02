"""`ferry benchmark EXPERIMENT`: time every variant on every provider, and the baselines with them.

The baselines are PyTorch and MLflow. Every subject has a process of its own and takes turns with
the others (`serving.measuring`), so that speedups over PyTorch eager are paired. What this machine
cannot run is listed with the reason.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import tracking
from pipeline.config import layout
from pipeline.config.experiment import BenchmarkConfig, Experiment
from pipeline.models.parts.graph import load_graph
from pipeline.records import ReportFiles, check_recorded, ready, write
from pipeline.records.benchmark import EAGER, BenchmarkReport, speeds, sweeps
from pipeline.stages.baselines import opening, subject
from pipeline.stages.page.speed_figures import figures_of
from serving.errors import ModelError
from serving.files import csv_text, sha256_of_file, write_text
from serving.measuring.bench import ColdPrograms, cold_program, run
from serving.measuring.onnx_subject import model_spec
from serving.measuring.report import BenchReport, SkippedSubject, as_csv
from serving.measuring.rounds import BenchOptions, Log
from serving.measuring.subject import TORCH, SubjectSpec
from serving.runtime.cores import allowed_cores
from serving.runtime.session import usable_providers

NAMES = {
    "eager": EAGER,
    "channels_last": "PyTorch channels_last",
    "compile": "torch.compile",
    "pyfunc": "MLflow pyfunc",
}
FROM_COLD = ("eager", "pyfunc")
"""Another layout starts as eager does; what a compiler takes is the first call of its row."""


def benchmark(
    weights: Path,
    models: Mapping[str, Path],
    data: Path,
    files: ReportFiles,
    plots: Path,
    *,
    experiment: Experiment,
    track: bool = True,
    log: Log = lambda _: None,
) -> BenchmarkReport:
    """Time each variant in `models` and the weights they were made from.

    `log` is given a line before each step. Writes its report to `files` and CSV files in `plots`.
    Interrupted with Ctrl-C it keeps what was measured until then, as a partial report.

    Raises MissingInputError, IntegrityError for weights of another model, and ModelError when
    PyTorch eager cannot be measured.
    """
    for path in models.values():
        check_recorded(path, layout.maker(path, experiment.name))
    # Wrong weights are an error now, and not a skipped subject of another process.
    load_graph(weights, experiment, ready.open_manifest(data))
    report = BenchmarkReport(
        experiment=experiment.name,
        torch_version=torch.__version__,
        weights_sha256=sha256_of_file(weights),
        bench=_measure(weights, models, data, experiment=experiment, log=log),
    )
    _require_eager(report)
    _write_plots(report, plots)
    write(report, files)
    if not report.bench.partial:
        _record(report, files, track=track)
    return report


def _measure(
    weights: Path, models: Mapping[str, Path], data: Path, *, experiment: Experiment, log: Log
) -> BenchReport:
    config = experiment.benchmark
    threads, beyond = _threads(config.threads)
    with tempfile.TemporaryDirectory() as saved:
        subjects = subjects_of(
            weights, models, data, Path(saved), threads=threads, experiment=experiment
        )
        return run(
            subjects.specs,
            _options(config, threads, data / "test_inputs.npy"),
            subjects.cold,
            model=models["fp32"],
            skipped=(*subjects.skipped, *_too_many(subjects.specs, beyond)),
            log=log,
        )


def _threads(counts: Sequence[int]) -> tuple[list[int], list[int]]:
    """The thread counts to measure with, and those that are more than the cores there are."""
    cores = allowed_cores()
    wanted = list(dict.fromkeys(count or cores for count in counts))
    return [n for n in wanted if n <= cores], [n for n in wanted if n > cores]


def _options(config: BenchmarkConfig, threads: Sequence[int], rows: Path) -> BenchOptions:
    return BenchOptions(
        threads=tuple(threads),
        batch_sizes=config.batch_sizes,
        seconds=config.seconds,
        num_rounds=config.rounds,
        growth_calls=config.growth_calls,
        num_cold_starts=config.cold_starts,
        rows=rows,
        seed=config.seed,
    )


def _too_many(specs: Sequence[SubjectSpec], beyond: Sequence[int]) -> Iterator[SkippedSubject]:
    reason = f"this process may use {allowed_cores()} cores"
    for count in beyond:
        for spec in specs:
            yield SkippedSubject(
                subject=spec.name, provider=spec.provider, threads=count, skipped=reason
            )


def _require_eager(report: BenchmarkReport) -> None:
    """Refuse a report whose speedups would be over something else."""
    if report.bench.partial or any(report.bench.of(EAGER, TORCH)):
        return
    reasons = [one.skipped for one in report.bench.skipped if one.subject == EAGER]
    raise ModelError(f"{report.experiment}: {EAGER} was not measured: {'; '.join(reasons)}")


def _write_plots(report: BenchmarkReport, plots: Path) -> None:
    write_text(plots / "benchmark.csv", as_csv(report.bench))
    scaling = (
        (name, timing.batch_size, timing.rows_per_second)
        for name, timings in sweeps(report).items()
        for timing in timings
    )
    write_text(plots / "scaling.csv", csv_text(("what", "batch_size", "rows_per_second"), scaling))
    cold = ((one.subject, one.p50_ms) for one in report.bench.cold_starts)
    write_text(plots / "cold_start.csv", csv_text(("subject", "p50_ms"), cold))


def _record(report: BenchmarkReport, files: ReportFiles, *, track: bool) -> None:
    with tracking.run_of_weights(report.experiment, report.weights_sha256, track=track) as tracker:
        for name, speed in speeds(report).items():
            tracker.log_metrics(
                {f"variants/{name}/{key}": value for key, value in speed.items()}, of_model=name
            )
        for name, figure in figures_of(report).items() if track else ():
            tracker.log_figure(figure, f"{name}.png")
        tracker.log_report(files)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSubjects:
    """All that a benchmark measures: the baselines, PyTorch eager first, and every variant."""

    specs: tuple[SubjectSpec, ...]
    cold: ColdPrograms
    skipped: tuple[SkippedSubject, ...]
    """Each variant on each provider that this machine cannot run, with the reason."""


def subjects_of(
    weights: Path,
    models: Mapping[str, Path],
    data: Path,
    saved: Path,
    *,
    threads: Sequence[int],
    experiment: Experiment,
) -> BenchSubjects:
    """Gather the baselines of params.yaml and all of `models` on every provider of this machine.

    `saved` is an empty folder for what MLflow opens.
    """
    named = experiment.benchmark.baselines
    setups: dict[str, dict[str, Any]] = {
        mode: opening.torch_setup(experiment, weights, data, mode)
        for mode in NAMES
        if mode in named and mode != "pyfunc"
    }
    if "pyfunc" in named:
        opening.save_pyfuncs(saved, models["fp32"], threads)
        setups["pyfunc"] = opening.pyfunc_setup(saved, models["fp32"], data)
    baselines = {
        name: SubjectSpec(name=NAMES[name], provider=TORCH, module=subject.__name__, setup=setup)
        for name, setup in setups.items()
    }
    reasons = usable_providers()
    variants = [
        model_spec(name, path, provider, data / "test_inputs.npy")
        for provider, reason in reasons.items()
        if reason is None
        for name, path in models.items()
    ]
    from_cold = [spec for name, spec in baselines.items() if name in FROM_COLD]
    return BenchSubjects(
        specs=(*baselines.values(), *variants),
        cold={
            **{spec.label: ("-m", opening.__name__, json.dumps(spec.setup)) for spec in from_cold},
            **{spec.label: cold_program(spec) for spec in variants},
        },
        skipped=tuple(
            SkippedSubject(subject=variant, provider=provider, threads=None, skipped=reason)
            for variant in models
            for provider, reason in reasons.items()
            if reason is not None
        ),
    )
