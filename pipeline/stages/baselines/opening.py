"""What a benchmark compares with: PyTorch in three ways, and MLflow's own way of serving.

`python -m pipeline.stages.baselines.opening SETUP` opens one, answers a row and says so. That is
its cold start, in which each import counts. So this module imports nothing of the benchmark, and
the packages of a baseline only where that one is opened.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from serving.errors import ModelError

if TYPE_CHECKING:
    import torch

    from pipeline.config.experiment import Experiment
    from serving.runtime.session import ProviderProof

Array = npt.NDArray[Any]
Answer = Callable[[Array], object]
"""Answers raw rows as the data set keeps them, or raises ModelError."""
Opened: TypeAlias = "tuple[Answer, ProviderProof | None]"
"""What answers, and where ONNX Runtime runs it; None for PyTorch."""
MOST_CHARACTERS = 300
"""Of an error: a compiler's fill pages."""


def torch_setup(experiment: "Experiment", weights: Path, data: Path, mode: str) -> dict[str, Any]:
    """What to open, as plain values: PyTorch "eager", with "channels_last", or with "compile"."""
    return {"experiment": asdict(experiment), "mode": mode} | _paths(model=weights, data=data)


def pyfunc_setup(saved: Path, model: Path, data: Path) -> dict[str, Any]:
    """What to open, as plain values: what `save_pyfuncs` made of `model` below `saved`."""
    return _paths(saved=saved, model=model, data=data)


def save_pyfuncs(saved: Path, model: Path, threads: Sequence[int]) -> None:
    """Save `model` below `saved` for each number of threads, and as MLflow does on its own."""
    from pipeline.tracking.models import save_pyfunc
    from serving.runtime.session import open_session

    session = open_session(model, threads=1)
    signature = (session.inputs, session.outputs)
    for count in (None, *threads):
        save_pyfunc(model, _pyfunc_folder(saved, count), signature, threads=count)


def opener(setup: Mapping[str, Any]) -> Callable[[int | None], Opened]:
    """Import what a baseline needs, and return what opens it with a number of threads.

    None leaves the threads to the library. What is returned raises ModelError where the baseline
    cannot be opened, and for channels last without a convolution.
    """
    if "saved" in setup:
        from pipeline.tracking.models import open_pyfunc
        from pipeline.tracking.store import load_mlflow

        load_mlflow()
        return lambda threads: open_pyfunc(_pyfunc_folder(Path(setup["saved"]), threads))
    return _torch_opener(setup)


def batch_of(rows: Array, count: int) -> Array:
    """The first `count` of `rows`, over and over again to fill the batch, in memory."""
    return np.resize(np.array(rows[:count]), (count, *rows.shape[1:]))


def first_row(data: Path) -> Array:
    """One row of the test set in `data`, without reading the others: a cold start waits for it."""
    rows: Array = np.load(data / "test_inputs.npy", mmap_mode="r", allow_pickle=False)
    return batch_of(rows, 1)


def _torch_opener(setup: Mapping[str, Any]) -> Callable[[int | None], Opened]:
    # In this process, or its helpers would take the cores that are measured on.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    import torch

    from pipeline.config.experiment import Experiment
    from pipeline.config.reading import read_section
    from pipeline.models.parts.graph import load_graph
    from pipeline.records.ready import open_manifest

    def opened(threads: int | None) -> Opened:
        if threads:
            torch.set_num_threads(threads)
        experiment = read_section(Experiment, setup["experiment"], "experiment")
        graph = load_graph(Path(setup["model"]), experiment, open_manifest(Path(setup["data"])))
        if setup["mode"] == "channels_last":
            put_channels_last(graph, experiment.name)
        # One program for all batch sizes: it is compiled once, and once more for a batch of one.
        run = torch.compile(graph, dynamic=True) if setup["mode"] == "compile" else graph

        def answer(rows: Array) -> object:
            try:
                with torch.inference_mode():
                    return run(graph.tensor(rows))
            except RuntimeError as error:
                raise ModelError(f"PyTorch cannot run it: {_first_line(error)}") from error

        return answer, None

    return opened


def put_channels_last(network: "torch.nn.Module", name: str) -> None:
    """Lay the weights of convolutions out for it; ModelError for a network that has none."""
    import torch

    wide = [weight for weight in network.parameters() if weight.dim() == 4]
    if not wide:
        raise ModelError(f"{name} has no convolution whose channels could be last")
    for weight in wide:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:MOST_CHARACTERS]


def _pyfunc_folder(saved: Path, threads: int | None) -> Path:
    return saved / ("plain" if threads is None else f"threads-{threads}")


def _paths(**paths: Path) -> dict[str, str]:
    return {name: str(path.absolute()) for name, path in paths.items()}


def main() -> None:
    """Open what the setup says, answer one row, print a line."""
    setup = json.loads(sys.argv[1])
    answer, _ = opener(setup)(None)
    answer(first_row(Path(setup["data"])))
    sys.stdout.write("answered\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
