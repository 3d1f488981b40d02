"""An ONNX file behind MLflow's `pyfunc` as a baseline of a benchmark.

Run by `serving.measuring.subject`: python -m pipeline.stages.baselines.mlflow_baseline
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy.typing as npt

from pipeline.records.ready import open_split
from pipeline.stages.baselines.torch_model import batch_of
from pipeline.tracking.models import Pyfunc, open_pyfunc, save_pyfunc
from serving.errors import InputError
from serving.files import sha256_of_file
from serving.measuring.subject import Share, Started, serve
from serving.measuring.timing import NS_PER_MS, Call, digits
from serving.runtime.session import open_session
from serving.runtime.settings import SessionSettings

Array = npt.NDArray[Any]


class MlflowBaseline:
    """What MLflow opens of one of the folders below `setup["saved"]`."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        """Keep what to open: see `setup_of`."""
        self.saved = Path(setup["saved"])
        self.model = Path(setup["model"])
        self.test = open_split(Path(setup["data"]), "test").inputs
        self.pyfunc: Pyfunc | None = None

    def start(self, settings: SessionSettings) -> Started:
        """Open the folder that was saved for this number of threads."""
        start = perf_counter_ns()
        self.pyfunc, proof = open_pyfunc(folder_for(self.saved, settings.threads))
        return Started(
            ready_ms=digits((perf_counter_ns() - start) / NS_PER_MS),
            sha256=sha256_of_file(self.model),
            file_bytes=self.model.stat().st_size,
            proof=proof,
            fixed_batch=None,
        )

    def call(self, batch_size: int) -> Call:
        """One batch through `predict`."""
        return functools.partial(self.answer, self.rows(batch_size))

    def answer(self, rows: Array) -> object:
        """Answer rows."""
        if self.pyfunc is None:
            raise InputError(f"{self.saved} was not started")
        return self.pyfunc(rows)

    def rows(self, count: int) -> Array:
        """The first rows of the test set, over and over again to fill a batch."""
        return batch_of(self.test, count)

    def share(self, _batch_size: int) -> Share | None:
        """Nothing: MLflow does not let ONNX Runtime profile."""
        return None

    def gpu_bytes(self) -> int | None:
        """Nothing: it runs on the CPU."""
        return None


def save_pyfuncs(saved: Path, model: Path, threads: Sequence[int]) -> None:
    """Save `model` below `saved` for each number of threads, and as MLflow does on its own."""
    session = open_session(model, threads=1)
    signature = (session.inputs, session.outputs)
    save_pyfunc(model, default_folder(saved), signature)
    for count in threads:
        save_pyfunc(model, folder_for(saved, count), signature, threads=count)


def setup_of(saved: Path, model: Path, data: Path) -> dict[str, str]:
    """What the baseline needs, as plain values.

    `saved` is where `save_pyfuncs` put what it made of `model`.
    """
    paths = {"saved": saved, "model": model, "data": data}
    return {name: str(path.absolute()) for name, path in paths.items()}


def folder_for(saved: Path, threads: int) -> Path:
    """Where the MLflow model for a number of threads lies."""
    return saved / f"threads-{threads}"


def default_folder(saved: Path) -> Path:
    """Where the MLflow model without a number of threads lies."""
    return saved / "plain"


def main() -> None:
    """Measure what the parent process asks for."""
    serve(MlflowBaseline)


if __name__ == "__main__":
    main()
