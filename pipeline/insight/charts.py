"""Charts of a look inside: reliability, attacks, errors of own and of strange rows, regions."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from pipeline.figures import BLUE, COLORS, INK, ORANGE, PALE, STYLE
from pipeline.records.evaluate import Calibration, Robustness

__all__ = ["attacks", "errors", "regions", "reliability"]

Values = npt.NDArray[Any]
BINS = 60
"""Of a histogram."""
MOST_ROWS = 600
"""That are drawn in a plane."""


def reliability(calibration: Calibration) -> Figure:
    """Draw the accuracy of each bin of confidences over its rows.

    Bars below the diagonal are too sure, bars above it not sure enough.
    """
    width = 1 / len(calibration.bins)
    with mpl.rc_context(STYLE):
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


def attacks(robustness: Robustness) -> Figure:
    """Draw the accuracy under each attack against its strength."""
    style: dict[str, Any] = {"markersize": 5, "clip_on": False}
    names = list(dict.fromkeys(attack.name for attack in robustness.attacks))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axes = figure.subplots()
        for name, color, marker in zip(names, COLORS, "os", strict=False):
            found = sorted((a.strength, a.accuracy) for a in robustness.attacks if a.name == name)
            strengths, accuracies = zip((0.0, robustness.accuracy), *found, strict=True)
            axes.plot(strengths, accuracies, color=color, marker=marker, label=name, **style)
        axes.set(ylim=(0, 1.02), ylabel=f"accuracy on {robustness.rows} rows")
        axes.set_xlabel(f"largest change of a pixel, part of {robustness.largest:g}")
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        if names:
            axes.legend()
    return figure


def errors(groups: Mapping[str, Values], title: str) -> Figure:
    """Draw how often each error occurs in each group of rows, on a logarithmic scale."""
    every = np.concatenate(list(groups.values()))
    low, high = max(float(every.min()), 1e-8), max(float(every.max()), 1e-7)
    edges = np.geomspace(low / 1.05, high * 1.05, BINS).tolist()
    with mpl.rc_context(STYLE):
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


def regions(
    grid: tuple[Values, Values], probabilities: Values, rows: Values, classes: Sequence[str],
    labels: Values,
) -> Figure:  # fmt: skip
    """Draw what is answered all over a plane, and the rows in it.

    `grid` are the places along both axes, `probabilities` [y, x, classes] the answers there, `rows`
    [rows, 2] with the actual `labels`. The surer the answer, the deeper its colour.
    """
    across, up = grid
    colors = np.array([to_rgb(COLORS[number % len(COLORS)]) for number in range(len(classes))])
    image = np.empty((*probabilities.shape[:2], 4))
    image[..., :3] = colors[probabilities.argmax(axis=2)]
    sure = (probabilities.max(axis=2) - 1 / len(classes)) / (1 - 1 / len(classes))
    image[..., 3] = 0.08 + 0.42 * sure
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 4.8), layout="constrained")
        axes = figure.subplots()
        extent = (across[0], across[-1], up[0], up[-1])
        axes.imshow(image, origin="lower", extent=extent, interpolation="none", aspect="auto")
        for number, name in enumerate(classes):
            own = rows[:MOST_ROWS][labels[:MOST_ROWS] == number]
            style = {"color": colors[number], "edgecolors": INK, "linewidths": 0.4}
            axes.scatter(own[:, 0], own[:, 1], s=18, label=name, **style)
        axes.set(xlabel="first feature", ylabel="second feature")
        axes.grid(visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        figure.legend(loc="outside right upper", title="actual class")
    return figure
