"""A model in MLflow's format: texts go in as they are, with the threads that were asked for."""

from pathlib import Path

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
import yaml
from onnx import TensorProto
from small_onnx import chain, model, node

from pipeline.tracking.models import open_pyfunc, save_pyfunc
from serving.errors import ModelError
from serving.runtime.session import open_session


def save(made: onnx.ModelProto, folder: Path, threads: int | None = None) -> Path:
    onnx.save(made, folder / "model.onnx")
    session = open_session(folder / "model.onnx", threads=1)
    signature = (session.inputs, session.outputs)
    save_pyfunc(folder / "model.onnx", folder / "saved", signature, threads=threads)
    return folder / "saved"


def words() -> onnx.ModelProto:
    """Strings [n] to their lengths, of the three that it knows."""
    encoder = node(
        "LabelEncoder",
        "words",
        "lengths",
        domain="ai.onnx.ml",
        keys_strings=["a", "bc", "def"],
        values_int64s=[1, 2, 3],
        default_int64=-1,
    )
    return model(
        [encoder],
        {"words": (TensorProto.STRING, ["n"])},
        {"lengths": (TensorProto.INT64, ["n"])},
        domains={"ai.onnx.ml": 2},
    )


@pytest.mark.parametrize("dtype", ["<U3", "object"])
def test_texts_of_any_dtype_are_answered(tmp_path: Path, dtype: str) -> None:
    answer, proof = open_pyfunc(save(words(), tmp_path))
    assert answer(np.array(["bc", "?", "def"], dtype))["lengths"].tolist() == [2, -1, 3]  # type: ignore[index]  # MLflow's
    assert proof.share == 1
    assert proof.nodes == {"CPUExecutionProvider": 1}


@pytest.mark.parametrize("threads", [None, 3])
def test_the_threads_are_in_what_is_saved(tmp_path: Path, threads: int | None) -> None:
    folder = save(chain(1), tmp_path, threads)
    options = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["onnx"]
    assert options["onnx_session_options"].get("intra_op_num_threads") == threads
    assert options["providers"] == ["CPUExecutionProvider"]
    answer, _ = open_pyfunc(folder)
    assert answer(np.zeros((2, 4), np.float32))["y"].shape == (2, 4)  # type: ignore[index]  # MLflow's


def test_what_mlflow_refuses_is_one_short_line(tmp_path: Path) -> None:
    answer, _ = open_pyfunc(save(chain(1), tmp_path))
    with pytest.raises(ModelError, match=r"^MLflow refused its input: ") as caught:
        answer(np.zeros((300, 5), np.float32))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"^MLflow cannot open {tmp_path}: "):
        open_pyfunc(tmp_path)


def spark_batch(folder: Path, column: pd.Series) -> pd.DataFrame:
    """What `mlflow.pyfunc.spark_udf` does in a worker with a batch of one column, for a struct."""
    loaded = mlflow.pyfunc.load_model(str(folder))
    (name,) = loaded.metadata.get_input_schema().input_names()
    result = loaded.predict(pd.DataFrame({name: column}))
    return pd.DataFrame({output: list(values) for output, values in result.items()})


def test_a_column_of_arrays_is_answered_as_spark_hands_it_over(tmp_path: Path) -> None:
    made = model(
        [node("Neg", "rows", "turned")],
        {"rows": (TensorProto.FLOAT, ["n", 3])},
        {"turned": (TensorProto.FLOAT, ["n", 3])},
    )
    folder = save(made, tmp_path)
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    found = spark_batch(folder, pd.Series(list(rows)))
    assert list(found.columns) == ["turned"]
    np.testing.assert_array_equal(np.stack(found["turned"].to_list()), -rows)
