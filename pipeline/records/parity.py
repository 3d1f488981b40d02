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
    flips: int
    accuracy_loss: float
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
    accuracy: float
    """0 to 1."""
    flips: int
    """Rows whose predicted class is not PyTorch's, at the worst batch size."""
    accuracy_loss: float
    """Percentage points; negative where the variant is the better one."""
    max_abs_diff: float
    """Largest absolute difference of a logit."""
    max_abs_at: tuple[int, int]
    """Row and column of it."""
    max_rel_diff: float
    """Largest relative difference, of logits above 1 % of the largest one."""
    max_rel_at: tuple[int, int]
    mean_abs_diff: float
    batch_diff: float
    """Largest difference of a logit of one row between two batch sizes."""
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
    torch_accuracy: float
    weights_sha256: str
    variants: Mapping[str, VariantParity]


def as_table(report: ParityReport) -> str:
    """Lay out a report for a terminal: one line per variant."""
    reference = f"PyTorch: accuracy {report.torch_accuracy:.2%} on {report.rows:,} rows"
    rows = [_line(name, variant) for name, variant in report.variants.items()]
    return f"{reference}\n\n{table(HEADER, rows)}"


def _line(name: str, variant: VariantParity) -> tuple[str, ...]:
    row, column = variant.max_abs_at
    return (
        name,
        "passed" if variant.passed else "FAILED",
        f"{variant.accuracy:.2%}",
        str(variant.flips),
        f"{variant.max_abs_diff:.1e}",
        f"logits[{row}, {column}]",
        f"{variant.batch_diff:.1e}",
    )
