"""A model as MLflow serves it: saved in its format, opened again as a `pyfunc`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pipeline.tracking.models import Signature, mlflow_signature, model_requirements
from pipeline.tracking.runs import load_mlflow
from serving.errors import ModelError
from serving.runtime.providers import ORT_ERRORS, PROVIDERS
from serving.runtime.session import ProviderProof, proof_of

Pyfunc = Callable[[npt.NDArray[Any]], object]
"""Answers rows of the model's one input."""
CPU = PROVIDERS["cpu"]
MOST_CHARACTERS = 300
"""Of the end of an error: MLflow's begin with all the rows that were refused."""


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
        raise ModelError(f"MLflow cannot open {folder}: {_one_line(error)}") from error
    session = loaded.get_raw_model()
    name = session.get_inputs()[0].name

    def answer(rows: npt.NDArray[Any]) -> object:
        # ONNX Runtime takes texts as objects.
        values = rows.astype(object) if rows.dtype.kind == "U" else rows
        try:
            return loaded.predict({name: values})
        except (MlflowException, *ORT_ERRORS) as error:
            raise ModelError(f"MLflow refused its input: {_one_line(error)}") from error

    # By ONNX Runtime's own record, which `save_pyfunc` asked it to keep.
    return answer, proof_of(session, CPU)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[-MOST_CHARACTERS:]
