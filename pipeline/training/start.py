"""The weights that a training begins with, where they are not merely drawn at random.

They come from another experiment (`init_from`), or from the training rows, for networks that look
at some of them first.
"""

from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pipeline.errors import ConfigError, IntegrityError
from pipeline.graph import Graph
from pipeline.records.train import Transfer
from pipeline.training.evaluation import Rows
from serving.files import require, sha256_of_bytes

__all__ = ["initialise", "read_source", "transfer"]

ROWS = 5000
"""Training rows that a network may look at before it is trained."""


def initialise(graph: Graph, rows: Rows, seed: int) -> None:
    """Let a network that has a method `initialise` set itself up on standardised training rows.

    It is given float32 [5000, C, H, W], or all rows where there are fewer; `seed` chooses them.
    """
    method = getattr(graph.network, "initialise", None)
    if method is None:
        return
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:ROWS]
    inputs, _ = next(rows.batches(order, ROWS))
    with torch.no_grad():
        method(graph.inputs(graph.values(inputs)))


def read_source(weights: Path, experiment: str) -> bytes:
    """The weights of another experiment, which lie beside `weights`, the ones to be written.

    Raises MissingInputError where that experiment is not trained.
    """
    path = weights.parent.parent / experiment / weights.name
    return require(path, f"ferry train {experiment}").read_bytes()


def transfer(graph: Graph, content: bytes, *, source: str, name: str) -> Transfer:
    """Copy the layers whose names and shapes are those of the experiment `source`.

    `content` are that experiment's weights. The standardisation stays that of the graph's own data.
    Raises ConfigError when no layer of experiment `name` fits.
    """
    found = _read(content, source)
    own = {key: value for key, value in graph.state_dict().items() if key.startswith("network.")}
    layers: dict[str, bool] = {}
    for key, value in own.items():
        fits = key in found and found[key].shape == value.shape
        layers[_layer(key)] = layers.get(_layer(key), True) and fits
    taken = tuple(layer for layer, fits in layers.items() if fits)
    left = tuple(layer for layer, fits in layers.items() if not fits)
    if not taken:
        raise ConfigError(
            f"experiments.{name}.train.init_from: no layer of {name} has the name and shapes of "
            f"one of {source}; choose an experiment with a model like {name}'s, or null"
        )
    for key, value in own.items():
        if _layer(key) in taken:
            value.copy_(found[key])
    return Transfer(
        experiment=source,
        weights_sha256=sha256_of_bytes(content),
        layers_taken=taken,
        layers_left=left,
    )


def _read(content: bytes, source: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise IntegrityError(
            f"the weights of {source} are no safetensors file: {error}; `ferry train {source}` "
            f"makes them anew"
        ) from error


def _layer(key: str) -> str:
    return key.removeprefix("network.").rpartition(".")[0]
