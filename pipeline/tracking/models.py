"""Models and data sets as MLflow keeps them, and a model opened again as a `pyfunc`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.records.ready import DatasetManifest, digest, open_split
from pipeline.tracking.store import load_mlflow as load_mlflow  # noqa: PLC0414 - for who imports it from here
from pipeline.tracking.store import store_uri as store_uri  # noqa: PLC0414 - as well
from serving.errors import ModelError, one_line
from serving.machine.environment import runtime_wheels
from serving.runtime.providers import ORT_ERRORS, PROVIDERS
from serving.runtime.session import ProviderProof, proof_of
from serving.runtime.tensors import TensorInfo

if TYPE_CHECKING:
    from torch import nn


Signature = tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]
"""The inputs and the outputs of a model."""
Pyfunc = Callable[[npt.NDArray[Any]], object]
"""Answers rows of the model's one input."""
CPU = PROVIDERS["cpu"]
MOST_CHARACTERS = 300
"""Of the end of an error: MLflow's begin with all the rows that were refused."""


def mlflow_signature(signature: Signature) -> Any:
    """The `ModelSignature` of inputs and outputs, named tensors whose free axes are -1."""
    from mlflow.models import ModelSignature

    inputs, outputs = signature
    return ModelSignature(inputs=_schema(inputs), outputs=_schema(outputs))


def model_requirements() -> list[str]:
    """What an ONNX model needs where it is served.

    MLflow would require plain onnxruntime, which must not be installed beside onnxruntime-gpu.
    """
    import onnx

    wheels = [f"{wheel}=={version}" for wheel, version in runtime_wheels().items()]
    return [*wheels, f"onnx=={onnx.__version__}"]


def log_data(mlflow: Any, manifest: DatasetManifest, data: Path) -> None:
    """Log the training rows in the folder `data` as the input of the active run."""
    from mlflow.data.code_dataset_source import CodeDatasetSource

    # MLflow keeps at most 36 characters of a digest; the tag has all of them.
    full = digest(manifest)
    train = open_split(data, "train")
    source = CodeDatasetSource({"homepage": manifest.homepage, "licence": manifest.licence})
    logged = mlflow.data.from_numpy(
        train.inputs, source, train.labels, name=manifest.dataset, digest=full[:36]
    )
    mlflow.log_input(logged, context="training")
    mlflow.set_tags({"ferry.data_sha256": full, "ferry.data_citation": manifest.citation})


def log_torch_model(
    _mlflow: Any, module: "nn.Module", example: np.ndarray[Any, Any], signature: Signature
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


def log_onnx_model(_mlflow: Any, path: Path, name: str, signature: Signature) -> None:
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


def save_pyfunc(
    model: Path, folder: Path, signature: Signature, *, threads: int | None = None
) -> None:
    """Save an ONNX file as an MLflow model that runs on the CPU.

    `threads` is that within one operator, None for MLflow's own way, which leaves it to ONNX
    Runtime.
    """
    load_mlflow()
    import mlflow.onnx
    import onnx

    options: dict[str, Any] = {
        "extra_session_config": {"session.record_ep_graph_assignment_info": "1"}
    }
    if threads is not None:
        options["intra_op_num_threads"] = threads
    mlflow.onnx.save_model(
        onnx.load(model),
        str(folder),
        signature=mlflow_signature(signature),
        save_as_external_data=False,
        pip_requirements=model_requirements(),
        onnx_execution_providers=[CPU],
        onnx_session_options=options,
    )


def open_pyfunc(folder: Path) -> tuple[Pyfunc, ProviderProof]:
    """Open what `save_pyfunc` saved, and say where its nodes run. Texts may be of any dtype.

    Raises ModelError when MLflow cannot open it, and so does the pyfunc for rows that it refuses.
    """
    load_mlflow()
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    try:
        loaded = mlflow.pyfunc.load_model(str(folder))
    except MlflowException as error:
        raise ModelError(
            f"MLflow cannot open {folder}: {one_line(error)[-MOST_CHARACTERS:]}"
        ) from error
    session = loaded.get_raw_model()
    name = session.get_inputs()[0].name

    def answer(rows: npt.NDArray[Any]) -> object:
        # ONNX Runtime takes texts as objects.
        values = rows.astype(object) if rows.dtype.kind == "U" else rows
        try:
            return loaded.predict({name: values})
        except (MlflowException, *ORT_ERRORS) as error:
            raise ModelError(
                f"MLflow refused its input: {one_line(error)[-MOST_CHARACTERS:]}"
            ) from error

    # By ONNX Runtime's own record, which `save_pyfunc` asked it to keep.
    return answer, proof_of(session, CPU)


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
