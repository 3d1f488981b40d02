"""Quantization-aware training, the last resort: train on with rounded weights and activations.

The forward pass rounds as the quantized model will, the backward pass lets gradients through as if
it had not (the straight-through estimator: Bengio, Léonard and Courville, 2013; Jacob et al.,
"Quantization and Training of Neural Networks", 2018). Weights and loop are the experiment's own.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from pipeline.config.experiment import Experiment
from pipeline.exporting import onnxmodel
from pipeline.exporting.exporter import to_onnx
from pipeline.models.parts.graph import Graph, load_graph
from pipeline.proof.overflow import SAFE
from pipeline.quantization.recipes import BLOCK, Recipe
from pipeline.records import ready
from pipeline.training import taught
from pipeline.training.batches import DeviceRows
from pipeline.training.distributed import Team
from pipeline.training.loop import TrainingLoop
from pipeline.training.setup import be_repeatable

logger = logging.getLogger(__name__)

LR_PART = 0.05
"""Of the training's own peak: the weights are nearly right already."""
MEMORY = 0.95
"""Decay per step of the ranges of activations."""
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def trained_again(
    original: onnx.ModelProto, weights: Path, data: Path, recipe: Recipe, *, experiment: Experiment
) -> onnx.ModelProto:
    """The experiment's model after training with a recipe's rounding, exported in float.

    `original` is the model of the trained `weights`, whose metadata it keeps; `data` is the
    preprocessed data set. The same inputs give the same bytes on a CPU.
    """
    manifest = ready.open_manifest(data)
    graph = load_graph(weights, experiment, manifest)
    logits: Tensor | None = None
    if experiment.train.teacher:
        answers = taught.read(weights, experiment.name)
        logits, _ = taught.lessons(answers, experiment, ready.digest(manifest))
    fine_tune(graph, data, recipe, experiment=experiment, logits=logits)
    example = ready.open_split(data, "train").inputs[:2]
    made = to_onnx(graph, np.array(example), experiment.export.opset)
    facts = {"qat_epochs": experiment.quantize.qat_epochs}
    onnxmodel.set_metadata(made, facts, original)
    return made


def fine_tune(
    graph: Graph,
    data: Path,
    recipe: Recipe,
    *,
    experiment: Experiment,
    logits: Tensor | None = None,
) -> None:
    """Train a graph on, rounded as `recipe` does, and leave it with the best epoch's weights.

    `logits` are those of its teacher, where it has one. The best epoch is that on validation, with
    all that is rounded; the graph itself is in float again afterwards, in evaluation mode on the
    CPU.
    """
    config = experiment.train
    on_cuda = torch.cuda.is_available() and config.device != "cpu"
    device = torch.device("cuda" if on_cuda else "cpu")
    team = Team(device=device)
    be_repeatable(team, config.seed)
    again = replace(
        experiment,
        epochs=experiment.quantize.qat_epochs,
        train=replace(
            config,
            lr=config.lr * LR_PART,
            sides=(),
            ema=0,
            early_stop=0,
            compile=False,
        ),
    )
    handles = rounding(graph, recipe)
    graph.to(device)
    loop = TrainingLoop(
        graph,
        again,
        DeviceRows(graph, ready.open_split(data, "train"), device),
        DeviceRows(graph, ready.open_split(data, "validation"), device),
        team,
        logits,
    )
    while not loop.ended:
        epoch = loop.run_epoch()
        logger.info(
            "%s, quantized, %d/%d: loss %.4f, validation loss %.4f",
            *(experiment.name, epoch.epoch, loop.epochs, epoch.loss, epoch.validation_loss),
        )
    graph.load_state_dict(loop.best)
    _in_float(graph, handles)
    graph.to("cpu").eval().requires_grad_(False)


def rounding(graph: nn.Module, recipe: Recipe) -> list[RemovableHandle]:
    """Round the weights of all convolutions and linear layers, and what goes into them.

    As `recipe` does: its bits, its scales, and activations where they are quantized at all. Returns
    the hooks that round activations.
    """
    handles = []
    for layer in list(graph.modules()):
        if not isinstance(layer, LAYERS):
            continue
        blocks = recipe.kind == "weights" and isinstance(layer, nn.Linear)
        axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        per_channel = recipe.static.per_channel if recipe.kind == "static" else True
        highest = 2 ** (recipe.bits - 1) - 1 if blocks else SAFE if recipe.reduced else 127
        rounded = _RoundedWeight(highest, axis if per_channel else None, blocks=blocks)
        parametrize.register_parametrization(layer, "weight", rounded)
        if recipe.kind == "static":
            hook = RoundedInput(signed=recipe.static.activation == "S8")
            handles.append(layer.register_forward_pre_hook(hook))
    return handles


def _in_float(graph: nn.Module, handles: Sequence[RemovableHandle]) -> None:
    """Take the rounding off, and keep the weights that were rounded."""
    for layer in list(graph.modules()):
        if isinstance(layer, LAYERS) and parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    for handle in handles:
        handle.remove()


class _RoundedWeight(nn.Module):
    """A weight in whole numbers around zero, with a scale per channel, per block or for all."""

    def __init__(self, highest: int, axis: int | None, *, blocks: bool) -> None:
        super().__init__()
        self.axis = axis
        self.blocks = blocks
        self.highest = highest

    def forward(self, weight: Tensor) -> Tensor:
        if self.blocks and weight.shape[1] % BLOCK == 0:
            return self._round(weight.reshape(-1, BLOCK), 0).view_as(weight)
        return self._round(weight, self.axis)

    def _round(self, weight: Tensor, axis: int | None) -> Tensor:
        size = weight.detach().abs()
        if axis is None:
            scale = float(size.max().clamp(min=1e-12)) / self.highest
            return torch.fake_quantize_per_tensor_affine(
                weight, scale, 0, -self.highest, self.highest
            )
        others = [number for number in range(weight.ndim) if number != axis]
        scales = size.amax(dim=others).clamp(min=1e-12) / self.highest
        zeros = torch.zeros(len(scales), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(
            weight, scales, zeros, axis, -self.highest, self.highest
        )


class RoundedInput:
    """Activations in 256 steps between the ends that they had in training of late: a hook."""

    def __init__(self, *, signed: bool) -> None:
        """Know no ends yet."""
        self.lowest = -128 if signed else 0
        self.low = self.high = torch.zeros(())

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        """What goes into a layer, rounded."""
        (values,) = inputs
        if layer.training:
            self._follow(values.detach())
        scale = ((self.high - self.low) / 255).clamp(min=1e-12)
        zero = (self.lowest - self.low / scale).round().clamp(self.lowest, self.lowest + 255)
        return torch.fake_quantize_per_tensor_affine(
            values, scale, zero.to(torch.int32), self.lowest, self.lowest + 255
        )

    def _follow(self, values: Tensor) -> None:
        # Zero is always among them, for it must be a whole number's: edges are padded with it.
        low, high = values.min().clamp(max=0), values.max().clamp(min=0)
        memory = MEMORY if float(self.high - self.low) > 0 else 0.0
        self.low = self.low * memory + low * (1 - memory)
        self.high = self.high * memory + high * (1 - memory)
