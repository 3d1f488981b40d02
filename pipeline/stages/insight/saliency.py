"""What a network looks for and at: its first weights, its first planes and its saliency."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.network.graph import Graph

FIRST = (nn.Conv2d, nn.Linear, nn.LSTM, nn.GRU)
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.Sigmoid, nn.Tanh)
GATES = {nn.LSTM: ("input", "forget", "cell", "output"), nn.GRU: ("reset", "update", "new")}
"""In the order in which torch keeps their weights."""


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


def _first(graph: Graph) -> nn.Module | None:
    """The first layer of a kind that can be drawn."""
    return next((layer for layer in graph.network.modules() if isinstance(layer, FIRST)), None)


def _array(values: Tensor) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = values.detach().float().cpu().numpy()
    return found
