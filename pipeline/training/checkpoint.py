"""Where an interrupted training goes on: one safetensors file per experiment, never a pickle.

The file carries a fingerprint of the settings and the data; one that belongs to another training
is ignored, so that a changed experiment starts clean.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from serving.files import write_bytes

State = Mapping[str, Tensor]
TENSOR = "tensor of this file"
"""The key of what stands for a tensor in JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything that the next epoch depends on."""

    fingerprint: str
    history: list[dict[str, Any]]
    """One entry per epoch that is done."""
    run_id: str | None
    """The MLflow run that records this training."""
    model: State
    best: State
    """The weights of the best epoch so far."""
    average: State
    """The moving average of the weights; empty where none is kept."""
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint, whole or not at all."""
    tensors: dict[str, Tensor] = {}

    def put_aside(tensor: Tensor) -> dict[str, str]:
        """What stands for a tensor in the JSON of all else, which keeps numbers exactly."""
        name = str(len(tensors))
        tensors[name] = tensor.contiguous().cpu()
        return {TENSOR: name}

    kept = {one.name: getattr(checkpoint, one.name) for one in fields(checkpoint)}
    header = {"ferry": json.dumps(kept, default=put_aside)}
    write_bytes(path, safetensors.torch.save(tensors, header))


def read(path: Path) -> bytes:
    """The bytes of a checkpoint; none where there is no file."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def metadata(content: bytes) -> Mapping[str, str]:
    """What the header of a safetensors file, a JSON text behind its length, says beside tensors."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    found: Mapping[str, str] = header["__metadata__"]
    return found


def load(content: bytes, fingerprint: str) -> Checkpoint | None:
    """Make a checkpoint of its bytes; None where they are none, or another training's."""
    try:
        tensors = safetensors.torch.load(content)
        kept = json.loads(
            metadata(content)["ferry"],
            object_hook=lambda found: tensors[found[TENSOR]] if TENSOR in found else found,
        )
        state = kept["optimizer"]["state"]
        kept["optimizer"]["state"] = {int(index): values for index, values in state.items()}
        checkpoint = Checkpoint(**kept)
    except (KeyError, ValueError, TypeError, safetensors.SafetensorError):
        return None
    return checkpoint if checkpoint.fingerprint == fingerprint else None
