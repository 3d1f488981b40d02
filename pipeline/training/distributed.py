"""Several processes that train one model: `torchrun --nproc-per-node 2 -m pipeline.cli train E`.

Each takes its part of every global batch and all take the same step. The first one, the lead, alone
validates, tracks and writes. Without torchrun the team is one process, and nothing here costs time.

Batch normalisation sees the whole global batch on CUDA. On a CPU, where torch cannot gather it,
each process normalises its own part, and the running statistics that are kept are the lead's.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import ConfigError
from serving.errors import UsageError

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others: the lead validates and writes meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """The processes of one training, as one of them sees it."""

    device: torch.device
    """That this process computes on."""
    rank: int = 0
    size: int = 1
    neighbours: int = 1
    """Processes of the team on this machine."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that validates, tracks and writes."""
        return self.rank == 0

    def part(self, batch_size: int, *, where: str) -> slice:
        """This process's rows of a global batch.

        `where` is the path of the experiment in params.yaml, for the ConfigError that a batch size
        raises which the processes cannot share alike.
        """
        if batch_size % self.size:
            raise ConfigError(
                f"{where}.train.batch_size: {batch_size} rows cannot be shared alike by "
                f"{self.size} processes; choose a multiple of {self.size}"
            )
        rows = batch_size // self.size
        return slice(self.rank * rows, (self.rank + 1) * rows)

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network to call in training; its gradients are means over all processes."""
        if self.size == 1:
            return network
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return DistributedDataParallel(network, [self.device] if on_cuda else None)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def share(self, held: Any) -> Any:
        """What the lead holds, for every process; what the others hold does not count."""
        shared = [held]
        if self.size > 1:
            distributed.broadcast_object_list(shared, 0, device=self.device)
        return shared[0]


def choose_device(wanted: str) -> torch.device:
    """The device of "auto", "cpu" or "cuda"; UsageError for CUDA where there is none."""
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise UsageError("device cuda was asked for and torch finds none; `ferry doctor` says more")
    return torch.device("cuda" if has_cuda and wanted != "cpu" else "cpu")


@contextlib.contextmanager
def join(device: torch.device) -> Iterator[Team]:
    """Meet the other processes that torchrun started, and part from them at the end.

    On CUDA each process takes the GPU of its number on its machine. Raises UsageError where there
    are more processes than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team(device=device)
        return
    if device.type == "cuda":
        device = _own_gpu(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Team(
            rank=distributed.get_rank(),
            size=size,
            neighbours=int(os.environ["LOCAL_WORLD_SIZE"]),
            device=device,
        )
    finally:
        distributed.destroy_process_group()


def _own_gpu(number: int) -> torch.device:
    if number >= torch.cuda.device_count():
        raise UsageError(
            f"process {number + 1} of this machine finds {torch.cuda.device_count()} GPUs; start "
            f"as many processes as there are (--nproc-per-node)"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
