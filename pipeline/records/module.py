"""What `ferry export --module` measured: `model.parity.json` beside the model."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.records.parity import Divergence
from serving.console import summary, table


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputProof:
    """How far one output is from the module's, over all rows and batch sizes."""

    name: str
    values: int
    """Compared: each row's at each batch size."""
    nonfinite: int
    max_abs_diff: float
    max_abs_at: tuple[int, ...]
    """Row, then the other axes; () where nothing differs."""
    largest: float
    """The largest absolute value that the module answers."""
    spread: float
    """How far the module's answers to different rows are apart; at 0 parity shows nothing."""
    snr_db: float | None
    flips: int | None
    """Rows whose largest value is another one; None where the output is not [rows, classes]."""
    near_ties: int | None
    """The same among rows whose two largest values tie but for rounding."""
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleReport:
    """A module of anybody's as it was exported, and how it was proven."""

    module: str
    """Its import path, or its class where it was handed over in Python."""
    model: str
    """The file beside the report."""
    bytes: int
    sha256: str
    parameters: int
    weights_sha256: str
    torch: str
    opset: int
    ir_version: int
    nodes: int
    inputs: tuple[str, ...]
    """As the model declares them: "pixels float32 [batch, 3, 224, 224]"."""
    export_seconds: float
    data: str
    rows: int
    batch_sizes: tuple[int, ...]
    limit: float
    passed: bool
    max_abs_diff: float
    flips: int | None
    outputs: tuple[OutputProof, ...]
    failures: tuple[str, ...]
    first_divergence: Divergence | None
    notes: tuple[str, ...]
    """What a reader of the figures should know."""


SHOWN = ("module", "model", "bytes", "parameters", "nodes", "opset", "export_seconds", "rows")
HEADER = ("output", "gate", "max diff", "at", "largest", "flips")


def as_table(report: ModuleReport) -> str:
    """Lay out a report for a terminal: the model, a line for each output, and the notes."""
    rows = [_line(output) for output in report.outputs]
    parts: Sequence[str] = (summary(report, SHOWN), table(HEADER, rows), *report.notes)
    return "\n\n".join(parts)


def _line(output: OutputProof) -> tuple[str, ...]:
    return (
        output.name,
        "FAILED" if output.failures else "passed",
        f"{output.max_abs_diff:.1e}",
        str(list(output.max_abs_at)),
        f"{output.largest:.3g}",
        "–" if output.flips is None else str(output.flips),
    )
