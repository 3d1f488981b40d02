"""The one graph that is trained, exported and served: raw rows in, answer out.

Preprocessing and post-processing are parts of it, so that no caller can do them differently. The
end of a graph is its head, one for each loss: it turns the logits or planes of the network into
answers, and computes the loss.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline import models
from pipeline.config.experiment import Experiment, Loss
from pipeline.errors import ConfigError
from pipeline.models import Shape
from pipeline.models.parts.vocabulary import Vocabulary
from pipeline.records import check_recorded
from pipeline.records.ready import DatasetManifest, Kind
from serving.errors import IntegrityError, one_line
from serving.files import dump_json, parse_json

BRIGHTEST = 255.0
"""The largest value of a pixel."""
SETTINGS = "ferry"
"""The key in the header of a file of weights; a single one, for several have no order."""


class CrossEntropy:
    """One logit per class: `logits` and their softmax, `probabilities`, both [batch, classes]."""

    outputs = ("logits", "probabilities")
    """The names of what the graph answers."""
    unit = "cross-entropy, nats"
    """Of the loss, for figures."""

    def width(self, classes: int) -> int:
        """How many values a row the network must give: one per class."""
        return classes

    def answers(self, output: Tensor, _inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The graph's outputs, of the network's output and of the standardised inputs."""
        return output, output.softmax(dim=1)

    def loss(
        self, output: Tensor, _inputs: Tensor, labels: Tensor, smoothing: float = 0.0
    ) -> Tensor:
        """Mean cross-entropy of a batch in nats, a scalar; `labels` are int64 [batch]."""
        return functional.cross_entropy(output, labels, label_smoothing=smoothing)

    def distillation(self, output: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """How far the student's probabilities are from the teacher's, both softened; a scalar.

        `taught` are the teacher's logits, [batch, classes]. The Kullback-Leibler divergence times
        the temperature squared, with which its gradients keep their size (Hinton, Vinyals and Dean,
        "Distilling the knowledge in a neural network", 2015).
        """
        student, teacher = ((one.float() / temperature).log_softmax(1) for one in (output, taught))
        divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return divergence * temperature**2

    def predicted(self, output: Tensor) -> Tensor:
        """The class of each row, int64 [batch]: that with the largest logit."""
        return output.argmax(1)


class BinaryCrossEntropy:
    """One logit for the second of two classes: `logits` [batch, 1], `probabilities` [batch, 2]."""

    outputs = ("logits", "probabilities")
    unit = "cross-entropy, nats"

    def width(self, _classes: int) -> int:
        """A single value."""
        return 1

    def answers(self, output: Tensor, _inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 [batch, 1], and both classes' probabilities float32 [batch, 2]."""
        # Not 1 - p, which would be 0 where the logit is large.
        return output, torch.cat([-output, output], dim=1).sigmoid()

    def loss(
        self, output: Tensor, _inputs: Tensor, labels: Tensor, smoothing: float = 0.0
    ) -> Tensor:
        """Mean binary cross-entropy in nats."""
        targets = labels.to(output.dtype) * (1 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(output.squeeze(1), targets)

    def distillation(self, output: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """The same of two classes, whose logits [batch, 1] are those of the second one."""
        output, taught = (functional.pad(one, (1, 0)) for one in (output, taught))
        return CrossEntropy().distillation(output, taught, temperature)

    def predicted(self, output: Tensor) -> Tensor:
        """1 where the logit is above 0."""
        return (output.squeeze(1) > 0).long()


class MeanSquaredError:
    """The rows themselves again: `reconstruction` [batch, H, W, C] and `error` [batch]."""

    outputs = ("reconstruction", "error")
    unit = "mean squared error"

    def width(self, _classes: int) -> int:
        """0: the rows' shape says it."""
        return 0

    def answers(self, output: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels 0 to 1, float32 [batch, H, W, C], and each row's mean squared error [batch]."""
        return output.permute(0, 2, 3, 1), (output - inputs).square().mean(dim=(1, 2, 3))

    def loss(
        self, output: Tensor, inputs: Tensor, _labels: Tensor, _smoothing: float = 0.0
    ) -> Tensor:
        """Mean squared error on pixels from 0 to 1."""
        return functional.mse_loss(output, inputs)

    def predicted(self, _output: Tensor) -> None:
        """No class."""


class Regression(nn.Module):
    """The targets of each row in their own units: `prediction` [batch, targets].

    The network gives them in deviations from their means, so that none outweighs the others.
    """

    outputs = ("prediction",)
    unit = "mean squared error, of targets in standard deviations"
    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Take the mean and the standard deviation of each target, which the weights keep."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def width(self, _classes: int) -> int:
        """One value a target."""
        return len(self.mean)

    def answers(self, output: Tensor, _inputs: Tensor) -> tuple[Tensor]:
        """The targets, float32 [batch, targets]."""
        return (output * self.std + self.mean,)

    def loss(
        self, output: Tensor, _inputs: Tensor, labels: Tensor, _smoothing: float = 0.0
    ) -> Tensor:
        """Mean squared error in deviations, 1 for the mean alone; float32 [batch, targets]."""
        return functional.mse_loss(output.float(), (labels - self.mean) / self.std)

    def predicted(self, _output: Tensor) -> None:
        """No class."""


Distillable = CrossEntropy | BinaryCrossEntropy
"""The heads whose logits a student can learn from a teacher."""
Head = CrossEntropy | BinaryCrossEntropy | MeanSquaredError | Regression
"""What the graph does with the output of its network."""


class Graph(nn.Module):
    """A network between the standardisation of its inputs and the head of its loss."""

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, kind: Kind, head: Head, width: int = 0) -> None:
        """Standardise nothing yet: see `standardise`."""
        super().__init__()
        self.network = network
        self.kind = kind
        self.head = head
        self.width = width
        """Values that the network gives for each row; 0 for the shape of the row itself."""
        self.vocabulary = Vocabulary((), 1)

    def standardise(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Shift and scale each channel or feature; `mean` and `std` are in raw units."""
        axes = (-1, 1, 1) if self.kind == "image" else (-1,)
        self.register_buffer("mean", torch.tensor(mean).view(axes))
        self.register_buffer("scale", 1 / torch.tensor(std).view(axes))

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
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
        return as_tensor(rows)

    @torch.inference_mode()
    def answer(self, rows: npt.NDArray[Any], batch_size: int) -> tuple[Tensor, ...]:
        """Answer raw rows as the data set keeps them, batch by batch."""
        parts = [
            self(self.tensor(rows[start : start + batch_size]))
            for start in range(0, len(rows), batch_size)
        ]
        return tuple(torch.cat(output) for output in zip(*parts, strict=True))

    def values(self, rows: Tensor) -> Tensor:
        """Raw values: of images float32 [batch, C, H, W], channels last in memory."""
        return rows.permute(0, 3, 1, 2).float() if self.kind == "image" else rows

    def inputs(self, values: Tensor) -> Tensor:
        """What the network takes: standardised values, or ids of words as they are."""
        return values if self.kind == "text" else (values - self.mean) * self.scale


def as_tensor(rows: npt.NDArray[Any]) -> Tensor:
    """The same rows, copied only where torch could not write to them, as in a mapped file."""
    return torch.from_numpy(np.require(rows, requirements=["C", "W"]))


def build_graph(experiment: Experiment, manifest: DatasetManifest) -> Graph:
    """Make the experiment's untrained graph for the data set that `manifest` describes."""
    head = head_of(experiment.train.loss, manifest)
    shape = Shape.of(manifest, head.width(len(manifest.labels)))
    where = f"experiments.{experiment.name}.model"
    network = models.build(experiment.model, shape, where=where)
    graph = Graph(network, manifest.kind, head, shape.outputs)
    if manifest.kind == "text":
        graph.vocabulary = Vocabulary.of(manifest.vocabulary, network)
    elif graph.width == 0:
        graph.standardise((0.0,) * shape.channels, (BRIGHTEST,) * shape.channels)
    else:
        graph.standardise(manifest.mean, manifest.std)
    return graph


def settings_of_weights(experiment: Experiment) -> dict[str, object]:
    """What makes a graph of weights, by each setting's path below the experiment."""
    model = experiment.model
    settings = {f"model.{key}": value for key, value in model.settings.items()}
    found = {"model.name": model.name, **settings, "train.loss": experiment.train.loss}
    return dict(parse_json(dump_json(found).encode(), "settings"))  # as they are read back


def save_weights(state: dict[str, Tensor], experiment: Experiment) -> bytes:
    """The bytes of a file of weights, which says what graph they are of."""
    return safetensors.torch.save(state, {SETTINGS: dump_json(settings_of_weights(experiment))})


def check_answers(graph: Graph, rows: Tensor, *, where: str) -> None:
    """Let a network answer some rows, and refuse one that cannot, or answers something else.

    `rows` are as `Graph.tensor` makes them and `where` is the path of the model's section, for the
    ConfigError.
    """
    was_training = graph.training
    try:
        with torch.no_grad():
            inputs = graph.eval().inputs(graph.values(rows))
            output = graph.network(inputs)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        taken = f"{str(rows.dtype).removeprefix('torch.')} {list(rows.shape[1:])}"
        raise ConfigError(
            f"{where}: the network cannot take rows of {taken}: {one_line(error, 200)}"
        ) from error
    graph.train(was_training)
    width = graph.width
    wanted = inputs.shape[1:] if width == 0 else (width,)
    if tuple(output.shape[1:]) != tuple(wanted):
        raise ConfigError(
            f"{where}: the network must give {list(wanted)} for each row, it gives "
            f"{list(output.shape[1:])}"
        )


def load_graph(weights: Path, experiment: Experiment, manifest: DatasetManifest) -> Graph:
    """Read trained weights into the experiment's graph, in evaluation mode on the CPU.

    Raises MissingInputError without the file and IntegrityError for weights of another model, or of
    the same with other settings, whose shapes may agree.
    """
    again = f"ferry train {experiment.name}"
    check_recorded(weights, f"train@{experiment.name}")
    graph = build_graph(experiment, manifest)
    try:
        _check_settings(weights, experiment)
        graph.load_state_dict(safetensors.torch.load_file(weights))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise IntegrityError(
            f"{weights} does not hold the weights of {experiment.name}: {one_line(error)}; "
            f"`{again}` makes it anew"
        ) from error
    return graph.eval()


def _check_settings(weights: Path, experiment: Experiment) -> None:
    """Refuse weights that say that they are of another graph: `ferry train --set` makes such."""
    with safetensors.safe_open(weights, framework="pt") as file:
        said = (file.metadata() or {}).get(SETTINGS)
    wanted = settings_of_weights(experiment)
    trained = parse_json(said.encode(), str(weights)) if said else wanted
    for key in {**trained, **wanted}:
        if trained.get(key) != wanted.get(key):
            raise IntegrityError(
                f"{weights} was trained with {key} {trained.get(key)}, params.yaml says "
                f"{wanted.get(key)}: write the first there, or `ferry train {experiment.name}` "
                f"trains with the second"
            )


def head_of(loss: Loss, manifest: DatasetManifest | None = None) -> Head:
    """The head that is trained with this loss; that of a regression for a data set with targets."""
    if manifest and manifest.targets:
        return Regression(manifest.target_mean, manifest.target_std)
    heads: dict[Loss, Head] = {
        "cross_entropy": CrossEntropy(),
        "binary_cross_entropy": BinaryCrossEntropy(),
        "mean_squared_error": MeanSquaredError(),
    }
    return heads[loss]
