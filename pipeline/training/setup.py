"""A training that is set up and has not run yet: its loop, and what it begins with.

`ferry train` runs it to its end, a trial of `ferry tune` as far as it is worth it.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import ready
from pipeline.config import Experiment
from pipeline.graph import build_graph
from pipeline.ready import Manifest
from pipeline.records.train import Transfer
from pipeline.training import checkpoint
from pipeline.training.distributed import Team
from pipeline.training.evaluation import Rows
from pipeline.training.loop import Loop
from pipeline.training.memory import keep_freed_memory
from pipeline.training.start import initialise, read_source, transfer
from serving.cores import allowed_cores
from serving.files import dump_json, sha256_of_bytes

__all__ = ["Training", "prepare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A loop that is ready to run, and where it comes from."""

    loop: Loop
    experiment: Experiment
    manifest: Manifest
    fingerprint: str
    run_id: str | None
    """The MLflow run that an interrupted training began."""
    transfer: Transfer | None


def prepare(
    data: Path, weights: Path, experiment: Experiment, team: Team, *, state: bytes = b""
) -> Training:
    """Everything up to the first epoch, or up to the one after the last of a checkpoint, `state`.

    Beside `weights`, the file to be written some day, lie those that the training begins with.
    """
    _be_repeatable(team, experiment.train.seed)
    keep_freed_memory()
    manifest = ready.open_manifest(data)
    graph = build_graph(experiment, manifest).to(team.device)
    # Not kept: mapped rows that were read count as memory for as long as they are mapped.
    rows = Rows(graph, ready.open_split(data, "train"), team.device)
    source = experiment.train.init_from
    begun = team.share(read_source(weights, source) if source and team.leads else b"")
    fingerprint = _fingerprint(experiment, manifest, team, sha256_of_bytes(begun))
    found = checkpoint.load(team.share(state), fingerprint)
    if not found:
        initialise(graph, rows, experiment.train.seed)
    taken = transfer(graph, begun, source=source, name=experiment.name) if source else None
    validation = Rows(graph, ready.open_split(data, "validation"), team.device)
    loop = Loop(graph, experiment, rows, validation, team)
    if found:
        loop.restore(found)
    return Training(
        loop=loop,
        experiment=experiment,
        manifest=manifest,
        fingerprint=fingerprint,
        run_id=found.run_id if found else None,
        transfer=taken,
    )


def _be_repeatable(team: Team, seed: int) -> None:
    """Seed everything, so that two runs on one machine give the same weights."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Only warned of on CUDA, where some operators have no deterministic form.
    torch.use_deterministic_algorithms(True, warn_only=team.device.type == "cuda")
    # No step reads what it did not write, and filling it first would cost a tenth of the time.
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False
    torch.set_num_threads(max(1, allowed_cores() // team.neighbours))
    torch.manual_seed(seed)


def _fingerprint(experiment: Experiment, manifest: Manifest, team: Team, source_sha256: str) -> str:
    """What a checkpoint must share with a training to be its own."""
    trained = {
        "epochs": experiment.epochs,
        "model": asdict(experiment.model),
        "train": asdict(experiment.train),
        "source": source_sha256,
        "data": ready.digest(manifest),
        "device": team.device.type,
        "processes": team.size,
        "torch": torch.__version__,
    }
    return sha256_of_bytes(dump_json(trained).encode())
