"""The one graph that is trained, exported and served: raw images in, logits and probabilities out.

Preprocessing and softmax are layers of it, so that no caller can do them differently.
"""

from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline import models
from pipeline.config import Experiment
from pipeline.errors import IntegrityError
from pipeline.ready import Manifest
from serving.files import require

__all__ = ["Classifier", "build_classifier", "load_classifier"]


class Classifier(nn.Module):
    """A network between the standardisation of its inputs and the softmax of its logits."""

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """`mean` and `std` are per channel, in raw units."""
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("scale", 1 / torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classify images.

        `images` is uint8 [batch, H, W, C]; returns float32 logits and probabilities, both
        [batch, classes].
        """
        logits = self.logits(self.planes(images))
        return logits, logits.softmax(dim=1)

    def planes(self, images: Tensor) -> Tensor:
        """Raw uint8 [batch, H, W, C] as raw float32 [batch, C, H, W], channels last in memory."""
        return images.permute(0, 3, 1, 2).float()

    def logits(self, planes: Tensor) -> Tensor:
        """Logits of raw float32 planes [batch, C, H, W]."""
        logits: Tensor = self.network((planes - self.mean) * self.scale)
        return logits


def build_classifier(experiment: Experiment, manifest: Manifest) -> Classifier:
    """Make the experiment's untrained classifier for the data set that `manifest` describes."""
    _, height, width, channels = manifest.arrays["train_inputs.npy"].shape
    shape = models.Shape(
        height=height, width=width, channels=channels, classes=len(manifest.labels)
    )
    where = f"experiments.{experiment.name}.model"
    network = models.build(experiment.model, shape, where=where)
    return Classifier(network, manifest.mean, manifest.std)


def load_classifier(weights: Path, experiment: Experiment, manifest: Manifest) -> Classifier:
    """Read trained weights into the experiment's classifier, in evaluation mode on the CPU.

    Raises MissingInputError without the file and IntegrityError for weights of another model.
    """
    again = f"ferry train {experiment.name}"
    require(weights, again)
    classifier = build_classifier(experiment, manifest)
    try:
        classifier.load_state_dict(safetensors.torch.load_file(weights))
    except (RuntimeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise IntegrityError(
            f"{weights} does not hold the weights of {experiment.name}: {reason}; "
            f"`{again}` makes it anew"
        ) from error
    return classifier.eval()
