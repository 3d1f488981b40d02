"""Sheets of small images: what a network looks for, what it looks at, and where it is wrong.

Each pixel stays one pixel in the file, so that a figure of forty images is a few kilobytes.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from pipeline.figures import STYLE

__all__ = [
    "feature_maps",
    "first_layer",
    "first_layer_gates",
    "mistakes",
    "reconstructions",
    "saliency",
]

Images = npt.NDArray[Any]
COLUMNS = 8
MOST_TILES = 32
"""Units or planes that are drawn of a layer that has more."""
SMALL = 7.5
"""Of the text at an image, in points."""
COLOUR_CHANNELS = 3


def first_layer(weights: npt.NDArray[np.float32]) -> Figure:
    """Draw the weights of the first units, float32 [units, H, W, channels].

    Of images in colour each tile is a colour image about grey; else red is above 0 and blue below.
    """
    shown = weights[:MOST_TILES]
    with mpl.rc_context(STYLE):
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


def first_layer_gates(weights: npt.NDArray[np.float32], names: Sequence[str]) -> Figure:
    """Draw the weights of a recurrent layer from a row of pixels, float32 [gates × units, pixels].

    Red is above 0 and blue below.
    """
    reach = max(float(np.abs(weights).max()), 1e-12)
    units = len(weights) // len(names)
    with mpl.rc_context(STYLE | {"axes.grid": False}):
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


def feature_maps(image: Images, largest: float, planes: npt.NDArray[np.float32]) -> Figure:
    """Draw an image, [H, W, C], and the planes that a layer makes of it, [planes, H', W'].

    All planes share one scale, from black, their least value, to white.
    """
    shown = planes[:MOST_TILES]
    with mpl.rc_context(STYLE):
        figure, grid = _grid(-(-len(shown) // COLUMNS), COLUMNS + 1, size=0.9)
        _pixels(grid[0, 0], image, largest)
        grid[0, 0].set_title("the row", fontsize=SMALL, loc="center", fontweight="normal")
        low, high = float(shown.min()), float(shown.max())
        for axes, plane in zip(grid[:, 1:].flat, shown, strict=False):
            _show(axes, plane, cmap="gray", vmin=low, vmax=high)
        _head(figure, f"{len(shown)} of {len(planes)} planes")
    return figure


def mistakes(orders: Sequence[tuple[str, Images, Sequence[str]]], largest: float) -> Figure:
    """Draw wrong answers: of each order its name, the images and a note for each.

    A note is one or two short lines.
    """
    columns = max(len(images) for _, images, _ in orders)
    with mpl.rc_context(STYLE):
        figure, grid = _grid(len(orders), columns, size=1.15, above=0.36 * len(orders))
        for line, (name, images, notes) in zip(grid, orders, strict=True):
            for axes, image, note in zip(line, images, notes, strict=False):
                _pixels(axes, image, largest)
                axes.set_title(note, fontsize=SMALL, loc="center", fontweight="normal")
            _name(line[0], name)
    return figure


def saliency(images: Images, largest: float, found: Images, notes: Sequence[str]) -> Figure:
    """Draw images, [rows, H, W, C], with how much each of their pixels counts, [rows, H, W].

    Each row has a scale of its own, from black, nothing, to bright, its largest value.
    """
    with mpl.rc_context(STYLE):
        figure, grid = _grid(2, len(images), size=1.15, above=0.2)
        for number, (above, below) in enumerate(grid.T):
            _pixels(above, images[number], largest)
            above.set_title(notes[number], fontsize=SMALL, loc="center", fontweight="normal")
            reach = max(float(found[number].max()), 1e-12)
            _show(below, found[number], cmap="inferno", vmin=0, vmax=reach)
        _name(grid[0, 0], "row")
        _name(grid[1, 0], "saliency")
    return figure


def reconstructions(images: Images, drawn: Images, notes: Sequence[str], largest: float) -> Figure:
    """Draw images, uint8 [rows, H, W, C], above what was made of them, float32, 0 to 1.

    Below lies the mean squared error of each pixel, of all rows on one scale.
    """
    errors = np.square(images / 255 - drawn).mean(axis=3)
    reach = max(float(errors.max()), 1e-12)
    with mpl.rc_context(STYLE):
        figure, grid = _grid(3, len(images), size=0.95, above=0.36)
        for number, (above, middle, below) in enumerate(grid.T):
            _pixels(above, images[number], largest)
            above.set_title(notes[number], fontsize=SMALL, loc="center", fontweight="normal")
            _pixels(middle, drawn[number] * 255, largest)
            _show(below, errors[number], cmap="inferno", vmin=0, vmax=reach)
        for line, name in zip(grid, ("row", "drawn again", "error"), strict=True):
            _name(line[0], name)
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


def _pixels(axes: Axes, image: Images, largest: float) -> None:
    """Show raw values, [H, W, C], from 0 to `largest`."""
    bright = np.clip(np.asarray(image, dtype=np.float64) / max(largest, 1e-12), 0, 1)
    if bright.shape[2] == COLOUR_CHANNELS:
        _show(axes, bright)
    else:
        _show(axes, bright.mean(axis=2), cmap="gray", vmin=0, vmax=1)


def _show(axes: Axes, image: Images, **scale: Any) -> None:
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
