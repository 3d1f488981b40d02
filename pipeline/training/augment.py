"""Random changes of a whole batch of images at once, on its device: shift, turn, size, side, gap.

All draws are taken on the CPU beforehand, so that no step waits for a GPU.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config.experiment import AugmentConfig

DRAWS = 7
"""Of an image: shift down and right, turn, size, side, and the middle of what is blanked."""


def draw(rows: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw what changes each of `rows` images: float32 [rows, 7] from 0 to 1, on the CPU.

    The same seed gives the same changes on every device. Where nothing is to change no draw is
    taken, and the result is [rows, 0].
    """
    return torch.rand(rows, DRAWS if _changes(config) else 0, generator=generator)


def augment(planes: Tensor, config: AugmentConfig, draws: Tensor) -> Tensor:
    """Change each image in its own random way; what comes in from outside is 0, as is a gap.

    `planes` is raw float32 [batch, C, H, W] and so is the result. `draws` is float32 [batch, 7], as
    `draw` makes it, on the device of the planes.
    """
    if not _changes(config):
        return planes
    if config.rotate or config.scale:
        planes = _transform(planes, config, draws)
    elif config.translate or config.flip:
        planes = _move(planes, config, draws)
    if config.cutout:
        planes = _blank(planes, config.cutout, draws)
    return planes


def _changes(config: AugmentConfig) -> bool:
    return bool(config.translate or config.rotate or config.scale or config.flip or config.cutout)


def _shifts(config: AugmentConfig, draws: Tensor) -> Tensor:
    """Whole pixels down and right, each as likely as the others: float32 [2, batch]."""
    return (draws[:, :2].T * (2 * config.translate + 1)).floor() - config.translate


def _mirrored(config: AugmentConfig, draws: Tensor) -> Tensor:
    return draws[:, 4] < (0.5 if config.flip else 0.0)


def _move(planes: Tensor, config: AugmentConfig, draws: Tensor) -> Tensor:
    """Shift by whole pixels and mirror: on a CPU several times as fast as sampling along a grid."""
    batch, channels, height, width = planes.shape
    edge, device = config.translate, planes.device
    padded = functional.pad(planes.permute(0, 2, 3, 1), (0, 0, edge, edge, edge, edge))
    down, right = _shifts(config, draws).long()
    columns = torch.arange(width, device=device)
    columns = torch.where(_mirrored(config, draws)[:, None], columns.flip(0), columns)
    columns = columns + (edge - right)[:, None]
    rows = torch.arange(height, device=device) + (edge - down)[:, None]
    images = torch.arange(batch, device=device)[:, None, None]
    lines = images * (height + 2 * edge) + rows[:, :, None]
    pixels = lines * (width + 2 * edge) + columns[:, None, :]
    moved = padded.reshape(-1, channels).index_select(0, pixels.flatten())
    return moved.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _transform(planes: Tensor, config: AugmentConfig, draws: Tensor) -> Tensor:
    """Sample along a grid that is shifted, turned, stretched and mirrored."""
    _, _, height, width = planes.shape
    maps = _affine_maps(planes.shape, config, draws)[..., None, None]
    x, y = (_middles(side, planes.device) for side in (width, height))
    # Twice as fast as `affine_grid`, which multiplies matrices.
    grid = torch.addcmul(maps[:, :, 1] * y[:, None] + maps[:, :, 2], maps[:, :, 0], x)
    return functional.grid_sample(planes, grid.permute(0, 2, 3, 1), align_corners=False)


def _affine_maps(shape: torch.Size, config: AugmentConfig, draws: Tensor) -> Tensor:
    """Affine maps [batch, 2, 3] in the units of `grid_sample`, in which an image spans 2."""
    _, _, height, width = shape
    turn, size = (draws[:, 2:4].T * 2 - 1).unbind()
    turn = turn * math.radians(config.rotate)
    zoom = 1 + size * config.scale
    cosine, sine = zoom * turn.cos(), zoom * turn.sin()
    side = torch.where(_mirrored(config, draws), -1.0, 1.0)
    down, right = _shifts(config, draws)
    top = torch.stack([side * cosine, -sine * height / width, -right * 2 / width], dim=1)
    bottom = torch.stack([side * sine * width / height, cosine, -down * 2 / height], dim=1)
    return torch.stack([top, bottom], dim=1)


def _middles(side: int, device: torch.device) -> Tensor:
    """Where the middles of the pixels along one side are, from -1 to 1."""
    return (torch.arange(side, device=device) * 2 + 1) / side - 1


def _blank(planes: Tensor, side: int, draws: Tensor) -> Tensor:
    """Set a square to 0, whose middle is any pixel: what of it is outside blanks nothing."""
    height, width = planes.shape[2:]
    rows = _outside(height, side, draws[:, 5])
    columns = _outside(width, side, draws[:, 6])
    return planes * (rows[:, :, None] | columns[:, None, :])[:, None]


def _outside(length: int, side: int, drawn: Tensor) -> Tensor:
    """Which pixels of an axis the square leaves: bool [batch, length]."""
    start = (drawn * length).floor() - side // 2
    offset = torch.arange(length, device=drawn.device) - start[:, None]
    return (offset < 0) | (offset >= side)
