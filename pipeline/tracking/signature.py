"""What a model takes and gives, in MLflow's words."""

from typing import Any

import numpy as np

from serving.tensors import TensorInfo

__all__ = ["Signature", "mlflow_signature"]

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
