"""The one graph that is trained, exported and served: raw rows in, answer out.

Preprocessing and post-processing are parts of it, so that no caller can do them differently.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline import models
from pipeline.config.experiment import Experiment
from pipeline.models import Shape
from pipeline.network.losses import Head, head_of
from pipeline.network.vocabulary import Vocabulary
from pipeline.records.ready import DatasetManifest, Kind
from serving.errors import IntegrityError
from serving.files import require

BRIGHTEST = 255.0
"""The largest value of a pixel."""


class Graph(nn.Module):
    """A network between the standardisation of its inputs and the head of its loss."""

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, kind: Kind, head: Head) -> None:
        """Standardise nothing yet: see `standardise`."""
        super().__init__()
        self.network = network
        self.kind = kind
        self.head = head
        self.vocabulary = Vocabulary((), 1)

    def standardise(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Shift and scale each channel or feature; `mean` and `std` are in raw units."""
        axes = (-1, 1, 1) if self.kind == "image" else (-1,)
        self.register_buffer("mean", torch.tensor(mean).view(axes))
        self.register_buffer("scale", 1 / torch.tensor(std).view(axes))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Answer rows as `tensor` makes them.

        Images are uint8 [batch, H, W, C], table rows float32 [batch, features] and sentences ids
        of words, int64 [batch, length]. The answers are those of the head.
        """
        inputs = self.inputs(self.values(rows))
        return self.head.answers(self.network(inputs), inputs)

    def tensor(self, rows: npt.NDArray[Any]) -> Tensor:
        """What `forward` takes, of raw rows as the data set keeps them."""
        if self.kind == "text":
            return torch.from_numpy(self.vocabulary.encode(rows))
        # Copied only where torch could not write to it, as in a memory-mapped file.
        return torch.from_numpy(np.require(rows, requirements=["C", "W"]))

    @torch.inference_mode()
    def answer(self, rows: npt.NDArray[Any], batch_size: int) -> tuple[Tensor, Tensor]:
        """Answer raw rows as the data set keeps them, batch by batch."""
        parts = [
            self(self.tensor(rows[start : start + batch_size]))
            for start in range(0, len(rows), batch_size)
        ]
        first, second = (torch.cat(output) for output in zip(*parts, strict=True))
        return first, second

    def values(self, rows: Tensor) -> Tensor:
        """Raw values: of images float32 [batch, C, H, W], channels last in memory."""
        match self.kind:
            case "image":
                return rows.permute(0, 3, 1, 2).float()
            case "table":
                return rows
            case "text":
                return rows

    def inputs(self, values: Tensor) -> Tensor:
        """What the network takes: standardised values, or ids of words as they are."""
        return values if self.kind == "text" else (values - self.mean) * self.scale


def build_graph(experiment: Experiment, manifest: DatasetManifest) -> Graph:
    """Make the experiment's untrained graph for the data set that `manifest` describes."""
    head = head_of(experiment.train.loss)
    shape = Shape(kind=manifest.kind, row=_row(manifest), outputs=head.width(len(manifest.labels)))
    where = f"experiments.{experiment.name}.model"
    network = models.build(experiment.model, shape, where=where)
    graph = Graph(network, manifest.kind, head)
    if manifest.kind == "text":
        graph.vocabulary = Vocabulary.of(manifest.vocabulary, network)
    elif head.width(len(manifest.labels)) == 0:
        graph.standardise((0.0,) * shape.channels, (BRIGHTEST,) * shape.channels)
    else:
        graph.standardise(manifest.mean, manifest.std)
    return graph


def load_graph(weights: Path, experiment: Experiment, manifest: DatasetManifest) -> Graph:
    """Read trained weights into the experiment's graph, in evaluation mode on the CPU.

    Raises MissingInputError without the file and IntegrityError for weights of another model.
    """
    again = f"ferry train {experiment.name}"
    require(weights, again)
    graph = build_graph(experiment, manifest)
    try:
        graph.load_state_dict(safetensors.torch.load_file(weights))
    except (RuntimeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise IntegrityError(
            f"{weights} does not hold the weights of {experiment.name}: {reason}; "
            f"`{again}` makes it anew"
        ) from error
    return graph.eval()


def _row(manifest: DatasetManifest) -> tuple[int, ...]:
    """The shape of one row as the network takes it: channels come first."""
    axes = manifest.arrays["train_inputs.npy"].shape[1:]
    return (axes[-1], *axes[:-1]) if axes else ()
