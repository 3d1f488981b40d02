"""What was measured in this checkout: accuracy, parity, speed and size of every variant.

A figure is shown beside the file that it was measured of and no other: what was measured of other
weights, or of a model that is not there any more, is left out with a line that says so.
"""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from pipeline.config import layout
from pipeline.config.experiment import Params
from pipeline.records import read
from pipeline.records.benchmark import (
    BenchmarkReport,
    BundleReport,
    fastest_batch,
    over_eager,
    quickest_row,
)
from pipeline.records.evaluate import EvaluateReport
from pipeline.records.parity import ParityReport, VariantParity
from pipeline.records.published import (
    PublishedLatency,
    PublishedResults,
    PublishedSpeed,
    PublishedVariant,
    machine_of,
)
from pipeline.records.quantize import Quality, QuantizeReport
from pipeline.records.train import TrainReport, reached
from serving.bundles.finding import MANIFEST
from serving.console import DASH, number, table
from serving.errors import MissingInputError
from serving.files import read_json, sha256_of_file
from serving.machine.environment import Environment, this_machine
from serving.measuring.report import Measurement
from serving.measuring.subject import label_of

Record = TypeVar("Record")
Measured = TypeVar("Measured", EvaluateReport, ParityReport, BenchmarkReport)
NOTHING = "No experiment has run here yet: `dvc repro` runs them all, `ferry list` names them."


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentResults:
    """What was measured of one experiment's files; None for a stage that was not run on them."""

    training: TrainReport
    inside: EvaluateReport | None = None
    parity: ParityReport | None = None
    """Without the variants whose files are others now."""
    quantized: QuantizeReport | None = None
    benchmark: BenchmarkReport | None = None
    shipped: BundleReport | None = None
    """None where no such bundle lies there."""


def read_results(
    experiment: str, root: Path = Path()
) -> tuple[ExperimentResults | None, tuple[str, ...]]:
    """Read what was measured of an experiment's files, below the folder of params.yaml.

    None before it is trained, and where its weights are not those that were trained. Beside it is a
    line for each file that is not the one that was measured, and for settings that are not those of
    params.yaml. Raises IntegrityError for a report that is not what its stage writes.
    """
    training = _read(TrainReport, experiment, "train", root)
    if training is None:
        return None, ()
    weights = layout.weights(experiment)
    if other := _other_file(weights, training.weights_sha256, experiment, root):
        return None, (other,)
    inside = _of_weights(EvaluateReport, "evaluate", training, root)
    parity = _of_weights(ParityReport, "parity", training, root)
    if parity is None:
        return ExperimentResults(training=training, inside=inside), ()
    found = {
        name: _other_file(layout.variant(experiment, name), one.sha256, experiment, root)
        for name, one in parity.variants.items()
    }
    left_out = (*_overridden(training), *(line for line in found.values() if line))
    if found.get("fp32"):
        return ExperimentResults(training=training, inside=inside), left_out
    variants = {name: one for name, one in parity.variants.items() if not found[name]}
    proven = {one.sha256 for one in variants.values()}
    quantized = _read(QuantizeReport, experiment, "quantize", root)
    benchmark = _benchmark(training, proven, root)
    results = ExperimentResults(
        training=training,
        inside=inside,
        parity=replace(parity, variants=variants),
        quantized=quantized if quantized and quantized.model_sha256 in proven else None,
        benchmark=benchmark,
        shipped=_shipped(experiment, root) if benchmark else None,
    )
    own, elsewhere = _without_other_machines(results)
    return own, (*left_out, *elsewhere)


def _without_other_machines(
    found: ExperimentResults,
) -> tuple[ExperimentResults, tuple[str, ...]]:
    """Leave out the speeds that came with a pull from another machine, and say so."""
    quantized, benchmark, shipped = found.quantized, found.benchmark, found.shipped
    if quantized and quantized.machine != this_machine("cpu").processor:
        quantized = None
    if benchmark is None or _is_this_machine(environment := benchmark.bench.environment):
        return replace(found, quantized=quantized), ()
    if shipped and shipped.gains:
        shipped = replace(shipped, gains={}, reason="chosen by the speeds of another machine")
    name = found.training.experiment
    line = (
        f"{name}: its speeds were measured on another machine ({machine_of(environment)}); "
        f"`dvc repro bundle@{name}` measures them here"
    )
    return replace(found, quantized=quantized, benchmark=None, shipped=shipped), (line,)


def _is_this_machine(environment: Environment) -> bool:
    """Whether two machines run a model equally fast: the one that was measured, and this one."""
    here = this_machine("cuda" if environment.gpu else "cpu")
    return all(getattr(environment, one.name) == getattr(here, one.name) for one in fields(here))


def _overridden(training: TrainReport) -> tuple[str, ...]:
    """Say that the weights were trained with settings of their own, if so."""
    if not training.overrides:
        return ()
    settings = " ".join(f"--set {key}={value}" for key, value in training.overrides.items())
    name = training.experiment
    return (f"{name}: trained with {settings}; `ferry train {name}` trains as params.yaml says",)


def _benchmark(training: TrainReport, proven: Set[str], root: Path) -> BenchmarkReport | None:
    """Without what was measured of other files than those that were proven."""
    found = _of_weights(BenchmarkReport, "benchmark", training, root)
    if found is None:
        return None
    current = [
        one
        for one in found.bench.measured
        if one.subject not in layout.VARIANTS or one.sha256 in proven
    ]
    return replace(found, bench=replace(found.bench, measured=tuple(current)))


def _shipped(experiment: str, root: Path) -> BundleReport | None:
    found = _read(BundleReport, experiment, "bundle", root)
    manifest = root / layout.bundle(experiment) / MANIFEST
    there = found and manifest.is_file() and read_json(manifest).get("digest") == found.digest
    return found if there else None


def _other_file(path: Path, sha256: str, experiment: str, root: Path) -> str | None:
    """Say that a file is not the one that was measured; None where it is."""
    made = f"`dvc repro bundle@{experiment}` makes and measures it anew"
    if not (root / path).is_file():
        return f"{experiment}: {path} is not there any more; {made}"
    if sha256_of_file(root / path) != sha256:
        return f"{experiment}: {path} is not the file that was measured; {made}"
    return None


def _of_weights(
    record: type[Measured], stage: str, training: TrainReport, root: Path
) -> Measured | None:
    """What a stage measured of these weights; None of others."""
    found = _read(record, training.experiment, stage, root)
    return found if found and found.weights_sha256 == training.weights_sha256 else None


def _read(record: type[Record], experiment: str, stage: str, root: Path) -> Record | None:
    path = root / layout.details(experiment, stage)
    return read(record, path, f"ferry {stage} {experiment}") if path.exists() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """One variant of an experiment on one provider."""

    experiment: str
    variant: str
    provider: str | None
    """None for a variant that was not measured, as are the figures below."""
    accuracy: float | None
    """On the test set, 0 to 1; None where no class is predicted, as are the flips."""
    r2: float | None
    """Of a regression: the part of the targets' variance that is explained, on the test set."""
    loss: float
    """Of the weights on the test set, in the unit of their loss."""
    max_abs_diff: float
    """Largest difference of a logit, of a reconstruction's pixel, or of a target in its own units,
    to PyTorch."""
    flips: int | None
    passed: bool
    """Whether every gate of parity was met."""
    p50_ms: float | None
    """Median latency of a batch of one, with the thread count that is best at it."""
    rows_per_second: float | None
    """The most of any batch size and thread count."""
    best_batch: int | None
    bytes: int | None
    shipped: bool

    @property
    def reached(self) -> str:
        """How good it is, in words."""
        return reached(self.accuracy, self.r2, self.loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultTable:
    """The rows of what was measured here, and what was not."""

    rows: tuple[ResultRow, ...]
    left_out: tuple[str, ...]
    """What was measured of another file, a line each."""


def results(params: Params, names: Sequence[str] = (), *, root: Path = Path()) -> ResultTable:
    """Gather the rows of the experiments that have run, or of those in `names`, below `root`.

    Raises UnknownNameError for a name that params.yaml lacks and MissingInputError for one that
    has not run.
    """
    rows: list[ResultRow] = []
    left_out: list[str] = []
    for name, (found, lines) in _read_all(params, names, root).items():
        new = rows_of(found) if found else ()
        if names and not new:
            raise MissingInputError(lines[0] if lines else _not_run(name))
        rows += new
        left_out += lines
    return ResultTable(rows=tuple(rows), left_out=tuple(left_out))


def publishable(
    params: Params, names: Sequence[str] = (), *, root: Path = Path()
) -> tuple[PublishedResults, ...]:
    """The figures to publish of the experiments that were proven here, or of those in `names`.

    Not those of `ferry train --set`, which params.yaml does not give again. Raises UnknownNameError
    for a name that params.yaml lacks and MissingInputError where there is nothing to publish.
    """
    read = _read_all(params, names, root)
    found = {
        name: to_publish(one)
        for name, (one, _) in read.items()
        if one and one.parity and not one.training.overrides
    }
    missing = [
        lines[0] if lines else _not_run(name)
        for name, (_, lines) in read.items()
        if name not in found
    ]
    if missing and (names or not found):
        raise MissingInputError(missing[0])
    return tuple(found.values())


def _read_all(
    params: Params, names: Sequence[str], root: Path
) -> dict[str, tuple[ExperimentResults | None, tuple[str, ...]]]:
    """What `read_results` finds of the experiments in `names`, of all for no names."""
    for name in names:
        params.experiment(name)
    return {name: read_results(name, root) for name in names or params.experiments}


def _not_run(name: str) -> str:
    return f"{name} has not run; `dvc repro bundle@{name}` runs it"


def rows_of(measured: ExperimentResults) -> tuple[ResultRow, ...]:
    """Make the rows of one experiment; none before its variants were compared."""
    if measured.parity is None:
        return ()
    runs = measured.benchmark.bench.measured if measured.benchmark else ()
    rows: list[ResultRow] = []
    for variant, parity in measured.parity.variants.items():
        timed = [one for one in runs if one.subject == variant]
        for provider in dict.fromkeys(one.provider for one in timed) or [None]:
            timings = [one for one in timed if one.provider == provider]
            rows.append(_row(measured, variant, parity, timings))
    return tuple(rows)


def to_publish(found: ExperimentResults) -> PublishedResults:
    """What is published of an experiment whose variants were compared."""
    training = found.training
    variants = found.parity.variants if found.parity else {}
    return PublishedResults(
        experiment=training.experiment,
        dataset=training.dataset,
        machine=training.machine,
        revision=training.git_revision,
        accuracy=training.accuracy,
        r2=training.r2,
        loss_name=training.loss_name,
        loss=training.loss,
        auc=found.inside.headline["auc"] if found.inside else None,
        parameters=training.parameters,
        epochs=len(training.history),
        seconds=training.seconds,
        variants={name: _variant(found, name, one) for name, one in variants.items()},
        refused=found.quantized.skipped if found.quantized else {},
        speed=_speed(found.benchmark) if found.benchmark else None,
        shipped=found.shipped.variant if found.shipped else None,
    )


def _variant(found: ExperimentResults, name: str, parity: VariantParity) -> PublishedVariant:
    made = found.quantized.kept_try(name) if found.quantized else None
    quality = made.quality if made else None
    return PublishedVariant(
        recipe=made.recipe if made else None,
        passed=parity.passed,
        accuracy=parity.accuracy,
        r2=parity.r2,
        accuracy_loss=parity.accuracy_loss,
        error_increase=_error_increase(parity, quality),
        flips=parity.flips,
        max_abs_diff=parity.max_abs_diff,
        max_probability_diff=parity.max_probability_diff,
        snr_db=parity.snr_db,
        size_ratio=made.size_ratio if made else None,
        speedup=made.speedup if made else {},
    )


def _error_increase(parity: VariantParity, quality: Quality | None) -> float | None:
    """Of targets, as parity measured it on the test set; of pixels, as quantization did."""
    if parity.error_increase is not None:
        return parity.error_increase
    return quality.loss if quality and quality.measure == "mean error" else None


def _speed(report: BenchmarkReport) -> PublishedSpeed:
    bench = report.bench
    here = bench.environment
    cold_starts_ms = {cold.subject: cold.p50_ms for cold in bench.cold_starts}
    runs = list(bench.of("fp32"))
    latencies = [
        PublishedLatency(
            threads=one.settings.threads,
            p50_ms=row.timing.p50_ms,
            p99_ms=row.timing.p99_ms,
            rows_per_second=one.fastest.rows_per_second,
            best_batch=one.fastest.batch_size,
        )
        for one in runs
        if (row := one.row(1))
    ]
    return PublishedSpeed(
        machine=machine_of(here),
        revision=here.git_revision,
        bytes=runs[0].file_bytes if runs else None,
        over_eager={str(size): ratio for size, ratio in over_eager(report)},
        latencies=tuple(latencies),
        cold_start_ms=cold_starts_ms.get(label_of("fp32", "cpu")),
    )


def as_table(rows: Sequence[ResultRow]) -> str:
    """Lay the rows out for a terminal; the provider is named only where there are several."""
    if not rows:
        return NOTHING
    columns = dict(COLUMNS)
    if len({row.provider for row in rows}) == 1:
        del columns["provider"]
    return table(tuple(columns), [[cell(row) for cell in columns.values()] for row in rows])


def _row(
    measured: ExperimentResults, variant: str, parity: VariantParity, timings: Sequence[Measurement]
) -> ResultRow:
    """Put the figures of the best thread count for each of them into the row."""
    quickest, fastest = quickest_row(timings), fastest_batch(timings)
    return ResultRow(
        experiment=measured.training.experiment,
        variant=variant,
        provider=timings[0].provider if timings else None,
        accuracy=parity.accuracy,
        r2=parity.r2,
        loss=measured.training.loss,
        max_abs_diff=parity.max_abs_diff,
        flips=parity.flips,
        passed=parity.passed,
        p50_ms=quickest.timing.p50_ms if quickest else None,
        rows_per_second=fastest.rows_per_second if fastest else None,
        best_batch=fastest.batch_size if fastest else None,
        bytes=timings[0].file_bytes if timings else None,
        shipped=measured.shipped is not None and measured.shipped.variant == variant,
    )


COLUMNS: dict[str, Callable[[ResultRow], str]] = {
    "experiment": lambda row: row.experiment,
    "variant": lambda row: row.variant,
    "provider": lambda row: row.provider or DASH,
    "accuracy": lambda row: row.reached,
    "largest diff": lambda row: f"{row.max_abs_diff:.1e}",
    "flips": lambda row: number(row.flips),
    "p50 ms": lambda row: number(row.p50_ms, ".3f"),
    "rows/s": lambda row: number(row.rows_per_second, ",.0f"),
    "size": lambda row: DASH if row.bytes is None else f"{row.bytes / 1024:,.0f} KiB",
    "shipped": lambda row: ("yes" if row.shipped else "no") if row.passed else "FAILED PARITY",
}
