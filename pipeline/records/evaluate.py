"""What `ferry evaluate` found inside of a trained network."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """The rows whose confidence lies in one of the equally wide intervals from 0 to 1."""

    rows: int
    confidence: float | None
    """Mean probability of the class that is answered; None without rows, as is the next."""
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Whether the network is as sure as it is right."""

    error: float
    """Expected calibration error: the bins' mean |accuracy - confidence|, weighted by rows."""
    mean_confidence: float
    brier: float
    """Mean over rows of the sum over classes of (probability - truth)², 0 to 2."""
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A row of the test set that is answered wrongly."""

    row: int
    """Its index in the test set."""
    actual: str
    answered: str
    probability: float
    """Of the class that is answered."""
    loss: float
    """Cross-entropy of the row, in nats."""
    text: str | None
    """The beginning of a sentence; None of other rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """How many rows are still answered rightly when each pixel may change a little."""

    name: str
    """"FGSM" or "PGD"."""
    strength: float
    """Largest change of a pixel, as a part of `Robustness.largest`."""
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Robustness:
    """Accuracy under attack, beside that on the same rows as they are."""

    rows: int
    """The first rows of the test set."""
    largest: float
    """The largest pixel value in the test set: strengths are parts of it, and no pixel goes on."""
    steps: int
    """Of PGD."""
    seed: int
    """Of the random start of PGD."""
    accuracy: float
    attacks: tuple[Attack, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """How a classifier does on the test set."""

    accuracy: float
    class_accuracy: Mapping[str, float | None]
    """Of the rows of each class; None for a class without rows."""
    calibration: Calibration
    robustness: Robustness | None
    """None where it is skipped."""
    confident_mistakes: tuple[Mistake, ...]
    """Largest probability of a wrong class first."""
    worst_mistakes: tuple[Mistake, ...]
    """Largest loss first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outliers:
    """How well `error` separates the images of another data set from its own."""

    dataset: str
    rows: int
    mean_error: float
    auc: float
    """Chance that a row of the other data set has a larger error than one of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """How well the rows of the test set are drawn again."""

    mean_error: float
    """Mean squared error on pixels from 0 to 1."""
    quantiles: Mapping[str, float]
    """Of the rows' errors."""
    outliers: Outliers | None
    """None where it is skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Residuals:
    """How far the predictions of one target are from its actual values, over the test set."""

    bias: float
    """Mean of what is predicted minus what is actual, in the target's units, as are the others."""
    quantiles: Mapping[str, float]
    """Of the absolute residuals."""
    worst_row: int
    """The row of the test set that is furthest off."""
    worst: float
    """Its residual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateReport:
    """A look inside of one experiment's network."""

    experiment: str
    dataset: str
    rows: int
    """Of the test set."""
    weights_sha256: str
    classes: Classes | None
    """None where no class is answered."""
    reconstruction: Reconstruction | None
    """None where pictures are not drawn again."""
    pictures: Mapping[str, str]
    """What the file NAME.svg in `reports/pictures/E` shows, by NAME."""
    skipped: Mapping[str, str]
    """Why a picture or a measurement is not there."""
    targets: Mapping[str, Residuals] = field(default_factory=dict)
    """Of a regression, by the target's name."""

    @property
    def headline(self) -> Mapping[str, float | None]:
        """How well a classifier is calibrated, and how well a reconstruction tells images apart."""
        drawn = self.reconstruction
        return {
            "ece": self.classes.calibration.error if self.classes else None,
            "mean_error": drawn.mean_error if drawn else None,
            "auc": drawn.outliers.auc if drawn and drawn.outliers else None,
        }


def tracked(report: EvaluateReport) -> dict[str, float]:
    """The numbers that the command shows."""
    found: dict[str, float] = {}
    if report.classes:
        calibration = report.classes.calibration
        found["calibration_error"] = calibration.error
        found["mean_confidence"] = calibration.mean_confidence
        found["brier"] = calibration.brier
        attacks = report.classes.robustness.attacks if report.classes.robustness else ()
        for attack in attacks:
            found[f"{attack.name.lower()}_{attack.strength:g}_accuracy"] = attack.accuracy
    if report.reconstruction:
        found["mean_error"] = report.reconstruction.mean_error
        if report.reconstruction.outliers:
            found["auc"] = report.reconstruction.outliers.auc
    if len(report.targets) == 1:  # several have no one unit
        (residuals,) = report.targets.values()
        found["bias"] = residuals.bias
        found["median_absolute_error"] = residuals.quantiles["0.5"]
    return found
