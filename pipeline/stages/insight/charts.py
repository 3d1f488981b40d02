"""Draw the pictures of `ferry evaluate` with matplotlib: sheets of small images, and charts.

In a sheet each pixel stays one pixel of the file, so that forty images are a few kilobytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from pipeline.records.evaluate import Calibration, Robustness
from pipeline.tracking.figures import BLUE, COLORS, INK, ORANGE, PALE, STYLE

Array = npt.NDArray[Any]
COLUMNS = 8
MOST_TILES = 32
"""Units or planes that are drawn of a layer that has more."""
SMALL = 7.5
"""Of the text at an image, in points."""
COLOUR_CHANNELS = 3
BINS = 60
"""Of a histogram."""
MOST_ROWS = 600
"""That are drawn in a plane."""


@mpl.rc_context(STYLE)
def first_layer(weights: npt.NDArray[np.float32]) -> Figure:
    """Draw the weights of the first units, float32 [units, H, W, channels].

    Of images in colour each tile is a colour image about grey; else red is above 0 and blue below.
    """
    shown = weights[:MOST_TILES]
    figure, grid = _grid(-(-len(shown) // COLUMNS), COLUMNS, size=0.9)
    reach = max(float(np.abs(shown).max()), 1e-12)
    for axes, tile in zip(grid.flat, shown, strict=False):
        if tile.shape[2] == COLOUR_CHANNELS:
            spread = max(float(np.abs(tile).max()), 1e-12)
            _show(axes, 0.5 + tile / spread / 2)
        else:
            _show(axes, tile.mean(axis=2), cmap="RdBu_r", vmin=-reach, vmax=reach)
    _head(figure, f"{len(shown)} of {len(weights)} units")
    return figure


@mpl.rc_context(STYLE | {"axes.grid": False})
def first_layer_gates(weights: npt.NDArray[np.float32], names: Sequence[str]) -> Figure:
    """Draw the weights of a recurrent layer from a row of pixels, float32 [gates × units, pixels].

    Red is above 0 and blue below.
    """
    reach = max(float(np.abs(weights).max()), 1e-12)
    units = len(weights) // len(names)
    figure = Figure(figsize=(8, 1.4 * len(names)), layout="constrained")
    grid = np.atleast_1d(figure.subplots(len(names), 1, sharex=True))
    for number, (axes, name) in enumerate(zip(grid, names, strict=True)):
        part = weights[number * units : (number + 1) * units].T
        drawn = axes.imshow(
            part, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="none", aspect="auto"
        )
        axes.set_title(f"{name} gate" if name != "new" and name != "cell" else f"{name} state")
        axes.set_ylabel("pixel of a row")
    grid[-1].set_xlabel("unit")
    figure.colorbar(drawn, ax=list(grid), label="weight", shrink=0.8)
    return figure


@mpl.rc_context(STYLE)
def feature_maps(image: Array, largest: float, planes: npt.NDArray[np.float32]) -> Figure:
    """Draw an image, [H, W, C], and the planes that a layer makes of it, [planes, H', W'].

    All planes share one scale, from black, their least value, to white.
    """
    shown = planes[:MOST_TILES]
    figure, grid = _grid(-(-len(shown) // COLUMNS), COLUMNS + 1, size=0.9)
    _pixels(grid[0, 0], image, largest)
    grid[0, 0].set_title("the row", fontsize=SMALL, loc="center", fontweight="normal")
    low, high = float(shown.min()), float(shown.max())
    for axes, plane in zip(grid[:, 1:].flat, shown, strict=False):
        _show(axes, plane, cmap="gray", vmin=low, vmax=high)
    _head(figure, f"{len(shown)} of {len(planes)} planes")
    return figure


@mpl.rc_context(STYLE)
def mistakes(orders: Sequence[tuple[str, Array, Sequence[str]]], largest: float) -> Figure:
    """Draw wrong answers: of each order its name, the images and a note for each.

    A note is one or two short lines.
    """
    columns = max(len(images) for _, images, _ in orders)
    figure, grid = _grid(len(orders), columns, size=1.15, above=0.36 * len(orders))
    for line, (name, images, notes) in zip(grid, orders, strict=True):
        for axes, image, note in zip(line, images, notes, strict=False):
            _pixels(axes, image, largest)
            axes.set_title(note, fontsize=SMALL, loc="center", fontweight="normal")
        _name(line[0], name)
    return figure


@mpl.rc_context(STYLE)
def saliency(images: Array, largest: float, found: Array, notes: Sequence[str]) -> Figure:
    """Draw images, [rows, H, W, C], with how much each of their pixels counts, [rows, H, W].

    Each row has a scale of its own, from black, nothing, to bright, its largest value.
    """
    figure, grid = _grid(2, len(images), size=1.15, above=0.2)
    for number, (above, below) in enumerate(grid.T):
        _pixels(above, images[number], largest)
        above.set_title(notes[number], fontsize=SMALL, loc="center", fontweight="normal")
        reach = max(float(found[number].max()), 1e-12)
        _show(below, found[number], cmap="inferno", vmin=0, vmax=reach)
    _name(grid[0, 0], "row")
    _name(grid[1, 0], "saliency")
    return figure


@mpl.rc_context(STYLE)
def reconstructions(images: Array, drawn: Array, notes: Sequence[str], largest: float) -> Figure:
    """Draw images, uint8 [rows, H, W, C], above what was made of them, float32, 0 to 1.

    Below lies the mean squared error of each pixel, of all rows on one scale.
    """
    errors = np.square(images / 255 - drawn).mean(axis=3)
    reach = max(float(errors.max()), 1e-12)
    figure, grid = _grid(3, len(images), size=0.95, above=0.36)
    for number, (above, middle, below) in enumerate(grid.T):
        _pixels(above, images[number], largest)
        above.set_title(notes[number], fontsize=SMALL, loc="center", fontweight="normal")
        _pixels(middle, drawn[number] * 255, largest)
        _show(below, errors[number], cmap="inferno", vmin=0, vmax=reach)
    for line, name in zip(grid, ("row", "drawn again", "error"), strict=True):
        _name(line[0], name)
    return figure


@mpl.rc_context(STYLE)
def reliability(calibration: Calibration) -> Figure:
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


@mpl.rc_context(STYLE)
def attacks(robustness: Robustness) -> Figure:
    """Draw the accuracy under each attack against its strength."""
    style: dict[str, Any] = {"markersize": 5, "clip_on": False}
    names = list(dict.fromkeys(attack.name for attack in robustness.attacks))
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


@mpl.rc_context(STYLE)
def errors(groups: Mapping[str, Array], title: str) -> Figure:
    """Draw how often each error occurs in each group of rows, on a logarithmic scale."""
    every = np.concatenate(list(groups.values()))
    low, high = max(float(every.min()), 1e-8), max(float(every.max()), 1e-7)
    edges = np.geomspace(low / 1.05, high * 1.05, BINS).tolist()
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
def regions(
    grid: tuple[Array, Array], probabilities: Array, rows: Array, classes: Sequence[str],
    labels: Array,
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


def _grid(rows: int, columns: int, *, size: float, above: float = 0.0) -> tuple[Figure, Any]:
    """Places of `size` inches for square images, and `above` inches for text over them."""
    inches = (columns * size + 0.4, rows * size + above + 0.25)
    spread = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    figure = Figure(figsize=inches, layout=spread)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    return figure, grid


def _pixels(axes: Axes, image: Array, largest: float) -> None:
    """Show raw values, [H, W, C], from 0 to `largest`."""
    bright = np.clip(np.asarray(image, dtype=np.float64) / max(largest, 1e-12), 0, 1)
    if bright.shape[2] == COLOUR_CHANNELS:
        _show(axes, bright)
    else:
        _show(axes, bright.mean(axis=2), cmap="gray", vmin=0, vmax=1)


def _show(axes: Axes, image: Array, **scale: Any) -> None:
    # Not "nearest", which would draw the pixels anew at the figure's own resolution.
    drawn = axes.imshow(image, interpolation="none", **scale)
    # Else its id would come from its pixels, and two dark planes share one; `as_svg` removes this.
    drawn.set_gid("image_0")


def _name(axes: Axes, name: str) -> None:
    """Write what a line of images shows, upwards, to the left of its first one."""
    axes.text(
        -0.08, 0.5, name, rotation=90, size=SMALL + 1, weight="bold",
        ha="right", va="center", transform=axes.transAxes,
    )  # fmt: skip


def _head(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=SMALL + 1)
