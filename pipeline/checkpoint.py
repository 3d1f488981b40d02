"""Where an interrupted training goes on: one safetensors file per experiment, never a pickle.

The file carries a fingerprint of the settings and the data; one that belongs to another training
is ignored, so that a changed experiment starts clean.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from serving.files import write_bytes

__all__ = ["Checkpoint", "load", "save"]

State = Mapping[str, Tensor]


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
    tensors = {
        **_prefixed("model", checkpoint.model),
        **_prefixed("best", checkpoint.best),
        **_prefixed("average", checkpoint.average),
        **_prefixed("optimizer", _flat(checkpoint.optimizer["state"])),
    }
    header = {
        "fingerprint": checkpoint.fingerprint,
        "history": checkpoint.history,
        "run_id": checkpoint.run_id,
        "param_groups": checkpoint.optimizer["param_groups"],
        "scheduler": checkpoint.scheduler,
    }
    write_bytes(path, safetensors.torch.save(tensors, {"ferry": json.dumps(header)}))


def load(path: Path, fingerprint: str) -> Checkpoint | None:
    """Read the checkpoint of this very training; None if there is none, or it is another's."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["ferry"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, KeyError, ValueError, safetensors.SafetensorError):
        return None
    if header["fingerprint"] != fingerprint:
        return None
    state = _nested(_part("optimizer", tensors))
    return Checkpoint(
        fingerprint=fingerprint,
        history=header["history"],
        run_id=header["run_id"],
        model=_part("model", tensors),
        best=_part("best", tensors),
        average=_part("average", tensors),
        optimizer={"state": state, "param_groups": header["param_groups"]},
        scheduler=header["scheduler"],
    )


def _prefixed(prefix: str, tensors: State) -> dict[str, Tensor]:
    return {f"{prefix}/{key}": value.contiguous().cpu() for key, value in tensors.items()}


def _part(prefix: str, tensors: State) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {key.removeprefix(start): tensors[key] for key in tensors if key.startswith(start)}


def _flat(state: Mapping[int, Mapping[str, Any]]) -> dict[str, Tensor]:
    """An optimizer's state per parameter as named tensors: `3/exp_avg`."""
    return {
        f"{index}/{key}": torch.as_tensor(value)
        for index, values in state.items()
        for key, value in values.items()
        if value is not None
    }


def _nested(tensors: State) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    return state
