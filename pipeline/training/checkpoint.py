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
from torch import Tensor

from serving.files import write_bytes

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


@dataclass(frozen=True, slots=True)
class _Moments:
    """The state of an optimizer as what a file can hold, by name."""

    tensors: dict[str, Tensor]
    numbers: dict[str, float]
    """Exact, as a tensor would not keep them."""
    lengths: dict[str, int]
    """Of lists of tensors."""


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint, whole or not at all."""
    moments = _flat(checkpoint.optimizer["state"])
    tensors = {
        **_prefixed("model", checkpoint.model),
        **_prefixed("best", checkpoint.best),
        **_prefixed("average", checkpoint.average),
        **_prefixed("optimizer", moments.tensors),
    }
    header = {
        "fingerprint": checkpoint.fingerprint,
        "history": checkpoint.history,
        "run_id": checkpoint.run_id,
        "numbers": moments.numbers,
        "lengths": moments.lengths,
        "param_groups": checkpoint.optimizer["param_groups"],
        "scheduler": checkpoint.scheduler,
    }
    write_bytes(path, safetensors.torch.save(tensors, {"ferry": json.dumps(header)}))


def read(path: Path) -> bytes:
    """The bytes of a checkpoint; none where there is no file."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def load(content: bytes, fingerprint: str) -> Checkpoint | None:
    """Make a checkpoint of its bytes; None where they are none, or another training's."""
    try:
        header = _header(content)
        tensors = safetensors.torch.load(content)
    except (KeyError, ValueError, TypeError, safetensors.SafetensorError):
        return None
    if header["fingerprint"] != fingerprint:
        return None
    moments = _Moments(_part("optimizer", tensors), header["numbers"], header["lengths"])
    return Checkpoint(
        fingerprint=fingerprint,
        history=header["history"],
        run_id=header["run_id"],
        model=_part("model", tensors),
        best=_part("best", tensors),
        average=_part("average", tensors),
        optimizer={"state": _nested(moments), "param_groups": header["param_groups"]},
        scheduler=header["scheduler"],
    )


def _header(content: bytes) -> dict[str, Any]:
    """What was saved beside the tensors: safetensors begin with the length of a JSON header."""
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    own: dict[str, Any] = json.loads(header["__metadata__"]["ferry"])
    return own


def _prefixed(prefix: str, tensors: State) -> dict[str, Tensor]:
    return {f"{prefix}/{key}": value.contiguous().cpu() for key, value in tensors.items()}


def _part(prefix: str, tensors: State) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {key.removeprefix(start): tensors[key] for key in tensors if key.startswith(start)}


def _flat(state: Mapping[int, Mapping[str, Any]]) -> _Moments:
    """Name every value of an optimizer's state by its parameter and key: `3/exp_avg`."""
    moments = _Moments({}, {}, {})
    for index, values in state.items():
        for key, value in values.items():
            name = f"{index}/{key}"
            if isinstance(value, Tensor):
                moments.tensors[name] = value
            elif isinstance(value, list):
                # Lists that hold None are scratch, which the optimizer fills before it reads it.
                if all(isinstance(part, Tensor) for part in value):
                    moments.lengths[name] = len(value)
                    moments.tensors.update({f"{name}/{i}": part for i, part in enumerate(value)})
            elif value is not None:
                moments.numbers[name] = value
    return moments


def _nested(moments: _Moments) -> dict[int, dict[str, Any]]:
    tensors = dict(moments.tensors)
    lists = {
        name: [tensors.pop(f"{name}/{i}") for i in range(length)]
        for name, length in moments.lengths.items()
    }
    state: dict[int, dict[str, Any]] = {}
    for name, value in (*tensors.items(), *lists.items(), *moments.numbers.items()):
        index, key = name.split("/", 1)
        state.setdefault(int(index), {})[key] = value
    return state
