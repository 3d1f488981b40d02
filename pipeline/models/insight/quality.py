"""How good a network's answers to the test rows are: accuracy, mistakes, calibration, residuals.

A classifier should be as sure as it is right: of the answers given with 0.9, nine in ten should be
right. A reconstruction should redraw the images of its own data set better than those of another
one, which are outliers to it. Those are made fitting first: grey where the network takes one
channel, and resized to its sides.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter
from torch import Tensor
from torch.nn import functional

from pipeline.models.parts.graph import Graph
from pipeline.records.evaluate import Bin, Calibration, Mistake, Residuals
from pipeline.records.ready import Split
from pipeline.tracking.figures import BLUE, ORANGE, PALE, STYLE

BATCH = 200
MISTAKES = 8
"""Rows listed, by confidence and by loss."""
CHARACTERS = 100
"""Of a sentence that is quoted."""
BINS = 15
"""Equally wide, as in Guo et al., "On calibration of modern neural networks", 2017."""
ERROR_BINS = 60
"""Of the histogram of errors."""
MOST_TARGETS = 4
"""That are drawn of a regression with more."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue: recommendation ITU-R BT.601."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The answers to some rows."""

    probabilities: npt.NDArray[np.float64]
    """[rows, classes]."""
    losses: npt.NDArray[np.float64]
    """Cross-entropy of each row in nats, [rows]."""
    labels: npt.NDArray[np.int64]
    """The actual classes, [rows]."""

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """The class of the largest probability, [rows]."""
        answered: npt.NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return answered

    def worst_by(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """The indices of the wrong rows with the largest of some values, [rows], largest first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return wrong[np.argsort(-values[wrong], kind="stable")][:MISTAKES]


def answer(graph: Graph, split: Split) -> Answers:
    """Let a classifier answer all rows of a split."""
    logits, _ = graph.answer(split.inputs, BATCH)
    logs = _log_probabilities(logits).numpy()
    labels = np.array(split.labels)
    losses = -logs[np.arange(len(labels)), labels]
    return Answers(probabilities=np.exp(logs), losses=losses, labels=labels)


def class_accuracy(answers: Answers, labels: tuple[str, ...]) -> Mapping[str, float | None]:
    """The part of each class's rows that is answered rightly; None for a class without rows."""
    right = answers.predicted == answers.labels
    found: dict[str, float | None] = {}
    for number, label in enumerate(labels):
        own = answers.labels == number
        found[label] = float(right[own].mean()) if own.any() else None
    return found


def most_confident(answers: Answers) -> npt.NDArray[np.int64]:
    """The wrong rows with the largest probability of what they were taken for, largest first."""
    return answers.worst_by(answers.probabilities.max(axis=1))


def worst(answers: Answers) -> npt.NDArray[np.int64]:
    """The wrong rows with the largest loss, largest first."""
    return answers.worst_by(answers.losses)


def mistakes(
    answers: Answers, rows: npt.NDArray[np.int64], split: Split, labels: tuple[str, ...]
) -> tuple[Mistake, ...]:
    """Describe the wrong answers to some rows; sentences are quoted."""
    is_text = split.inputs.dtype.kind == "U"
    return tuple(
        Mistake(
            row=row,
            actual=labels[answers.labels[row]],
            answered=labels[answers.predicted[row]],
            probability=float(answers.probabilities[row].max()),
            loss=float(answers.losses[row]),
            text=str(split.inputs[row])[:CHARACTERS] if is_text else None,
        )
        for row in rows.tolist()
    )


def calibrate(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> Calibration:
    """Compare the confidence of answers with how often they are right.

    `probabilities` are [rows, classes], `labels` the actual classes, [rows]. The expected
    calibration error is that of Guo et al., 2017; the score that of Brier, "Verification of
    forecasts expressed in terms of probability", 1950.
    """
    confidences = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = tuple(_bins(confidences, right))
    gaps = (
        one.rows * abs(one.accuracy - one.confidence)
        for one in bins
        if one.accuracy is not None and one.confidence is not None
    )
    truth = np.eye(probabilities.shape[1])[labels]
    return Calibration(
        error=sum(gaps) / len(labels),
        mean_confidence=float(confidences.mean()),
        brier=float(np.square(probabilities - truth).sum(axis=1).mean()),
        bins=bins,
    )


@mpl.rc_context(STYLE)
def draw_reliability(calibration: Calibration) -> Figure:
    """Draw the accuracy of each bin of confidences over its rows.

    Bars below the diagonal are too sure, bars above it not sure enough.
    """
    width = 1 / len(calibration.bins)
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color=PALE, linestyle="--", linewidth=1)
    for number, one in enumerate(calibration.bins):
        middle = (number + 0.5) * width
        if one.accuracy is not None and one.confidence is not None:
            above.bar(middle, one.accuracy, 0.9 * width, color=BLUE, alpha=0.7)
            ends = [one.accuracy, one.confidence]
            above.plot([one.confidence] * 2, ends, color=ORANGE, marker="_", linewidth=2)
        below.bar(middle, one.rows, 0.9 * width, color=PALE)
    above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    above.set_title(f"Expected calibration error {calibration.error:.4f}")
    below.set(xlabel="confidence: probability of the answer", ylabel="rows", yscale="log")
    below.set_ylim(bottom=0.7)
    below.yaxis.set_major_locator(LogLocator())
    below.yaxis.set_minor_locator(NullLocator())
    below.yaxis.set_major_formatter("{x:,.0f}")
    figure.align_ylabels()
    return figure


@dataclass(frozen=True, slots=True)
class Redrawn:
    """Images drawn again by a network."""

    reconstructions: npt.NDArray[np.float32]
    """[rows, H, W, C], 0 to 1."""
    errors: npt.NDArray[np.float64]
    """Mean squared error of each row, [rows]."""


def redraw(graph: Graph, images: npt.NDArray[np.uint8]) -> Redrawn:
    """Let a network redraw images, uint8 [rows, H, W, C]."""
    planes, errors = graph.answer(images, BATCH)
    return Redrawn(planes.numpy(), errors.double().numpy())


def fitting(images: npt.NDArray[np.uint8], row: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Images with the height, width and channels of `row`, uint8 [rows, H, W, C].

    Resized by bilinear interpolation, smoothed first where they become smaller.
    """
    height, width, channels = row
    planes = _channels(torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float(), channels)
    if planes.shape[2:] != (height, width):
        planes = functional.interpolate(
            planes, (height, width), mode="bilinear", align_corners=False, antialias=True
        )
    made: npt.NDArray[np.uint8] = planes.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return made


def quantiles(errors: npt.NDArray[np.float64]) -> dict[str, float]:
    """The errors that some parts of the rows stay below."""
    found = np.quantile(errors, QUANTILES)
    return {f"{part:g}": float(error) for part, error in zip(QUANTILES, found, strict=True)}


def residuals_of(predicted: npt.NDArray[np.float64], actual: npt.NDArray[np.float64]) -> Residuals:
    """How far predictions of a target are off, both [rows], in its own units."""
    off = predicted - actual
    worst_row = int(np.abs(off).argmax())
    return Residuals(
        bias=float(off.mean()),
        quantiles=quantiles(np.abs(off)),
        worst_row=worst_row,
        worst=float(off[worst_row]),
    )


def auc(own: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """The chance that one of `other` is larger than one of `own`; a tie counts half.

    It is the area under the receiver operating characteristic (Hanley and McNeil, 1982).
    """
    ordered = np.sort(own)
    below = np.searchsorted(ordered, other, side="left")
    up_to = np.searchsorted(ordered, other, side="right")
    return float((below + up_to).mean() / 2 / len(own))


@mpl.rc_context(STYLE)
def draw_errors(groups: Mapping[str, npt.NDArray[np.float64]], title: str) -> Figure:
    """Draw how often each error occurs in each group of rows, on a logarithmic scale."""
    every = np.concatenate(list(groups.values()))
    low, high = max(float(every.min()), 1e-8), max(float(every.max()), 1e-7)
    edges = np.geomspace(low / 1.05, high * 1.05, ERROR_BINS).tolist()
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for (name, found), color in zip(groups.items(), (BLUE, ORANGE), strict=False):
        weights = np.full(len(found), 1 / len(found))
        axes.hist(found, edges, weights=weights, color=color, alpha=0.65, label=name)
    axes.set(xscale="log", xlabel="mean squared error of a row", ylabel="part of the rows")
    axes.set_title(title)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend()
    return figure


@mpl.rc_context(STYLE)
def draw_predicted(
    names: Sequence[str], predicted: npt.NDArray[np.float64], actual: npt.NDArray[np.float64]
) -> Figure:
    """Draw each row's prediction over its actual value, [rows, targets], a panel a target.

    On the diagonal the two are the same.
    """
    figure, panels = _panels(len(names))
    for axes, name, up, across in zip(panels, names, predicted.T, actual.T, strict=False):
        ends = [min(up.min(), across.min()), max(up.max(), across.max())]
        axes.plot(ends, ends, color=PALE, linewidth=1)
        axes.scatter(across, up, s=14, color=BLUE, alpha=0.6, linewidths=0)
        axes.set(xlabel=f"{name}, actual", ylabel=f"{name}, predicted")
    return figure


@mpl.rc_context(STYLE)
def draw_residuals(
    names: Sequence[str], predicted: npt.NDArray[np.float64], actual: npt.NDArray[np.float64]
) -> Figure:
    """Draw how far each row's prediction is off over the prediction, a panel a target.

    A slope or a funnel is what the network has not learnt.
    """
    figure, panels = _panels(len(names))
    for axes, name, across, truth in zip(panels, names, predicted.T, actual.T, strict=False):
        axes.axhline(0, color=PALE, linewidth=1)
        axes.scatter(across, across - truth, s=14, color=ORANGE, alpha=0.6, linewidths=0)
        axes.set(xlabel=f"{name}, predicted", ylabel="predicted - actual")
    return figure


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    """Places for the first targets, side by side."""
    shown = min(count, MOST_TARGETS)
    figure = Figure(figsize=(4.4 * shown, 3.8), layout="constrained")
    return figure, list(figure.subplots(1, shown, squeeze=False)[0])


def _log_probabilities(logits: Tensor) -> Tensor:
    """Float64 [batch, classes], of one logit per class or of the second class's alone.

    From the logits, not from the probabilities: those of a very wrong answer are 0 in float32.
    """
    wide = logits.double()
    if wide.shape[1] == 1:
        wide = torch.cat([torch.zeros_like(wide), wide], dim=1)
    return wide.log_softmax(dim=1)


def _bins(confidences: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> Iterator[Bin]:
    """Bin m holds the confidences above m / BINS up to (m + 1) / BINS."""
    places = np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)
    for place in range(BINS):
        inside = places == place
        if inside.any():
            yield Bin(
                rows=int(inside.sum()),
                confidence=float(confidences[inside].mean()),
                accuracy=float(right[inside].mean()),
            )
        else:
            yield Bin(rows=0, confidence=None, accuracy=None)


def _channels(planes: Tensor, channels: int) -> Tensor:
    """Grey, or the one plane that there is as often as it is wanted."""
    if planes.shape[1] == channels:
        return planes
    if planes.shape[1] == len(LUMA):
        planes = (planes * torch.tensor(LUMA).view(1, -1, 1, 1)).sum(dim=1, keepdim=True)
    return planes[:, :1].expand(-1, channels, -1, -1)
