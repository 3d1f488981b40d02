"""Set a training up: its data, its first weights, its loop, or where a checkpoint goes on.

`ferry train` runs it to its end, a trial of `ferry tune` as far as it is worth it. The first
weights are drawn at random, copied from another experiment (`init_from`), or computed from training
rows by networks that look at some of them first.
"""

import ctypes
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pipeline.config.experiment import Experiment
from pipeline.errors import ConfigError
from pipeline.models.parts.graph import Graph, build_graph, check_answers
from pipeline.records import read_recorded, ready
from pipeline.records.ready import DatasetManifest
from pipeline.records.train import Teaching, Transfer
from pipeline.training import checkpoint, taught
from pipeline.training.batches import DeviceRows, resized
from pipeline.training.distributed import Team
from pipeline.training.loop import TrainingLoop
from serving.errors import IntegrityError
from serving.files import dump_json, sha256_of_bytes
from serving.runtime.cores import allowed_cores

ROWS = 5000
"""Training rows that a network may look at before it is trained."""
# Of mallopt(3), by their numbers in malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK = 2**30
LARGEST_KEPT = 2**31 - 1
"""Bytes, the largest `int`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTraining:
    """A loop that is ready to run, and where it comes from."""

    loop: TrainingLoop
    experiment: Experiment
    manifest: DatasetManifest
    fingerprint: str
    run_id: str | None
    """The MLflow run that an interrupted training began."""
    transfer: Transfer | None
    teaching: Teaching | None


def prepare(
    data: Path, weights: Path, experiment: Experiment, team: Team, *, state: bytes = b""
) -> PreparedTraining:
    """Everything up to the first epoch, or up to the one after the last of a checkpoint, `state`.

    Beside `weights`, the file to be written some day, lie those that the training begins with.
    """
    be_repeatable(team, experiment.train.seed)
    keep_freed_memory()
    manifest = ready.open_manifest(data)
    graph = build_graph(experiment, manifest).to(team.device)
    # Not kept: mapped rows that were read count as memory for as long as they are mapped.
    rows = DeviceRows(graph, ready.open_split(data, "train"), team.device)
    source = experiment.train.init_from
    begun = team.share(read_source(weights, source) if source and team.leads else b"")
    has_teacher = experiment.train.teacher is not None
    answers = team.share(
        taught.read(weights, experiment.name) if has_teacher and team.leads else b""
    )
    fingerprint = _fingerprint(experiment, manifest, team, begun, answers)
    found = checkpoint.load(team.share(state), fingerprint)
    if not found:
        initialise(graph, rows, experiment.train.seed)
    where, few = f"experiments.{experiment.name}", rows.inputs[:2]
    check_answers(graph, few, where=f"{where}.model")
    for side in experiment.train.sides:
        smaller = resized(graph.values(few), side).permute(0, 2, 3, 1)
        check_answers(graph, smaller, where=f"{where}.train.sides")
    taken = transfer(graph, begun, source=source, name=experiment.name) if source else None
    validation = DeviceRows(graph, ready.open_split(data, "validation"), team.device)
    logits, teaching = (
        taught.lessons(answers, experiment, ready.digest(manifest)) if answers else (None, None)
    )
    loop = TrainingLoop(graph, experiment, rows, validation, team, logits)
    if found:
        loop.restore(found)
    return PreparedTraining(
        loop=loop,
        experiment=experiment,
        manifest=manifest,
        fingerprint=fingerprint,
        run_id=found.run_id if found else None,
        transfer=taken,
        teaching=teaching,
    )


def initialise(graph: Graph, rows: DeviceRows, seed: int) -> None:
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

    Raises MissingInputError where that experiment is not trained, and IntegrityError for weights
    that are not those that its training wrote.
    """
    path = weights.parent.parent / experiment / weights.name
    return read_recorded(path, f"train@{experiment}")


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


def keep_freed_memory() -> bool:
    """Let this process keep the memory that one step frees for the next one; whether it can.

    Only glibc can. It gives a large block back to the kernel as soon as it is freed and asks for it
    again in the next step: on two cores a tenth of a training went into fresh pages that the kernel
    had to clear. The peak does not grow, for no more than that is kept.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    accepted = mallopt(MMAP_THRESHOLD, LARGEST_BLOCK), mallopt(TRIM_THRESHOLD, LARGEST_KEPT)
    return accepted == (1, 1)


def be_repeatable(team: Team, seed: int) -> None:
    """Seed everything, so that two runs on one machine give the same weights."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Only warned of on CUDA, where some operators have no deterministic form.
    torch.use_deterministic_algorithms(True, warn_only=team.device.type == "cuda")
    # No step reads what it did not write, and filling it first would cost a tenth of the time.
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False
    torch.set_num_threads(max(1, allowed_cores() // team.neighbours))
    torch.manual_seed(seed)


def _fingerprint(
    experiment: Experiment, manifest: DatasetManifest, team: Team, *begun_with: bytes
) -> str:
    """What a checkpoint must share with a training to be its own."""
    trained = {
        "epochs": experiment.epochs,
        "model": asdict(experiment.model),
        "train": asdict(experiment.train),
        "begun_with": [sha256_of_bytes(content) for content in begun_with],
        "data": ready.digest(manifest),
        "device": team.device.type,
        "processes": team.size,
        "torch": torch.__version__,
    }
    return sha256_of_bytes(dump_json(trained).encode())


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
