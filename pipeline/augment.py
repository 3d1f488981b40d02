"""Random shifts, turns and changes of size for a whole batch of images at once, on its device."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import AugmentConfig

__all__ = ["augment"]


def augment(planes: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Move each image by its own random affine map; what comes in from outside is 0.

    `planes` is raw float32 [batch, C, H, W] and so is the result. The draws come from `generator`,
    which lives on the CPU so that the same seed gives the same maps on every device.
    """
    if not (config.translate or config.rotate or config.scale):
        return planes
    maps = _random_maps(planes.shape, config, generator).to(planes.device)
    grid = functional.affine_grid(maps, list(planes.shape), align_corners=False)
    return functional.grid_sample(planes, grid, align_corners=False)


def _random_maps(shape: torch.Size, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Affine maps [batch, 2, 3] in the units of `affine_grid`, in which an image spans 2."""
    batch, _, height, width = shape
    angle, size, down, right = torch.rand(4, batch, generator=generator) * 2 - 1
    angle = angle * math.radians(config.rotate)
    zoom = 1 + size * config.scale
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    shift_x, shift_y = (
        (offset * config.translate).round() * 2 / side
        for offset, side in ((right, width), (down, height))
    )
    top = torch.stack([cosine, -sine * height / width, shift_x], dim=1)
    bottom = torch.stack([sine * width / height, cosine, shift_y], dim=1)
    return torch.stack([top, bottom], dim=1)
