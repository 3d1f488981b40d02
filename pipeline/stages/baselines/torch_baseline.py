"""PyTorch as a baseline of a benchmark.

Run by `serving.measuring.subject`: python -m pipeline.stages.baselines.torch_baseline
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy.typing as npt
import torch

from pipeline.records.ready import open_split
from pipeline.stages.baselines.torch_model import TorchModel, batch_of, open_torch
from serving.errors import InputError
from serving.files import sha256_of_file
from serving.measuring.meters import own_gpu_bytes
from serving.measuring.subject import Share, Started, serve
from serving.measuring.timing import NS_PER_MS, Call, digits
from serving.runtime.settings import SessionSettings

Array = npt.NDArray[Any]


class TorchBaseline:
    """An experiment's weights, in one of the modes of `pipeline.stages.baselines.torch_model`."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        """Keep what to open: see `pipeline.stages.baselines.torch_model.setup_of`."""
        self.setup = setup
        self.weights = Path(setup["weights"])
        self.test = open_split(Path(setup["data"]), "test").inputs
        self.model: TorchModel | None = None

    def start(self, settings: SessionSettings) -> Started:
        """Load the weights; of the settings PyTorch knows the threads."""
        torch.set_num_threads(settings.threads)
        start = perf_counter_ns()
        self.model = open_torch(self.setup)
        return Started(
            ready_ms=digits((perf_counter_ns() - start) / NS_PER_MS),
            sha256=sha256_of_file(self.weights),
            file_bytes=self.weights.stat().st_size,
            proof=None,
            fixed_batch=None,
        )

    def call(self, batch_size: int) -> Call:
        """One batch, from the rows to tensors of answers."""
        return functools.partial(self._ready().answer, self.rows(batch_size))

    def answer(self, rows: Array) -> object:
        """Answer rows."""
        return self._ready().answer(rows)

    def rows(self, count: int) -> Array:
        """The first rows of the test set, over and over again to fill a batch."""
        return batch_of(self.test, count)

    def share(self, _batch_size: int) -> Share | None:
        """Nothing: ONNX Runtime's profile does not cover it."""
        return None

    def gpu_bytes(self) -> int | None:
        """Memory of a GPU that this process holds."""
        return own_gpu_bytes() if self.setup["device"] == "cuda" else None

    def _ready(self) -> TorchModel:
        if self.model is None:
            raise InputError(f"{self.weights} was not started")
        return self.model


def main() -> None:
    """Measure what the parent process asks for."""
    serve(TorchBaseline)


if __name__ == "__main__":
    main()
