"""Models and data sets as MLflow keeps them, and a model opened again as a `pyfunc`."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.tracking.journal import Model, Rows
from pipeline.tracking.store import load_mlflow
from serving.errors import ModelError, one_line
from serving.machine.environment import runtime_wheels
from serving.runtime.providers import ORT_ERRORS, PROVIDERS
from serving.runtime.session import ProviderProof, proof_of
from serving.runtime.tensors import TensorInfo

Signature = tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]
"""The inputs and the outputs of a model."""
SHA256_TAG = "ferry.sha256"
Pyfunc = Callable[[npt.NDArray[Any]], object]
"""Answers rows of the model's one input."""
CPU = PROVIDERS["cpu"]
MOST_CHARACTERS = 300
"""Of the end of an error: MLflow's begin with all the rows that were refused."""


def mlflow_signature(signature: Signature) -> Any:
    """The `ModelSignature` of inputs and outputs, named tensors whose free axes are -1."""
    from mlflow.models import ModelSignature

    inputs, outputs = signature
    return ModelSignature(inputs=mlflow_schema(inputs), outputs=mlflow_schema(outputs))


def model_requirements() -> list[str]:
    """What an ONNX model needs where it is served.

    MLflow would require plain onnxruntime, which must not be installed beside onnxruntime-gpu.
    """
    import onnx

    wheels = [f"{wheel}=={version}" for wheel, version in runtime_wheels().items()]
    return [*wheels, f"onnx=={onnx.__version__}"]


def mlflow_dataset(rows: Rows) -> Any:
    """Rows of a data set as MLflow keeps them."""
    from mlflow.data.schema import TensorDatasetSchema
    from mlflow.entities import Dataset

    profile: dict[str, object] = {"num_rows": rows.features.shape[0]}
    targets: Any = mlflow_schema((rows.targets,)) if rows.targets else None
    schema = TensorDatasetSchema(mlflow_schema((rows.features,)), targets)
    return Dataset(
        name=rows.dataset,
        digest=rows.digest,
        source_type="code",
        source=json.dumps({"tags": dict(rows.source)}),
        schema=json.dumps(schema.to_dict()),
        profile=json.dumps(profile),
    )


def send_model(client: Any, run_id: str, model: Model, file: Callable[[str], Path]) -> None:
    """Make the model of a run on the server, unless it is there; `file` finds its files."""
    import mlflow.onnx
    import onnx

    if _models(client, run_id, f"tags.`{SHA256_TAG}` = '{model.sha256}'"):
        return
    experiment = client.get_run(run_id).info.experiment_id
    made = client.create_logged_model(
        experiment, model.model, run_id, tags={SHA256_TAG: model.sha256}
    )
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        mlflow.onnx.save_model(
            onnx.load(file(model.file)),
            str(target),
            signature=mlflow_signature((model.inputs, model.outputs)),
            save_as_external_data=False,  # one file, with the sha256 that the report gives
            pip_requirements=model_requirements(),
        )
        client.log_model_artifacts(made.model_id, str(target))
    client.finalize_logged_model(made.model_id, "READY")


def model_of(client: Any, run_id: str, name: str) -> dict[str, str]:
    """What tells that a metric is of a model of the run: its newest of that name."""
    found = _models(client, run_id, f"name = '{name}'")
    return {"model_id": found[0].model_id} if found else {}


def _models(client: Any, run_id: str, condition: str) -> list[Any]:
    experiment = client.get_run(run_id).info.experiment_id
    return list(
        client.search_logged_models(
            [experiment], f"source_run_id = '{run_id}' AND {condition}", max_results=1
        )
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


def mlflow_schema(tensors: tuple[TensorInfo, ...]) -> Any:
    """The `Schema` of tensors; whose free axes, and the first one of text, are -1."""
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
