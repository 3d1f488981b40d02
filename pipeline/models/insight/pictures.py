"""The pictures of `ferry evaluate`: what is drawn of a trained network, or why it is not.

What is drawn is measured here as well: the first weights, the first planes, and how much each pixel
counts (saliency). In a sheet of images each pixel stays one pixel of the file, so that forty images
are a few kilobytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from pipeline.models.insight.quality import (
    Answers,
    Redrawn,
    draw_errors,
    draw_reliability,
    most_confident,
    worst,
)
from pipeline.models.insight.robustness import draw_attacks
from pipeline.models.parts.graph import Graph
from pipeline.records.evaluate import Classes, Reconstruction
from pipeline.records.ready import DatasetManifest, Split
from pipeline.tracking.figures import COLORS, INK, STYLE
from serving.runtime.tensors import Array

Pictures: TypeAlias = Mapping[str, Figure | str]
"""By name: a figure, or the reason why there is none."""
CAPTIONS = {
    "first_layer": "weights of the first layer",
    "feature_maps": "one test row and what the first convolution and its activation make of it",
    "mistakes": "wrong answers: the actual class, what was answered, and how surely",
    "saliency": "test rows by what was answered, and the pixels that this answer hangs on",
    "reliability": "accuracy of the answers by their confidence",
    "attacks": "accuracy when every pixel may change a little, in the worst direction",
    "regions": "what is answered over the plane of the two features, and the test rows",
    "reconstructions": "test rows drawn again, and those with the largest errors on the right",
    "errors": "mean squared errors of the reconstructed test rows",
    "predicted": "what is predicted over what is actual, for each test row: right on the line",
    "residuals": "how far predictions are off, over what is predicted: a slope was not learnt",
}
FEW = 8
"""Rows whose saliency is drawn: one of each class."""
DRAWN, WORST = 6, 4
"""Rows that are drawn again: one of each class, then those with the largest errors."""
SIDE = 200
"""Places along each axis of a plane at which an answer is asked for."""
MARGIN = 0.25
"""Of the rows' own extent, on each side of them."""
MOST_LETTERS = 14
"""Of a label beside an image."""
FIRST = (nn.Conv2d, nn.Linear, nn.LSTM, nn.GRU)
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.Sigmoid, nn.Tanh)
GATES = {
    nn.LSTM: ("input gate", "forget gate", "cell state", "output gate"),
    nn.GRU: ("reset gate", "update gate", "new state"),
}
"""In the order in which torch keeps their weights."""
COLUMNS = 8
MOST_TILES = 32
"""Units or planes that are drawn of a layer that has more."""
SMALL = 7.5
"""Of the text at an image, in points."""
COLOUR_CHANNELS = 3
MOST_ROWS = 600
"""That are drawn in a plane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedNetwork:
    """A trained graph, and the rows that it is asked about."""

    graph: Graph
    manifest: DatasetManifest
    test: Split

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of one row, as the data set keeps it."""
        return self.test.inputs.shape[1:]

    @property
    def largest(self) -> float:
        """The largest value in the test set: white."""
        return float(self.test.inputs.max())

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, short enough to stand beside an image."""
        return tuple(
            name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"
            for name in self.manifest.labels
        )

    def one_of_each(self, most: int) -> npt.NDArray[np.int64]:
        """The index of the first test row of each of the first classes."""
        _, first = np.unique(self.test.labels, return_index=True)
        return first[:most]


def pictures_of_classifier(network: TrainedNetwork, answers: Answers, classes: Classes) -> Pictures:
    """The pictures of a classifier; of one under attack where that was measured."""
    reliability = draw_reliability(classes.calibration)
    if network.manifest.kind != "image":
        of_images = ("first_layer", "feature_maps", "mistakes", "saliency")
        missing = dict.fromkeys(of_images, "its rows are no images")
        return {**missing, "regions": _regions(network), "reliability": reliability}
    attacked = {"attacks": draw_attacks(classes.robustness)} if classes.robustness else {}
    return {
        "first_layer": _first_layer(network),
        "feature_maps": _feature_maps(network),
        "mistakes": _mistakes(network, answers),
        "saliency": _saliency(network, answers),
        "reliability": reliability,
        **attacked,
    }


def pictures_of_reconstruction(
    network: TrainedNetwork, own: Redrawn, other: Redrawn | None, found: Reconstruction
) -> Pictures:
    """The pictures of a reconstruction, and of its errors on images of another data set."""
    groups = {f"{network.manifest.dataset} ({len(own.errors):,} rows)": own.errors}
    title = f"Mean {found.mean_error:.5f}"
    if other and found.outliers:
        groups[f"{found.outliers.dataset} ({len(other.errors):,} rows)"] = other.errors
        title += f", area under the curve between the two {found.outliers.auc:.4f}"
    return {
        "first_layer": _first_layer(network),
        "feature_maps": _feature_maps(network),
        "reconstructions": _reconstructions(network, own),
        "errors": draw_errors(groups, title),
        **dict.fromkeys(("mistakes", "reliability", "saliency"), "no class is answered"),
    }


class FirstWeights(NamedTuple):
    """The weights of the first layer that has some."""

    values: npt.NDArray[np.float32]
    """Of units that look at a patch of an image, or at all of it, [units, height, width, channels].
    Of a recurrent layer those from one row of an image, [gates × units, width × channels]."""
    gates: tuple[str, ...] = ()
    """Of a recurrent layer."""


def first_weights(graph: Graph, row: tuple[int, ...]) -> FirstWeights | None:
    """The first weights, if they can be drawn; `row` is the image's (H, W, C)."""
    first = _first(graph)
    match first:
        case nn.Conv2d():
            return FirstWeights(_array(first.weight.permute(0, 2, 3, 1)))
        case nn.Linear() if first.in_features == np.prod(row):
            height, width, channels = row
            flat = first.weight.unflatten(1, (channels, height, width))
            return FirstWeights(_array(flat.permute(0, 2, 3, 1)))
        case nn.LSTM() | nn.GRU():
            return FirstWeights(_array(first.get_parameter("weight_ih_l0")), GATES[type(first)])
    return None


def feature_maps(graph: Graph, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32] | None:
    """The planes after the first convolution and its activation, float32 [planes, height, width].

    `image` is one row, [H, W, C]. None for a network that does not begin with a convolution.
    """
    first = _first(graph)
    if not isinstance(first, nn.Conv2d):
        return None
    seen: list[Tensor] = []

    def keep(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen.append(output.clone())  # the next layer may overwrite it

    hooks = [
        layer.register_forward_hook(keep)
        for layer in graph.network.modules()
        if layer is first or isinstance(layer, ACTIVATIONS)
    ]
    with torch.inference_mode():
        graph(graph.tensor(image[None]))
    for hook in hooks:
        hook.remove()
    return _array(seen[:2][-1][0])


def saliency(graph: Graph, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """How much each pixel moves the logit of the class that is answered, float32 [rows, H, W].

    The largest absolute derivative of its channels, as in Simonyan, Vedaldi and Zisserman, "Deep
    inside convolutional networks", 2013.
    """
    values = graph.values(graph.tensor(images)).requires_grad_()
    output = graph.network(graph.inputs(values))
    # Of a single logit both classes' derivatives differ by their sign alone.
    (gradient,) = torch.autograd.grad(output.amax(dim=1).sum(), values)
    return _array(gradient.abs().amax(dim=1))


def _first_layer(network: TrainedNetwork) -> Figure | str:
    found = first_weights(network.graph, network.row)
    if found is None:
        return "the first layer neither convolves nor takes an image or its rows"
    return draw_gates(*found) if found.gates else draw_units(found.values)


def _feature_maps(network: TrainedNetwork) -> Figure | str:
    image = np.array(network.test.inputs[0])
    planes = feature_maps(network.graph, image)
    if planes is None:
        return "the network does not begin with a convolution"
    return draw_planes(image, network.largest, planes)


def _mistakes(network: TrainedNetwork, answers: Answers) -> Figure | str:
    confident, costly = most_confident(answers), worst(answers)
    if not len(confident):
        return f"all {len(answers.labels):,} test rows are answered rightly"
    orders = {"most confident": confident}
    if set(costly.tolist()) != set(confident.tolist()):
        orders["largest loss"] = costly
    labels, predicted, sure = network.labels, answers.predicted, answers.probabilities.max(axis=1)
    drawn = []
    for name, rows in orders.items():
        notes = [
            f"{labels[answers.labels[row]]}\n→ {labels[predicted[row]]} {sure[row]:.1%}"
            for row in rows
        ]
        drawn.append((name, network.test.inputs[rows], notes))
    return draw_mistakes(drawn, network.largest)


def _saliency(network: TrainedNetwork, answers: Answers) -> Figure:
    rows = network.one_of_each(FEW)
    images = network.test.inputs[rows]
    notes = [network.labels[answered] for answered in answers.predicted[rows]]
    return draw_saliency(images, network.largest, saliency(network.graph, images), notes)


def _reconstructions(network: TrainedNetwork, own: Redrawn) -> Figure:
    largest = np.argsort(-own.errors, kind="stable")[:WORST]
    rows = np.concatenate([network.one_of_each(DRAWN), largest])
    notes = [f"{network.labels[network.test.labels[row]]}\n{own.errors[row]:.4f}" for row in rows]
    images = network.test.inputs[rows]
    return draw_reconstructions(images, network.largest, own.reconstructions[rows], notes)


def _regions(network: TrainedNetwork) -> Figure | str:
    if network.row != (2,):
        return "a plane shows two features, no more and no fewer"
    low, high = network.test.inputs.min(axis=0), network.test.inputs.max(axis=0)
    margin = MARGIN * np.maximum(high - low, 1e-6)
    across, up = np.linspace(low - margin, high + margin, SIDE, dtype=np.float32).T
    places = np.stack(np.meshgrid(across, up), axis=-1)
    with torch.inference_mode():
        asked = network.graph.tensor(places.reshape(-1, 2))
        probabilities = network.graph(asked)[1].numpy().reshape(SIDE, SIDE, -1)
    return draw_regions((across, up), probabilities, network.test, network.manifest.labels)


def _first(graph: Graph) -> nn.Module | None:
    """The first layer of a kind that can be drawn."""
    return next((layer for layer in graph.network.modules() if isinstance(layer, FIRST)), None)


def _array(values: Tensor) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = values.detach().float().cpu().numpy()
    return found


@mpl.rc_context(STYLE)
def draw_units(weights: npt.NDArray[np.float32]) -> Figure:
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
    figure.suptitle(f"{len(shown)} of {len(weights)} units", x=0.01, ha="left", fontsize=SMALL + 1)
    return figure


@mpl.rc_context(STYLE | {"axes.grid": False})
def draw_gates(weights: npt.NDArray[np.float32], names: Sequence[str]) -> Figure:
    """Draw the weights of a recurrent layer from a row of pixels, float32 [gates × units, pixels].

    Red is above 0 and blue below.
    """
    reach = max(float(np.abs(weights).max()), 1e-12)
    figure = Figure(figsize=(8, 1.4 * len(names)), layout="constrained")
    grid = np.atleast_1d(figure.subplots(len(names), 1, sharex=True))
    for axes, name, part in zip(grid, names, np.split(weights, len(names)), strict=True):
        drawn = axes.imshow(
            part.T, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="none", aspect="auto"
        )
        axes.set_title(name)
        axes.set_ylabel("pixel of a row")
    grid[-1].set_xlabel("unit")
    figure.colorbar(drawn, ax=list(grid), label="weight", shrink=0.8)
    return figure


@mpl.rc_context(STYLE)
def draw_planes(image: Array, largest: float, planes: npt.NDArray[np.float32]) -> Figure:
    """Draw an image, [H, W, C], and the planes that a layer makes of it, [planes, H', W'].

    All planes share one scale, from black, their least value, to white.
    """
    shown = planes[:MOST_TILES]
    figure, grid = _grid(-(-len(shown) // COLUMNS), COLUMNS + 1, size=0.9)
    _pixels(grid[0, 0], image, largest, "the row")
    low, high = float(shown.min()), float(shown.max())
    for axes, plane in zip(grid[:, 1:].flat, shown, strict=False):
        _show(axes, plane, cmap="gray", vmin=low, vmax=high)
    figure.suptitle(f"{len(shown)} of {len(planes)} planes", x=0.01, ha="left", fontsize=SMALL + 1)
    return figure


@mpl.rc_context(STYLE)
def draw_mistakes(orders: Sequence[tuple[str, Array, Sequence[str]]], largest: float) -> Figure:
    """Draw wrong answers: of each order its name, the images, and a note of two lines for each."""
    columns = max(len(images) for _, images, _ in orders)
    figure, grid = _grid(len(orders), columns, size=1.15, above=0.36 * len(orders))
    for line, (name, images, notes) in zip(grid, orders, strict=True):
        for axes, image, note in zip(line, images, notes, strict=False):
            _pixels(axes, image, largest, note)
        _name(line[0], name)
    return figure


@mpl.rc_context(STYLE)
def draw_saliency(images: Array, largest: float, found: Array, notes: Sequence[str]) -> Figure:
    """Draw images, [rows, H, W, C], with how much each of their pixels counts, [rows, H, W].

    Each row has a scale of its own, from black, nothing, to bright, its largest value.
    """
    figure, grid = _grid(2, len(images), size=1.15, above=0.2)
    for number, (above, below) in enumerate(grid.T):
        _pixels(above, images[number], largest, notes[number])
        reach = max(float(found[number].max()), 1e-12)
        _show(below, found[number], cmap="inferno", vmin=0, vmax=reach)
    _name(grid[0, 0], "row")
    _name(grid[1, 0], "saliency")
    return figure


@mpl.rc_context(STYLE)
def draw_reconstructions(
    images: Array, largest: float, drawn: Array, notes: Sequence[str]
) -> Figure:
    """Draw images, uint8 [rows, H, W, C], above what was made of them, float32, 0 to 1.

    Below lies the mean squared error of each pixel, of all rows on one scale.
    """
    errors = np.square(images / 255 - drawn).mean(axis=3)
    reach = max(float(errors.max()), 1e-12)
    figure, grid = _grid(3, len(images), size=0.95, above=0.36)
    for number, (above, middle, below) in enumerate(grid.T):
        _pixels(above, images[number], largest, notes[number])
        _pixels(middle, drawn[number] * 255, largest)
        _show(below, errors[number], cmap="inferno", vmin=0, vmax=reach)
    for line, name in zip(grid, ("row", "drawn again", "error"), strict=True):
        _name(line[0], name)
    return figure


@mpl.rc_context(STYLE)
def draw_regions(
    grid: tuple[Array, Array], probabilities: Array, test: Split, classes: Sequence[str]
) -> Figure:
    """Draw what is answered all over a plane, and the rows of `test`, [rows, 2], in it.

    `grid` are the places along both axes, `probabilities` [y, x, classes] the answers there. The
    surer the answer, the deeper its colour.
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
        own = test.inputs[:MOST_ROWS][test.labels[:MOST_ROWS] == number]
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
    tight = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    figure = Figure(figsize=inches, layout=tight)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    return figure, grid


def _pixels(axes: Axes, image: Array, largest: float, note: str = "") -> None:
    """Show raw values, [H, W, C], from 0 to `largest`, below a note."""
    axes.set_title(note, fontsize=SMALL, loc="center", fontweight="normal")
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
