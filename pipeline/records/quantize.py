"""What `ferry quantize` tried and what it kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from serving.console import DASH, number, table
from serving.measuring.pairing import PairedRatio

HEADER = ("variant", "recipe", "loss (95 %)", "flips", "size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a variant may cost and must bring."""

    accuracy_loss: float
    """Most percentage points of accuracy, or of agreement where no class is known."""
    error_increase: float
    """Most per cent by which a mean error may grow, or of their own variation that values may be
    off."""
    min_speedup: float
    """Least ratio of fp32's time to the variant's, at each batch size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How much worse than fp32 a variant answers the rows that it was judged on."""

    measure: str
    """"accuracy"; "agreement" with fp32's decisions; "mean error" of reconstructions; "difference"
    of values; "not finite" for answers that are no numbers, with None for all that follows."""
    rows: int
    reference: float | None = None
    """Of fp32; 0 to 1, or the mean error."""
    value: float | None = None
    loss: float | None = None
    """Percentage points; per cent by which a mean error grew, below 0 for a gain; or the root mean
    square of the differences of the worst column in per cent of its standard deviation."""
    low: float | None = None
    """Lower end of the paired 95 % interval of the loss."""
    high: float | None = None
    flips: int | None = None
    """Rows that are decided otherwise than by fp32; None where no class is decided."""
    rows_lost: int | None = None
    """Rows that fp32 alone gets right; without labels, the flips. None where none is decided."""
    rows_gained: int | None = None
    """Rows that the variant alone gets right."""
    snr_db: float | None = None
    """Signal-to-noise ratio of the noisiest column of any output, as parity measures it; None
    where there is no noise."""
    noisiest: str = ""
    """That column, for instance "boxes[:, 2]"."""

    @property
    def counts(self) -> bool:
        """Whether rows are counted that are decided rightly."""
        return self.measure in ("accuracy", "agreement")

    @property
    def lost(self) -> str:
        """The loss, of what, in its unit: "0.50 points of accuracy lost"."""
        if self.loss is None:
            return "no number"
        if self.measure == "difference":
            return f"off by {self.loss:.2f} % of the variation of {self.noisiest or 'its outputs'}"
        if self.counts:
            return f"{self.loss:.2f} points of {self.measure} lost"
        return f"{self.measure} {abs(self.loss):.2f} % {'smaller' if self.loss < 0 else 'larger'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutVnni:
    """What a variant that needs VNNI would answer on a processor that lacks it: computed."""

    quality: Quality
    overflows: int
    """Pairs of integer products whose sum does not fit 16 bits, on these rows."""

    def describe(self) -> str:
        """In a few words, with what it would lose."""
        loss = self.quality.loss
        lost = "answers that are no number" if loss is None else self.quality.lost
        return f"needs VNNI: without it {self.overflows:,} sums overflow: {lost}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One recipe, and what came of it."""

    recipe: str
    what: str
    """The same for a person."""
    accurate: bool
    """Whether its answers are inside the budget."""
    fast: bool
    """Whether its speed and size are."""
    verdict: str
    """Why it is or is not."""
    quality: Quality | None = None
    """None where the recipe cannot be applied, as are the figures below."""
    unsettled: str = ""
    """What the rows that it was judged on cannot tell, and how many could; "" for nothing."""
    bytes: int | None = None
    size_ratio: float | None = None
    """Of the fp32 file."""
    speedup: Mapping[str, PairedRatio] = field(default_factory=dict)
    """fp32's time over the variant's, by batch size; one thread each, in pairs."""
    float_layers: tuple[str, ...] = ()
    """Nodes that were left in float."""
    sha256: str | None = None
    qat_epochs: int = 0
    """Of training with quantization before it; 0 for none."""
    without_vnni: WithoutVnni | None = None
    """None for a file that answers alike on every processor."""

    @property
    def inside(self) -> bool:
        """Whether it is inside both budgets."""
        return self.accurate and self.fast

    @property
    def speed(self) -> float:
        """The geometric mean of the speedups over the batch sizes; 0 where there are none."""
        medians = [ratio.median for ratio in self.speedup.values()]
        return prod(medians) ** (1 / len(medians)) if medians else 0.0

    def figures(self) -> str:
        """What it lost and won, on one line; the verdict where nothing was measured."""
        parts = []
        if self.quality and self.quality.loss is not None:
            doubt = f" ({self.unsettled})" if self.unsettled else ""
            parts.append(f"{self.quality.lost}{doubt}")
        if self.size_ratio is not None:
            parts.append(f"{self.size_ratio:.2f} of the size")
        for size, ratio in self.speedup.items():
            parts.append(f"{ratio.median:.2f} times as fast at batch {size}")
        return ", ".join(parts) or self.verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """All that was tried for one variant, in order."""

    budget: Budget
    tries: tuple[Try, ...]
    not_tried: Mapping[str, str]
    """Groups of recipes that were left out, with the reason."""
    chosen: str | None
    """The recipe that was kept, or None where fp32 ships."""
    reason: str
    qat_epochs: int
    """Of training with quantization that the file went through; 0 for none."""
    slowness: tuple[str, ...] = ()
    """Where the time of the recipe that comes nearest goes, if it is slower than asked."""

    def kept(self, one: Try) -> bool:
        """Whether it is the one that was kept."""
        return one.recipe == self.chosen and one.qat_epochs == self.qat_epochs


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFile:
    """One variant that was written."""

    recipe: str
    bytes: int
    sha256: str
    size_ratio: float
    """Of the fp32 file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeReport:
    """What was tried and what was written."""

    experiment: str
    """Its name, or the ONNX file's."""
    model_sha256: str
    goal: str
    """"speed" or "size": by which the best is chosen of those inside both budgets."""
    judged_on: str
    """Whose rows the accuracy is of, never the test set's."""
    rows: int
    calibration_rows: int
    """As many as there were, where that is less than what the settings asked for."""
    machine: str
    """The processor that the speeds were measured on. The files are the same everywhere; which one
    is chosen depends on these speeds, so another machine may choose another."""
    threads: int
    seconds: float
    variants: Mapping[str, VariantFile]
    skipped: Mapping[str, str]
    """The variants that were not made, with the reason."""
    searches: Mapping[str, Search]
    calibration_rows_asked: int = 0
    """By the settings."""

    @property
    def headline(self) -> Mapping[str, float | None]:
        """The size of the smallest file that was kept, and its speed over fp32."""
        variant = min(self.variants, key=lambda name: self.variants[name].bytes, default=None)
        kept = self.kept_try(variant) if variant else None
        return {
            "bytes": self.variants[variant].bytes if variant else None,
            "speedup": kept.speed or None if kept else None,
        }

    def kept_try(self, variant: str) -> Try | None:
        """The try whose file was kept for a variant; None where there is none."""
        search = self.searches.get(variant)
        return next((one for one in search.tries if search.kept(one)), None) if search else None


def as_table(report: QuantizeReport) -> str:
    """Lay out all tries for a terminal: what was kept is marked, and each has its verdict."""
    tries = [(v, one) for v, search in report.searches.items() for one in search.tries]
    sizes = list(dict.fromkeys(size for _, one in tries for size in one.speedup))
    header = (*HEADER, *(f"speed b{size}" for size in sizes), "verdict")
    rows = [_line(variant, one, sizes, report) for variant, one in tries]
    lines = [table(header, rows)] if rows else []
    for variant, search in report.searches.items():
        lines += ["", f"{variant}: {search.reason}"]
        kept = report.kept_try(variant)
        if kept and kept.without_vnni:
            lines.append(f"  {kept.without_vnni.describe()}")
        lines += [f"  slow: {line}" for line in search.slowness]
        lines += [f"  {one.recipe}: {one.verdict}" for one in search.tries if not one.inside]
        lines += [f"  not tried: {name}: {why}" for name, why in search.not_tried.items()]
    if 0 < report.calibration_rows < report.calibration_rows_asked:
        lines.append(
            f"calibrated on all {report.calibration_rows:,} rows that there are to calibrate on, "
            f"of {report.calibration_rows_asked:,} asked for"
        )
    lines += [
        f"{name}: not made: {why}"
        for name, why in report.skipped.items()
        if name not in report.searches
    ]
    return "\n".join(lines).strip()


def _line(variant: str, one: Try, sizes: list[str], report: QuantizeReport) -> tuple[str, ...]:
    kept = report.searches[variant].kept(one)
    quality = one.quality
    loss, flips = DASH, DASH
    if quality and quality.loss is not None:
        loss = f"{quality.loss:.2f} ({quality.low:.2f} to {quality.high:.2f})"
        flips = number(quality.flips)
    speeds = [f"{one.speedup[size].median:.2f}" if size in one.speedup else DASH for size in sizes]
    verdict = ("KEPT" if kept else _verdict(one)) + (", not settled" if one.unsettled else "")
    name = f"{one.recipe} after training" if one.qat_epochs else one.recipe
    return (variant, name, loss, flips, number(one.size_ratio, ".2f"), *speeds, verdict)


def _verdict(one: Try) -> str:
    """In a word or two; why, stands below the table."""
    if one.quality is None:
        return "failed"
    wrong = ([] if one.accurate else ["inaccurate"]) + ([] if one.fast else ["slow or large"])
    return ", ".join(wrong) or "inside"
