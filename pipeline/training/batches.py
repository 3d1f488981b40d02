"""Rows on the training device, batch by batch: how a graph does on them, and random changes.

A whole batch of images is changed at once: shift, turn, size, side, gap. All that is random is
drawn on the CPU beforehand, so that no step waits for a GPU.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config.experiment import AugmentConfig
from pipeline.models.parts.graph import Graph
from pipeline.models.parts.vocabulary import PADDING
from pipeline.records.ready import Split
from pipeline.records.train import TargetQuality

EVALUATION_BATCH = 250
"""Rows at once: few enough for the planes of a wide network to stay in the cache of a CPU."""
DRAWS = 7
"""Of an image: shift down and right, turn, size, side, and the middle of what is blanked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How a graph does on one split."""

    loss: float
    """Mean over the rows, without label smoothing."""
    accuracy: float | None
    """0 to 1; None where no class is predicted."""
    predicted: Tensor | None
    """int64 [rows], on the CPU; None where no class is predicted."""


class DeviceRows:
    """A split as tensors on the training device, as the graph takes them."""

    def __init__(self, graph: Graph, split: Split, device: torch.device) -> None:
        """Copy the memory-mapped rows: they are read once per epoch in random order."""
        inputs = graph.tensor(split.inputs)
        self.inputs = inputs.to(device)
        self.labels = torch.from_numpy(np.array(split.labels)).to(device)
        self.device = device
        self._lengths = _lengths(inputs) if graph.kind == "text" else None

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, order: Tensor, size: int, part: slice = slice(None)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and labels of `size` rows after the other, or of the `part` of each batch.

        `order` is int64 [rows], on the CPU. Sentences are cut behind the longest of their batch;
        its length is known on the CPU, so that no step waits for a GPU.
        """
        on_device = order.to(self.device, non_blocking=True)
        for start in range(0, len(order), size):
            rows = on_device[start : start + size][part]
            # 14 times as fast as to index by a tensor, on a CPU.
            inputs = self.inputs.index_select(0, rows)
            if self._lengths is not None:
                inputs = inputs[:, : int(self._lengths[order[start : start + size]].max())]
            yield inputs, self.labels.index_select(0, rows)


def evaluate(graph: Graph, rows: DeviceRows) -> Evaluation:
    """Loss and accuracy in full precision and in evaluation mode."""
    was_training = graph.training
    graph.eval()
    losses, predictions = [], []
    with torch.inference_mode():
        for batch, labels in rows.batches(torch.arange(len(rows)), EVALUATION_BATCH):
            inputs = graph.inputs(graph.values(batch))
            output = graph.network(inputs)
            losses.append(graph.head.loss(output, inputs, labels) * len(labels))
            predictions.append(graph.head.predicted(output))
    graph.train(was_training)
    classes = [prediction for prediction in predictions if prediction is not None]
    predicted = torch.cat(classes) if classes else None
    hits = None if predicted is None else float((predicted == rows.labels).sum())
    return Evaluation(
        loss=float(torch.stack(losses).sum()) / len(rows),
        accuracy=None if hits is None else hits / len(rows),
        predicted=None if predicted is None else predicted.cpu(),
    )


def target_qualities(
    graph: Graph, split: Split, names: tuple[str, ...]
) -> tuple[TargetQuality, ...]:
    """How well each target of a regression is predicted; the graph is on the CPU."""
    (answered,) = graph.eval().answer(split.inputs, EVALUATION_BATCH)
    actual = np.asarray(split.labels, np.float64)
    errors = answered.double().numpy() - actual
    squared, variance = np.square(errors).mean(axis=0), actual.var(axis=0)
    return tuple(
        TargetQuality(
            target=name,
            r2=1 - float(squared[index] / variance[index]) if variance[index] else None,
            mean_absolute_error=float(np.abs(errors[:, index]).mean()),
            mean_squared_error=float(squared[index]),
        )
        for index, name in enumerate(names)
    )


def _lengths(sentences: Tensor) -> Tensor:
    """Words of each sentence of ids, int64 [rows]; at least 1, for one of padding alone."""
    return (sentences != PADDING).sum(dim=1).clamp(min=1)


def draw(rows: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw what changes each of `rows` images: float32 [rows, 7] from 0 to 1, on the CPU.

    The same seed gives the same changes on every device. Where nothing is to change no draw is
    taken, and the result is [rows, 0].
    """
    return torch.rand(rows, DRAWS if _changes(config) else 0, generator=generator)


def view_draws(rows: int, config: AugmentConfig, view: int) -> Tensor:
    """What changes each training row in one of the views that a teacher answers, as `draw` does."""
    return draw(rows, config, torch.Generator().manual_seed(view))


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


def resized(planes: Tensor, side: int) -> Tensor:
    """Scale images so that their shorter side has so many pixels: [batch, C, H, W] to the same.

    Each new pixel is a mean of old ones around it, so that nothing finer than itself is left.
    """
    shape = [round(length * side / min(planes.shape[2:])) for length in planes.shape[2:]]
    scaled = functional.interpolate(planes, shape, mode="bilinear", antialias=True)
    return scaled.contiguous(memory_format=torch.channels_last)


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
