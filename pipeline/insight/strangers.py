"""How well a reconstruction draws its images again, and how well its error tells strange ones.

The images of another data set are made fitting: grey where the network takes one channel, and
resized to the sides that it takes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.graph import Graph

__all__ = ["Drawn", "auc", "draw", "fitting", "quantiles"]

BATCH = 200
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue: recommendation ITU-R BT.601."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Images drawn again."""

    reconstructions: npt.NDArray[np.float32]
    """[rows, H, W, C], 0 to 1."""
    errors: npt.NDArray[np.float64]
    """Mean squared error of each row, [rows]."""


def draw(graph: Graph, images: npt.NDArray[np.uint8]) -> Drawn:
    """Let a network draw images again, uint8 [rows, H, W, C]."""
    planes, errors = graph.answer(images, BATCH)
    return Drawn(planes.numpy(), errors.double().numpy())


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


def auc(own: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """The chance that one of `other` is larger than one of `own`; a tie counts half.

    It is the area under the receiver operating characteristic (Hanley and McNeil, 1982).
    """
    ordered = np.sort(own)
    below = np.searchsorted(ordered, other, side="left")
    up_to = np.searchsorted(ordered, other, side="right")
    return float((below + up_to).mean() / 2 / len(own))


def _channels(planes: Tensor, channels: int) -> Tensor:
    """Grey, or the one plane that there is as often as it is wanted."""
    if planes.shape[1] == channels:
        return planes
    if planes.shape[1] == len(LUMA):
        planes = (planes * torch.tensor(LUMA).view(1, -1, 1, 1)).sum(dim=1, keepdim=True)
    return planes[:, :1].expand(-1, channels, -1, -1)
