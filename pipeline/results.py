"""The table that says it all: accuracy, parity, speed and size of every variant that was measured.

`make demo` ends with it, and the report opens with it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Params
from pipeline.errors import MissingInputError
from pipeline.measured import Measured, read_measured
from pipeline.records.benchmark import timed
from pipeline.records.parity import VariantParity
from serving.bench_report import Measured as Timed
from serving.console import table

__all__ = ["ResultRow", "as_table", "results", "rows_of"]

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
