"""Models and data sets as MLflow keeps them, and a model opened again as a `pyfunc`."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.tracking.journal import PT2, LoggedModel, RowsRead, Signature
from pipeline.tracking.store import load_mlflow
from serving.errors import ModelError, one_line
from serving.machine.environment import installed_version, runtime_wheels
from serving.runtime.providers import ORT_ERRORS, PROVIDERS
from serving.runtime.session import ProviderProof, proof_of
from serving.runtime.tensors import TensorInfo

SHA256_TAG, VARIANT_TAG = "ferry.sha256", "ferry.variant"
SUPERSEDED_TAG = "ferry.superseded_by"
"""Of a model whose variant was made anew in its run: the id of the newer one."""
LOADER = Path(__file__).with_name("ferry_pyfunc.py")
"""How MLflow opens a model that was sent; a copy of it lies in each."""
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


def mlflow_dataset(rows: RowsRead) -> Any:
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


def send_model(client: Any, run_id: str, model: LoggedModel, file: Callable[[str], Path]) -> str:
    """Make the model of a run on the server, and return its id; `file` finds its files.

    The same file is kept once, however often it is sent, and what was left half made is finished.
    Another one of the same name is another model. The older one stays, for a version in a registry
    may be made of it, and is tagged as superseded.
    """
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    known = _models(client, run, model.model)
    tags = {SHA256_TAG: model.sha256, VARIANT_TAG: model.model}
    made = next((one for one in known if one.tags.get(SHA256_TAG) == model.sha256), None)
    if made is None:
        flavour = "pytorch" if model.file.endswith(PT2) else "onnx"
        made = client.create_logged_model(
            run.info.experiment_id, model.model, run_id, tags=tags, model_type=flavour
        )
    identifier: str = made.model_id
    if str(made.status) != "READY":
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "model"
            _save(model, file, target, made)
            client.log_model_artifacts(identifier, str(target))
        client.set_logged_model_tags(identifier, {"mlflow.note.content": _note(model, identifier)})
        client.finalize_logged_model(identifier, "READY")
    if identifier not in {one.model_id for one in run.outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(identifier, step=0)])
    _supersede(client, known, identifier)
    return identifier


def model_of(client: Any, run_id: str, name: str) -> dict[str, str]:
    """What tells that a metric is of a model of the run, and which rows it was measured on."""
    run = client.get_run(run_id)
    current = [one for one in _models(client, run, name) if SUPERSEDED_TAG not in one.tags]
    if not current:
        return {}
    told: dict[str, str] = {"model_id": current[0].model_id}
    for one in run.inputs.dataset_inputs:
        if "evaluation" in {tag.value for tag in one.tags}:
            told |= {"dataset_name": one.dataset.name, "dataset_digest": one.dataset.digest}
    return told


def _models(client: Any, run: Any, name: str) -> list[Any]:
    """The models of a run that have a name."""
    condition = f"source_run_id = '{run.info.run_id}' AND name = '{name}'"
    return list(client.search_logged_models([run.info.experiment_id], condition))


def _supersede(client: Any, known: list[Any], current: str) -> None:
    """Tag the models that are not the current one, and only those."""
    for one in known:
        by = one.tags.get(SUPERSEDED_TAG)
        if one.model_id == current and by:
            client.delete_logged_model_tag(current, SUPERSEDED_TAG)
        elif one.model_id != current and by != current:
            client.set_logged_model_tags(one.model_id, {SUPERSEDED_TAG: current})


def _note(model: LoggedModel, identifier: str) -> str:
    """How to use it, in Markdown, which MLflow's page of the model begins with."""
    (rows, *_) = model.inputs
    call = f'mlflow.pyfunc.load_model("models:/{identifier}").predict({{"{rows.name}": rows}})'
    return f"`{call}` takes {rows.takes()} and gives {', '.join(o.name for o in model.outputs)}."


def _save(model: LoggedModel, file: Callable[[str], Path], folder: Path, made: Any) -> None:
    """Write the folder that MLflow keeps of a model, without importing PyTorch."""
    from mlflow.models import Model as Described
    from mlflow.models.model import MLMODEL_FILE_NAME

    described = Described(
        artifact_path=made.artifact_location,
        model_uuid=made.model_id,
        model_id=made.model_id,
        run_id=made.source_run_id,
    )
    rows = np.load(file(model.example), allow_pickle=False)
    options = {
        "mlflow_model": described,
        "signature": mlflow_signature((model.inputs, model.outputs)),
        "input_example": {model.inputs[0].name: _texts_as_objects(rows)},
        "code_paths": [str(LOADER)],
    }
    if model.file.endswith(PT2):
        _save_program(file(model.file), folder, options)
    else:
        _save_onnx(file(model.file), folder, options)
        described.flavors["python_function"]["loader_module"] = LOADER.stem
        described.save(str(folder / MLMODEL_FILE_NAME))


def _save_program(program: Path, folder: Path, options: Mapping[str, Any]) -> None:
    import mlflow.pyfunc

    version, *_ = str(installed_version("torch")).split("+")
    options["mlflow_model"].add_flavor("pytorch", model_data="data", pytorch_version=version)
    with tempfile.TemporaryDirectory() as place:
        # By the name that MLflow looks for.
        data = shutil.copyfile(program, Path(place) / f"model{PT2}")
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=LOADER.stem,
            data_path=str(data),
            pip_requirements=[f"torch=={version}"],
            **options,
        )


def _save_onnx(model: Path, folder: Path, options: Mapping[str, Any]) -> None:
    import mlflow.onnx
    import onnx

    mlflow.onnx.save_model(
        onnx.load(model),
        str(folder),
        save_as_external_data=False,
        pip_requirements=model_requirements(),
        onnx_execution_providers=[CPU],
        **options,
    )
    shutil.copyfile(model, folder / "model.onnx")  # the very file, with the sha256 of its report


def save_pyfunc(
    model: Path, folder: Path, signature: Signature, *, threads: int | None = None
) -> None:
    """Save an ONNX file as an MLflow model that runs on the CPU.

    `threads` is that within one operator, None for MLflow's own way, which leaves it to ONNX
    Runtime.
    """
    load_mlflow()
    session: dict[str, Any] = {
        "extra_session_config": {"session.record_ep_graph_assignment_info": "1"}
    }
    if threads is not None:
        session["intra_op_num_threads"] = threads
    options = {"signature": mlflow_signature(signature), "onnx_session_options": session}
    _save_onnx(model, folder, options)


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
        try:
            return loaded.predict({name: _texts_as_objects(rows)})
        except (MlflowException, *ORT_ERRORS) as error:
            raise ModelError(
                f"MLflow refused its input: {one_line(error)[-MOST_CHARACTERS:]}"
            ) from error

    # By ONNX Runtime's own record, which `save_pyfunc` asked it to keep.
    return answer, proof_of(session, CPU)


def _texts_as_objects(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows as ONNX Runtime takes them."""
    return rows.astype(object) if rows.dtype.kind == "U" else rows


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
