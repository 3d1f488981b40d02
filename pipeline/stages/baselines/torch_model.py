"""An experiment's trained network as PyTorch runs it: eager, with channels last, or compiled.

It also cuts batches of any size from the test set. `first_answer` reads this and nothing of the
benchmark itself, whose imports would count in a cold start.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config.experiment import Experiment
from pipeline.config.reading import read_section
from pipeline.network.graph import Graph, load_graph
from pipeline.records.ready import open_manifest
from serving.errors import ModelError

# In this process, or its helpers would take the cores that are measured on.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

Array = npt.NDArray[Any]
Mode = Literal["eager", "channels_last", "compile"]
Device = Literal["cpu", "cuda"]
MOST_CHARACTERS = 300
"""Of an error: a compiler's fill pages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchModel:
    """A network that is ready to answer rows."""

    graph: Graph
    run: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
    """The graph, or what the compiler made of it."""
    device: Device

    def answer(self, rows: Array) -> object:
        """Answer raw rows as the data set keeps them; what a GPU answers is waited for.

        Raises ModelError when PyTorch, or its compiler, cannot.
        """
        try:
            with torch.inference_mode():
                tensor = self.graph.tensor(rows)
                if self.device == "cpu":
                    return self.run(tensor)
                return tuple(part.cpu() for part in self.run(tensor.to(self.device)))
        except RuntimeError as error:
            raise ModelError(f"PyTorch cannot run it: {_first_line(error)}") from error


def setup_of(
    experiment: Experiment, weights: Path, data: Path, mode: str, device: str = "cpu"
) -> dict[str, Any]:
    """What `open_torch` needs in another process, as plain values."""
    return {
        "experiment": asdict(experiment),
        "weights": str(weights.absolute()),
        "data": str(data.absolute()),
        "mode": mode,
        "device": device,
    }


def open_torch(setup: Mapping[str, Any]) -> TorchModel:
    """Load the weights into the experiment's graph and make it run as `setup` says.

    Raises ModelError where that way makes no difference or the device is not there.
    """
    experiment = read_section(Experiment, setup["experiment"], "experiment")
    graph = load_graph(Path(setup["weights"]), experiment, open_manifest(Path(setup["data"])))
    mode, device = setup["mode"], setup["device"]
    if mode not in get_args(Mode):
        raise ModelError(f"PyTorch runs {', '.join(get_args(Mode))}, not {mode!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("PyTorch finds no CUDA device on this machine")
    if mode == "channels_last":
        wide = [weight for weight in graph.parameters() if weight.dim() == 4]
        if not wide:
            raise ModelError(f"{experiment.name} has no convolution whose channels could be last")
        for weight in wide:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    graph = graph.to(device)
    # One program for all batch sizes: it is compiled once, and once more for a batch of one.
    run = torch.compile(graph, dynamic=True) if mode == "compile" else graph
    return TorchModel(graph=graph, run=run, device=device)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:MOST_CHARACTERS]


def batch_of(rows: Array, count: int) -> Array:
    """The first `count` of `rows`, over and over again to fill the batch, in memory."""
    return np.resize(np.array(rows[:count]), (count, *rows.shape[1:]))


def first_row(data: Path) -> Array:
    """One row of the test set in `data`, without reading the others: a cold start waits for it."""
    rows: Array = np.load(data / "test_inputs.npy", mmap_mode="r", allow_pickle=False)
    return batch_of(rows, 1)
