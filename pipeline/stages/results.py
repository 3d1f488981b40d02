"""The table that says it all: accuracy, parity, speed and size of every variant that was measured.

`make demo` ends with it, and the report opens with it.

All that the stages left in `metrics/E`, read back for the table and the report.

What was measured on other weights than those of the last training is not shown beside it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pipeline.config.experiment import Params
from pipeline.records import read
from pipeline.records.benchmark import BenchmarkReport, BundleReport, timed
from pipeline.records.evaluate import EvaluateReport
from pipeline.records.parity import ParityReport, VariantParity
from pipeline.records.quantize import QuantizeReport
from pipeline.records.train import TrainReport
from serving.console import table
from serving.errors import MissingInputError
from serving.measuring.report import Measured as Timed

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is known of one experiment; None for a stage that has not run on these weights."""

    training: TrainReport
    inside: EvaluateReport | None
    parity: ParityReport | None = None
    quantized: QuantizeReport | None = None
    """Of the ONNX file that was compared, and of no other."""
    benchmark: BenchmarkReport | None = None
    shipped: BundleReport | None = None


def read_measured(metrics: Path, experiment: str) -> Measured | None:
    """Read the files of `metrics`/`experiment`; None for an experiment that is not trained.

    Raises IntegrityError for a file that is not what its stage writes.
    """
    folder = metrics / experiment
    training = _read(TrainReport, folder / "train.json")
    if training is None:
        return None
    inside = _read(EvaluateReport, folder / "evaluate.json")
    if inside is not None and inside.weights_sha256 != training.weights_sha256:
        inside = None
    parity = _read(ParityReport, folder / "parity.json")
    if parity is None or parity.weights_sha256 != training.weights_sha256:
        return Measured(training=training, inside=inside)
    quantized = _read(QuantizeReport, folder / "quantize.json")
    if quantized is not None and quantized.model_sha256 != parity.variants["fp32"].sha256:
        quantized = None
    proven = Measured(training=training, inside=inside, parity=parity, quantized=quantized)
    benchmark = _read(BenchmarkReport, folder / "benchmark.json")
    if benchmark is None or benchmark.weights_sha256 != training.weights_sha256:
        return proven
    shipped = _read(BundleReport, folder / "bundle.json")
    return replace(proven, benchmark=benchmark, shipped=shipped)


def _read(record: type[Record], path: Path) -> Record | None:
    return read(record, path, f"ferry {path.stem} {path.parent.name}") if path.exists() else None


HEADER = (
    "experiment",
    "variant",
    "provider",
    "accuracy",
    "largest diff",
    "flips",
    "p50 ms",
    "rows/s",
    "size",
    "shipped",
)
PROVIDER = HEADER.index("provider")
NONE = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """One variant of an experiment on one provider."""

    experiment: str
    variant: str
    provider: str | None
    """None for a variant that was not timed, as are the figures below."""
    accuracy: float | None
    """On the test set, 0 to 1; None where no class is predicted, as are the flips."""
    loss: float
    """Of the weights on the test set, in the unit of their loss."""
    max_abs_diff: float
    """Largest difference of a logit, or of a reconstruction's pixel, to PyTorch."""
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


def results(
    params: Params, names: Sequence[str] = (), *, metrics: Path = Path("metrics")
) -> tuple[ResultRow, ...]:
    """Gather the rows of the experiments that have run, or of those in `names`.

    Raises UnknownNameError for a name that params.yaml lacks and MissingInputError for one that
    has not run.
    """
    for name in names:
        params.experiment(name)
    rows: list[ResultRow] = []
    for name in names or params.experiments:
        measured = read_measured(metrics, name)
        found = rows_of(measured) if measured else ()
        if names and not found:
            raise MissingInputError(f"{name} has not run; `dvc repro bundle@{name}` runs it")
        rows += found
    return tuple(rows)


def rows_of(measured: Measured) -> tuple[ResultRow, ...]:
    """Make the rows of one experiment; none before its variants were compared."""
    if measured.parity is None:
        return ()
    rows: list[ResultRow] = []
    for variant, parity in measured.parity.variants.items():
        timings = list(_timings(measured, variant)) or [()]
        rows += [_row(measured, variant, parity, one) for one in timings]
    return tuple(rows)


def as_table(rows: Sequence[ResultRow]) -> str:
    """Lay the rows out for a terminal; the provider is told only where there are several."""
    if not rows:
        return "no experiment has run yet"
    lines = [HEADER, *[_cells(row) for row in rows]]
    if len({row.provider for row in rows}) == 1:
        lines = [(*line[:PROVIDER], *line[PROVIDER + 1 :]) for line in lines]
    return table(lines[0], lines[1:])


def _timings(measured: Measured, variant: str) -> Iterator[Sequence[Timed]]:
    """What was timed of a variant, provider by provider: each with one or more thread counts."""
    report = measured.benchmark
    if report is None:
        return
    ran = (one.provider for one in report.bench.measured if one.subject == variant)
    for provider in dict.fromkeys(ran):
        yield timed(report, variant, provider)


def _row(
    measured: Measured, variant: str, parity: VariantParity, timings: Sequence[Timed]
) -> ResultRow:
    """Put the figures of the best thread count for each of them into the row."""
    firsts = [row.timing.p50_ms for one in timings if (row := one.row(1))]
    fastest = max(
        (one.fastest for one in timings),
        key=lambda timing: timing.rows_per_second,
        default=None,
    )
    return ResultRow(
        experiment=measured.training.experiment,
        variant=variant,
        provider=timings[0].provider if timings else None,
        accuracy=parity.accuracy,
        loss=measured.training.loss,
        max_abs_diff=parity.max_abs_diff,
        flips=parity.flips,
        passed=parity.passed,
        p50_ms=min(firsts, default=None),
        rows_per_second=fastest.rows_per_second if fastest else None,
        best_batch=fastest.batch_size if fastest else None,
        bytes=timings[0].file_bytes if timings else None,
        shipped=measured.shipped is not None and measured.shipped.variant == variant,
    )


def _cells(row: ResultRow) -> tuple[str, ...]:
    return (
        row.experiment,
        row.variant,
        row.provider or NONE,
        f"MSE {row.loss:.4f}" if row.accuracy is None else f"{100 * row.accuracy:.2f} %",
        f"{row.max_abs_diff:.1e}",
        NONE if row.flips is None else str(row.flips),
        NONE if row.p50_ms is None else f"{row.p50_ms:.3f}",
        NONE if row.rows_per_second is None else f"{row.rows_per_second:,.0f}",
        NONE if row.bytes is None else f"{row.bytes / 1024:,.0f} KiB",
        _verdict(row),
    )


def _verdict(row: ResultRow) -> str:
    if not row.passed:
        return "FAILED PARITY"
    return "yes" if row.shipped else "no"
