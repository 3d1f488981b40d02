"""How MLflow opens a model of ferry's: this file travels with it and needs nothing of ferry.

An ONNX file runs on the CPU, as its `MLmodel` says. A `.pt2` file is PyTorch's exported program,
which MLflow opens only if it holds no pickle. Both take and give arrays by name.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# ONNX Runtime reports its use by default; whoever wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def _load_pyfunc(path: str) -> Any:
    """What MLflow calls `predict` of, for the file at `path`."""
    if path.endswith(".pt2"):
        return ExportedProgram(Path(path).parents[1])
    import mlflow.onnx

    return mlflow.onnx._load_pyfunc(path)  # noqa: SLF001 - the name by which MLflow calls a loader


class ExportedProgram:
    """PyTorch's exported program with one input, whose outputs have the names of the signature."""

    def __init__(self, folder: Path) -> None:
        """Open the model in `folder`, where its `MLmodel` lies."""
        import mlflow.pytorch
        from mlflow.models import Model

        self._module = mlflow.pytorch.load_model(str(folder))
        self._outputs = Model.load(str(folder)).signature.outputs.input_names()

    def predict(self, data: Mapping[str, Any], params: object = None) -> dict[str, Any]:  # noqa: ARG002 - MLflow passes it
        """Answer rows, given by the name of the input, with arrays by the names of the outputs."""
        import numpy as np
        import torch

        (rows,) = data.values()
        with torch.inference_mode():
            # PyTorch wants memory that it may write to.
            found = self._module(torch.from_numpy(np.require(rows, requirements=["C", "W"])))
        return {name: one.numpy() for name, one in zip(self._outputs, found, strict=True)}
