"""What counts as an answer is one judgement: predict and bundle refuse alike."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from tiny_classifier import contents
from tiny_onnx import FLOAT, write

from serving.bundles.writing import write_bundle
from serving.errors import FerryError, ModelError
from serving.model import open_model
from serving.runtime.session import open_session

ROWS = np.arange(40, dtype=np.float32).reshape(4, 5, 2)


def single(node: tuple, output: tuple, rows: list | None = None, **attributes: object) -> bytes:
    """A model of one operator on rows [batch, 5, 2]."""
    graph = helper.make_graph(
        [helper.make_node(node[0], ["rows"], ["out"], **attributes)],
        "single",
        [helper.make_tensor_value_info("rows", FLOAT, rows or ["batch", 5, 2])],
        [helper.make_tensor_value_info("out", *output)],
    )
    imports = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


def cast(kind: int) -> bytes:
    return single(("Cast",), (kind, ["batch", 5, 2]), to=kind)


def swapped(shape: list, rows: list | None = None) -> bytes:
    return single(("Transpose",), (FLOAT, shape), rows, perm=[1, 0, 2])


LACKING = "which numpy has no type for; let the graph cast it to float32"
REFUSED = {
    "fp8": (cast(TensorProto.FLOAT8E4M3FN), f"out is a tensor(float8e4m3fn), {LACKING}"),
    "bf16": (cast(TensorProto.BFLOAT16), f"out is a tensor(bfloat16), {LACKING}"),
    "int4": (cast(TensorProto.INT4), f"out is a tensor(int4), {LACKING}"),
    "time-major": (swapped([5, "batch", 2]), "is float32 [5, 'batch', 2]; its first axis must be"),
    "time-major by name": (
        swapped(["time", "batch", 2], ["batch", "time", 2]),
        "is float32 ['time', 'batch', 2]; its first axis must be the rows",
    ),
    "undeclared": (
        swapped([None, None, 2], [None, None, 2]),
        "has shape [5, 4, 2] for 4 rows; its first axis must",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_output_that_is_no_answer_is_at_fault_itself(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    path = write(tmp_path / "model.onnx", content)
    for refuse in (
        lambda: open_model(path).answers(ROWS),
        lambda: write_bundle(
            tmp_path / "made", contents(model=content, labels=(), golden_input=ROWS)
        ),
    ):
        with pytest.raises(FerryError) as caught:
            refuse()
        assert message in str(caught.value)
        assert "input" not in str(caught.value)
    assert not (tmp_path / "made").exists()


def test_as_many_steps_as_rows_are_no_rows_either() -> None:
    session = open_session(swapped([5, "batch", 2]))
    with pytest.raises(ModelError, match="its first axis must be the rows"):
        session.answered("net")


def test_what_numpy_cannot_take_from_onnx_runtime_is_said_of_the_output() -> None:
    session = open_session(cast(TensorProto.BFLOAT16))
    with pytest.raises(ModelError, match="output out is a tensor"):
        session.run({"rows": ROWS})
    with pytest.raises(FerryError, match="the model refused its input"):
        session.run({"rows": ROWS.astype(np.float64)})
