"""What a run holds beside numbers: its models and its data set.

What a model takes and gives, in MLflow's words.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.records.ready import DatasetManifest, Split, digest
from serving.machine.environment import runtime_wheels
from serving.runtime.tensors import TensorInfo

if TYPE_CHECKING:
    from torch import nn

    from pipeline.datasets import Dataset


Signature = tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]
"""The inputs and the outputs of a model."""


def mlflow_signature(signature: Signature) -> Any:
    """The `ModelSignature` of inputs and outputs, named tensors whose free axes are -1."""
    from mlflow.models import ModelSignature

    inputs, outputs = signature
    return ModelSignature(inputs=_schema(inputs), outputs=_schema(outputs))


def _schema(tensors: tuple[TensorInfo, ...]) -> Any:
    from mlflow.types import Schema, TensorSpec

    return Schema(
        [
            TensorSpec(
                np.dtype(tensor.dtype),
                tuple(size if isinstance(size, int) else -1 for size in tensor.shape),
                tensor.name,
            )
            for tensor in tensors
        ]
    )


def model_requirements() -> list[str]:
    """What an ONNX model needs where it is served.

    MLflow would require plain onnxruntime, which must not be installed beside onnxruntime-gpu.
    """
    import onnx

    wheels = [f"{wheel}=={version}" for wheel, version in runtime_wheels().items()]
    return [*wheels, f"onnx=={onnx.__version__}"]


def log_data(mlflow: Any, dataset: "Dataset", manifest: DatasetManifest, train: Split) -> None:
    """Log the training rows as the input of the active run."""
    from mlflow.data.code_dataset_source import CodeDatasetSource

    # MLflow keeps at most 36 characters of a digest; the tag has all of them.
    full = digest(manifest)
    source = CodeDatasetSource({"homepage": dataset.homepage, "licence": dataset.licence})
    data = mlflow.data.from_numpy(
        train.inputs, source, train.labels, name=manifest.dataset, digest=full[:36]
    )
    mlflow.log_input(data, context="training")
    mlflow.set_tags({"ferry.data_sha256": full, "ferry.data_citation": dataset.citation})


def log_torch_model(
    module: "nn.Module", example: np.ndarray[Any, Any], signature: Signature
) -> None:
    """Log a network as an exported program."""
    import mlflow.pytorch
    import torch

    mlflow.pytorch.log_model(
        module,
        name="pytorch",
        input_example=example,
        signature=mlflow_signature(signature),
        serialization_format="pt2",
        pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
    )


def log_onnx_model(path: Path, name: str, signature: Signature) -> None:
    """Log an ONNX file."""
    import mlflow.onnx
    import onnx

    mlflow.onnx.log_model(
        onnx.load(path),
        name=name,
        signature=mlflow_signature(signature),
        save_as_external_data=False,  # one file, with the sha256 that the report gives
        pip_requirements=model_requirements(),
    )
