"""The pictures of `ferry evaluate`: which there are, and what each shows of a trained network.

Each picture is a figure, or the reason why there is none. What is drawn is measured here: the first
weights, the first planes, and how much each pixel counts (saliency). `charts` draws it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pipeline.network.graph import Graph
from pipeline.records.evaluate import Classes, Reconstruction
from pipeline.records.ready import DatasetManifest, Split
from pipeline.stages.insight import charts
from pipeline.stages.insight.quality import Answers, Redrawn, most_confident, worst

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
GATES = {nn.LSTM: ("input", "forget", "cell", "output"), nn.GRU: ("reset", "update", "new")}
"""In the order in which torch keeps their weights."""


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
        labels = self.manifest.labels
        return tuple(
            name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…" for name in labels
        )

    def one_of_each(self, most: int) -> npt.NDArray[np.int64]:
        """The index of the first test row of each of the first classes."""
        _, first = np.unique(self.test.labels, return_index=True)
        return first[:most]


def pictures_of_classifier(network: TrainedNetwork, answers: Answers, classes: Classes) -> Pictures:
    """The pictures of a classifier; of one under attack where that was measured."""
    reliability = charts.reliability(classes.calibration)
    if network.manifest.kind != "image":
        return {
            **dict.fromkeys(
                ("first_layer", "feature_maps", "mistakes", "saliency"), "its rows are no images"
            ),
            "regions": _regions(network),
            "reliability": reliability,
        }
    attacked = {"attacks": charts.attacks(classes.robustness)} if classes.robustness else {}
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
        "errors": charts.errors(groups, title),
        **dict.fromkeys(("mistakes", "reliability", "saliency"), "no class is answered"),
    }


@dataclass(frozen=True, slots=True)
class Tiles:
    """The weights of units that each look at a patch of an image, or at all of it."""

    weights: npt.NDArray[np.float32]
    """[units, height, width, channels]."""


@dataclass(frozen=True, slots=True)
class Gates:
    """The weights of a recurrent layer from one row of an image."""

    weights: npt.NDArray[np.float32]
    """[gates × units, width × channels]."""
    names: tuple[str, ...]


def first_weights(graph: Graph, row: tuple[int, ...]) -> Tiles | Gates | None:
    """The weights of the first layer that has some; `row` is the image's (H, W, C).

    None where they are none of those that can be drawn.
    """
    first = _first(graph)
    match first:
        case nn.Conv2d():
            return Tiles(_array(first.weight.permute(0, 2, 3, 1)))
        case nn.Linear() if first.in_features == np.prod(row):
            height, width, channels = row
            flat = first.weight.unflatten(1, (channels, height, width))
            return Tiles(_array(flat.permute(0, 2, 3, 1)))
        case nn.LSTM() | nn.GRU():
            weights = first.get_parameter("weight_ih_l0")
            return Gates(_array(weights), GATES[type(first)])
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

    layers = [
        one for one in graph.network.modules() if one is first or isinstance(one, ACTIVATIONS)
    ]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
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
    match first_weights(network.graph, network.row):
        case Tiles(weights):
            return charts.first_layer(weights)
        case Gates(weights, names):
            return charts.first_layer_gates(weights, names)
    return "the first layer neither convolves nor takes an image or its rows"


def _feature_maps(network: TrainedNetwork) -> Figure | str:
    image = np.array(network.test.inputs[0])
    planes = feature_maps(network.graph, image)
    if planes is None:
        return "the network does not begin with a convolution"
    return charts.feature_maps(image, network.largest, planes)


def _mistakes(network: TrainedNetwork, answers: Answers) -> Figure | str:
    confident, costly = most_confident(answers), worst(answers)
    if not len(confident):
        return f"all {len(answers.labels):,} test rows are answered rightly"
    orders = [("most confident", confident)]
    if set(costly.tolist()) != set(confident.tolist()):
        orders.append(("largest loss", costly))
    drawn = [
        (name, np.array(network.test.inputs[rows]), _notes(network, answers, rows))
        for name, rows in orders
    ]
    return charts.mistakes(drawn, network.largest)


def _notes(network: TrainedNetwork, answers: Answers, rows: npt.NDArray[np.int64]) -> list[str]:
    labels, predicted = network.labels, answers.predicted
    return [
        f"{labels[answers.labels[row]]}\n→ {labels[predicted[row]]} "
        f"{answers.probabilities[row].max():.1%}"
        for row in rows
    ]


def _saliency(network: TrainedNetwork, answers: Answers) -> Figure:
    rows = network.one_of_each(FEW)
    images = np.array(network.test.inputs[rows])
    notes = [network.labels[answers.predicted[row]] for row in rows]
    found = saliency(network.graph, images)
    return charts.saliency(images, network.largest, found, notes)


def _reconstructions(network: TrainedNetwork, own: Redrawn) -> Figure:
    largest = np.argsort(-own.errors, kind="stable")[:WORST]
    rows = np.concatenate([network.one_of_each(DRAWN), largest])
    notes = [f"{network.labels[network.test.labels[row]]}\n{own.errors[row]:.4f}" for row in rows]
    images = np.array(network.test.inputs[rows])
    return charts.reconstructions(images, own.reconstructions[rows], notes, network.largest)


def _regions(network: TrainedNetwork) -> Figure | str:
    if network.row != (2,):
        return "a plane shows two features, no more and no fewer"
    rows = np.array(network.test.inputs)
    low, high = rows.min(axis=0), rows.max(axis=0)
    margin = MARGIN * np.maximum(high - low, 1e-6)
    across, up = np.linspace(low - margin, high + margin, SIDE, dtype=np.float32).T
    places = np.stack(np.meshgrid(across, up), axis=-1)
    with torch.inference_mode():
        asked = network.graph.tensor(places.reshape(-1, 2))
        probabilities = network.graph(asked)[1].numpy().reshape(SIDE, SIDE, -1)
    labels = network.manifest.labels
    return charts.regions((across, up), probabilities, rows, labels, network.test.labels)


def _first(graph: Graph) -> nn.Module | None:
    """The first layer of a kind that can be drawn."""
    return next((layer for layer in graph.network.modules() if isinstance(layer, FIRST)), None)


def _array(values: Tensor) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = values.detach().float().cpu().numpy()
    return found
