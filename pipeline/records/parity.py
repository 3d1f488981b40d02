"""What a comparison of two models found: of an experiment's variants, or of any two models.

`ferry parity EXPERIMENT` writes a `ParityReport`; `ferry parity A B` and `ferry export --module`
write a `PairReport`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.config.experiment import GateConfig

SECOND_EXPORTER = "torchscript"
"""A way to export that is compared and reported, and never ships."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NonFinite:
    """A node that makes NaN or infinities of finite inputs."""

    node: str
    operator: str
    tensor: str
    kind: Literal["NaN", "infinity"]

    def describe(self) -> str:
        """The finding in one line."""
        return f"{self.node} ({self.operator}) is the first to make {self.kind}, in {self.tensor}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """A node whose output is not the reference's, where its inputs are."""

    node: str
    operator: str
    tensor: str
    """The output that differs, by its name in the model."""
    max_abs_diff: float | None
    """None where no number tells it: another shape, other words, or NaN; so is the one below."""
    relative_diff: float | None
    """The largest absolute difference over the tensor's largest value in the reference."""
    input_relative_diff: float | None
    """The same of the node's own inputs, at most; None where nothing before it can be compared."""
    reference: str
    """What it was compared with: "PyTorch" or "unoptimized ONNX Runtime"."""

    def describe(self) -> str:
        """The finding in one line."""
        off = "differs" if self.relative_diff is None else f"is off by {self.relative_diff:.1e}"
        read = self.input_relative_diff
        before = "" if read is None else f", its inputs by {read:.1e}"
        return f"{self.node} ({self.operator}): {self.tensor} {off} beside {self.reference}{before}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantile:
    """The difference that a part of the values does not exceed, at most 1 % too large."""

    part: float
    diff: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDifference:
    """How far one output is from the reference's, over all rows of a cell."""

    output: str
    values: int
    nonfinite: int
    """Values that are NaN or infinite on either side; the figures below leave them out."""
    max_abs_diff: float
    max_abs_at: tuple[int, ...]
    """Row and column of it, or of the first value that is not finite; () where nothing differs."""
    largest: float
    """The largest absolute value that the reference answers."""
    max_rel_diff: float
    """Largest relative difference; values below 1 % of their row's largest are divided by that."""
    max_rel_at: tuple[int, ...]
    max_scaled_diff: float
    """Largest difference over the standard deviation of its column, or over what stands for it
    where that is below what rounding can do."""
    max_scaled_at: tuple[int, ...]
    mean_abs_diff: float
    quantiles: tuple[Quantile, ...]
    ulps: tuple[int, ...]
    """Values that differ by 0, 1, 2, 3 to 4, 5 to 8, ... units in the last place."""
    snr_db: float | None
    """Ten times the logarithm of the variance of the reference over the power of the difference,
    of the noisiest column; None where there is no difference, and for counts, ids and texts."""
    cosine: float | None
    """Between all values of both; None where one side is all zeros."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceInterval:
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """Whether one side is better, by the rows that exactly one of them gets right."""

    lost: int
    """Rows that the reference alone gets right."""
    gained: int
    """Rows that the other alone gets right."""
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """One row whose predicted class is another one."""

    row: int
    reference: int | str
    """The class that the reference answers: its number, or the label that the model gives."""
    other: int | str
    margin: float | None
    """Between the reference's two largest scores; None where it is no number."""
    near_tie: bool
    label: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """The classes that both sides predict."""

    output: str
    """The one that decides: the logits or the probabilities, or another table of scores."""
    rows: int
    flips: int
    """Real ones, outside of near-ties."""
    near_ties: int
    """Flips of rows whose margin is at most `near_tie_margin`: rounding may decide them."""
    near_tie_rows: int
    """All rows of such a margin, flipped or not."""
    near_tie_margin: float
    flip_rate: ConfidenceInterval
    """Of real flips among all rows, by Wilson."""
    classes: Mapping[str, int]
    """Real flips by the class that the reference predicts."""
    named: tuple[Flip, ...]
    """The first flips, real or not."""
    reference_accuracy: float | None
    """0 to 1; None without labels, as are the two below."""
    accuracy: float | None
    mcnemar: McNemar | None


SMALLEST_ERROR = 1e-6
"""Of a variance: an error below it is rounding, and one that grew beyond it has a measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetErrors:
    """How far both sides are from the targets of a regression.

    Mean squared errors in parts of each target's variance, over the targets that vary: 1 - R².
    """

    reference: float
    other: float

    @property
    def increase(self) -> float:
        """Per cent by which the error grew; below 0 where it shrank."""
        return 100 * (self.other / max(self.reference, SMALLEST_ERROR) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One way to run a model: its exporter, provider, optimization level and batch size."""

    exporter: str
    """"dynamo", as it ships; `SECOND_EXPORTER`; or "file" for what ferry did not export."""
    provider: str
    level: str
    """Of ONNX Runtime's graph optimization: "none", "basic", "extended" or "all"."""
    batch_size: int
    rows: int
    passed: bool
    failures: tuple[str, ...]
    outputs: tuple[OutputDifference, ...]
    decisions: tuple[Decisions, ...]
    """Of each output that decides; () where no class is predicted."""
    errors: TargetErrors | None = None
    """None where no targets are known."""

    @property
    def ships(self) -> bool:
        """Whether the verdict depends on it."""
        return self.exporter != SECOND_EXPORTER


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedCell:
    """A way that could not be run; an empty level stands for all of them."""

    exporter: str
    provider: str
    level: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDifference:
    """How far the answers to one and the same row are apart."""

    max_abs_diff: float
    """Over all outputs."""
    max_scaled_diff: float
    """The same over the scale of the output."""
    where: str
    """The two ways it was asked, for instance "alone and last of 7"; "" where nothing differs."""
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostileRow:
    """A row that no data set holds, and what became of it."""

    name: str
    passed: bool
    max_abs_diff: float | None
    """Over all outputs; None where there is no answer to compare."""
    limit: float | None
    """Of that output on this row; None where the gate has none."""
    message: str
    """What is remarkable about it, "" for nothing."""
    gated: bool = True
    """Whether the limit holds for it: not beyond the range of all others, where it only is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxReferenceAnswer:
    """What `onnx.reference`, a second runtime, says to a sample of rows."""

    rows: int
    to_reference: float | None
    """Largest difference to the reference's answers, over all outputs; None if it did not run."""
    to_model: float | None
    """Largest difference to the model's answers in ONNX Runtime."""
    skipped: str | None
    """Why it did not run."""
    warning: str | None = None
    """That it contradicts the model by more than rounding, and the cause where that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantParity:
    """How far one model is from its reference: the worst over all cells of what would ship."""

    passed: bool
    accuracy: float | None
    """0 to 1; None where no class is predicted or known, as are accuracy_loss and mcnemar_p."""
    flips: int | None
    """Rows whose predicted class is really another one; None where no class is predicted."""
    near_ties: int | None
    """Rows that rounding alone may have decided otherwise, and that differ."""
    flip_rate: ConfidenceInterval | None
    accuracy_loss: float | None
    """Percentage points; negative where the variant is the better one."""
    mcnemar_p: float | None
    max_abs_diff: float
    """Largest absolute difference of a value of any output but the probabilities."""
    max_abs_output: str
    max_abs_at: tuple[int, ...]
    """Row and column of it; of a reconstruction row, y, x and channel."""
    max_rel_diff: float
    max_scaled_diff: float
    """Largest difference in parts of what its column varies by, between batches too."""
    max_probability_diff: float | None
    mean_abs_diff: float
    snr_db: float | None
    """Of the worst output; None where nothing differs."""
    kernel_snr_db: float | None
    """The same between ONNX Runtime's optimized kernels and the graph as it is written."""
    nonfinite: int
    """Values that are NaN or infinite."""
    batch_diff: float
    """Largest difference of a value of one row between two batches."""
    batch_sizes: tuple[int, ...]
    limits: GateConfig
    failures: tuple[str, ...]
    """What is outside its limit, one line each."""
    first_divergence: Divergence | None
    first_nonfinite: NonFinite | None
    notes: tuple[str, ...]
    """What a reader of the figures should know."""
    sha256: str
    """Of the ONNX file that was compared."""
    zero_rows: str
    """What becomes of a batch without rows."""
    hostile_max_abs_diff: float
    """Of those that the limit holds for."""
    cells: tuple[Cell | SkippedCell, ...]
    batches: tuple[BatchDifference, ...]
    hostile: tuple[HostileRow, ...]
    onnx_reference: OnnxReferenceAnswer
    error_increase: float | None = None
    """Per cent by which the mean squared error of targets grew; None where none are known, as is
    the next one."""
    r2: float | None = None
    """The part of the targets' variance that is explained, at most 1."""

    @property
    def run(self) -> tuple[Cell, ...]:
        """The cells that were not skipped."""
        return tuple(cell for cell in self.cells if isinstance(cell, Cell))


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """All variants of an experiment."""

    experiment: str
    dataset: str
    rows: int
    passed: bool
    output: str
    """The first one: "logits" or "reconstruction"."""
    torch_accuracy: float | None
    weights_sha256: str
    sample_rows: int
    """Rows of the cells that are not asked the whole test set."""
    variants: Mapping[str, VariantParity]

    @property
    def torch_r2(self) -> float | None:
        """The part of the targets' variance that the weights explain; None without targets."""
        cells = [cell for one in self.variants.values() for cell in one.run]
        known = [cell.errors for cell in cells if cell.errors and cell.rows == self.rows]
        return 1 - known[0].reference if known else None

    @property
    def headline(self) -> Mapping[str, float | None]:
        """How far fp32 is off, and what int8, which may lose something, does."""
        fp32, int8 = self.variants.get("fp32"), self.variants.get("int8")
        return {
            "accuracy": fp32.accuracy if fp32 else None,
            "flips": fp32.flips if fp32 else None,
            "snr_db": fp32.snr_db if fp32 else None,
            "r2": fp32.r2 if fp32 else None,
            "int8_accuracy": int8.accuracy if int8 else None,
            "int8_flips": int8.flips if int8 else None,
            "int8_r2": int8.r2 if int8 else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SideInfo:
    """One of two models that were compared."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisProof:
    """A free axis of a module, and the lengths that its model is proven at."""

    name: str
    sizes: tuple[int, ...]
    """In rising order."""
    max_abs_diff: float
    """The largest over all of them."""
    traced: str
    """The lengths that torch's trace holds for, in words; "" for any."""
    refused: tuple[int, ...]
    """The lengths that were tried and that the module itself does not answer."""
    refusal: str
    """What it says to the first of them."""

    def describe(self) -> str:
        """The finding in one line."""
        parts = [
            f"axis {self.name}: proven at {_listed(self.sizes)}, up to {self.max_abs_diff:.1e}"
        ]
        if self.refused and self.refused[-1] < self.sizes[0]:
            parts.append(f"not below {self.sizes[0]}: {self.refusal}")
        elif self.refused:
            parts.append(f"not at {_listed(self.refused)}: {self.refusal}")
        if self.traced:
            parts.append(f"torch traced it for lengths {self.traced}")
        return "; ".join(parts)


def _listed(sizes: tuple[int, ...]) -> str:
    return ", ".join(map(str, sizes))


@dataclass(frozen=True, slots=True, kw_only=True)
class PairReport:
    """Any two models on any rows; the reference may be a module of PyTorch."""

    reference: SideInfo
    other: SideInfo
    data: str
    rows: int
    shared: Mapping[str, str]
    """The inputs that were the same for all rows, with their values."""
    passed: bool
    result: VariantParity
    axes: tuple[AxisProof, ...] = ()
    """Of a module with free axes."""
