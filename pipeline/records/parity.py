"""What `ferry parity` measured: `metrics/E/parity.json`."""

from collections.abc import Mapping
from dataclasses import dataclass

from serving.console import table

__all__ = ["Divergence", "Limits", "ParityReport", "VariantParity", "as_table"]

HEADER = ("variant", "gate", "accuracy", "flips", "max diff", "at", "between batches")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The gate of a variant, as params.yaml sets it."""

    max_abs_diff: float
    flips: int | None
    accuracy_loss: float | None
    batch_diff: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """A node whose output is not PyTorch's."""

    node: str
    operator: str
    tensor: str
    max_abs_diff: float
    relative_diff: float
    """The largest absolute difference over the tensor's largest value in PyTorch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantParity:
    """How far one variant is from the trained weights, over all rows and batch sizes."""

    passed: bool
    accuracy: float | None
    """0 to 1; None where no class is predicted, as are the two below."""
    flips: int | None
    """Rows whose predicted class is not PyTorch's, at the worst batch size."""
    accuracy_loss: float | None
    """Percentage points; negative where the variant is the better one."""
    max_abs_diff: float
    """Largest absolute difference of a value of the compared output."""
    max_abs_at: tuple[int, ...]
    """Row and column of it; of a reconstruction row, y, x and channel."""
    max_rel_diff: float
    """Largest relative difference, of values above 1 % of the largest one."""
    max_rel_at: tuple[int, ...]
    mean_abs_diff: float
    """Over all values, each at its worst batch size."""
    batch_diff: float
    """Largest difference of a value of one row between two batch sizes."""
    batch_sizes: tuple[int, ...]
    limits: Limits
    failures: tuple[str, ...]
    """What is outside its limit, one line each."""
    first_divergence: Divergence | None
    sha256: str
    """Of the ONNX file that was compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """All variants of an experiment: `metrics/E/parity.json`."""

    experiment: str
    dataset: str
    rows: int
    passed: bool
    output: str
    """The one that is compared: "logits" or "reconstruction"."""
    torch_accuracy: float | None
    weights_sha256: str
    variants: Mapping[str, VariantParity]
    skipped: Mapping[str, str]
    """The variants that were not made, with the reason."""


def as_table(report: ParityReport) -> str:
    """Lay out a report for a terminal: one line per variant, then what was skipped and why."""
    known = report.torch_accuracy
    accuracy = "" if known is None else f"accuracy {known:.2%} "
    reference = f"PyTorch: {accuracy}on {report.rows:,} rows"
    rows = [_line(name, variant, report.output) for name, variant in report.variants.items()]
    skipped = [f"{name}: not made: {reason}" for name, reason in report.skipped.items()]
    return "\n\n".join([reference, table(HEADER, rows), *skipped])


def _line(name: str, variant: VariantParity, output: str) -> tuple[str, ...]:
    return (
        name,
        "passed" if variant.passed else "FAILED",
        "–" if variant.accuracy is None else f"{variant.accuracy:.2%}",
        "–" if variant.flips is None else str(variant.flips),
        f"{variant.max_abs_diff:.1e}",
        f"{output}{list(variant.max_abs_at)}",
        f"{variant.batch_diff:.1e}",
    )
