"""Any module in one plain form, and its export: names, batch axis, attention, padded pools."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from foreign_nets import (
    Attention,
    Dataclass,
    Elsewhere,
    Fickle,
    Fixed,
    Half,
    Large,
    Named,
    OneRow,
    PaddedPool,
    Silent,
    Summed,
    Two,
    Unknown,
    plain,
)
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipeline.exporting.module import (
    Exported,
    check_weights,
    export_flat,
    keep_padding,
    weights_sha256,
)
from pipeline.exporting.signatures import FlatModule, flatten, parse_input
from serving.errors import InputError, ModelError
from serving.runtime.session import open_session

PIXELS = "float32[batch,3,8,8]"


def flat(module: nn.Module, *specs: str) -> FlatModule:
    return FlatModule(module, [parse_input(spec) for spec in specs])


def exported(module: nn.Module, *specs: str, opset: int = 20) -> Exported:
    parsed = [parse_input(spec) for spec in specs]
    return export_flat(FlatModule(module, parsed), parsed, opset, {"module": "nets:build"})


# One plain form


def test_a_bare_tensor_is_called_output() -> None:
    net = flat(plain(), PIXELS)
    assert (net.inputs, net.outputs) == (("input",), ("output",))
    assert not net.module.training


def test_inputs_are_called_as_forward_does() -> None:
    assert flat(Two(), "float32[batch,4]", "int64[batch,7]").inputs == ("rows", "ids")


def test_inputs_in_another_order_are_handed_over_by_name() -> None:
    net = flat(Two(), "ids:int64[batch,7]", "rows:float32[batch,4]")
    assert net.inputs == ("ids", "rows")
    rows, ids = np.ones((3, 4), np.float32), np.array([[1, 2], [3, 4], [0, 0]])
    wanted = net.module(torch.from_numpy(rows), torch.from_numpy(ids))["logits"]
    found = net.answer({"rows": rows, "ids": ids})["logits"]
    assert (found == wanted.detach().numpy()).all()


def test_names_that_forward_has_not_are_handed_over_in_order() -> None:
    assert flat(Two(), "table:float32[batch,4]", "text:int64[batch,7]").inputs == ("table", "text")


def test_a_name_that_forward_has_not_beside_one_that_it_has() -> None:
    with pytest.raises(InputError, match="no input 'table'; its forward takes rows, ids"):
        flat(Two(), "table:float32[batch,4]", "ids:int64[batch,7]")


def test_two_inputs_of_one_name() -> None:
    with pytest.raises(InputError, match="two inputs are called alike: a, a"):
        flat(Two(), "a:float32[batch,4]", "a:int64[batch,7]")


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (Dataclass(), ("scores", "squares")),
        (Named(), ("first", "second")),
        (nn.LSTM(4, 3, batch_first=True), None),
    ],
)
def test_answers_are_taken_apart(module: nn.Module, names: tuple[str, ...] | None) -> None:
    if names is None:
        tensors = flatten(module(torch.zeros(2, 5, 4)))
        assert [name for name, _ in tensors] == ["output.0", "output.1.0", "output.1.1"]
    else:
        assert flat(module, "float32[batch,4]").outputs == names


def test_what_is_no_tensor_is_left_out() -> None:
    net = flat(Two(), "float32[batch,4]", "int64[batch,7]")
    assert net.outputs == ("logits", "hidden.0", "hidden.1.0")


@pytest.mark.parametrize(
    ("module", "spec", "message"),
    [
        (plain(), "float32[batch,3,9,9]", r"refuses input \[2, 3, 9, 9\]: RuntimeError: mat1"),
        (plain(), "int64[batch,3,8,8]", "refuses input"),
        (Summed(), "float32[batch,4]", r"output loss has shape \[\] for 2 rows"),
        (OneRow(), "float32[batch,4]", r"refuses x \[3, 4\]: RuntimeError: shape"),
        (Silent(), "float32[batch,4]", "answers no tensor"),
        (
            Half(),
            "float32[batch,4]",
            "output output is bfloat16, which cannot be compared; cast it",
        ),
    ],
)
def test_what_does_not_answer_rows_is_refused(module: nn.Module, spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        flat(module, spec)
    assert "\n" not in str(caught.value)


# The export


def test_names_are_those_of_the_users_modules() -> None:
    made = exported(Two(), "float32[batch,4]", "int64[batch,length]").model.graph
    assert {node.name for node in made.node} >= {"table/Gemm", "words/Gather", "main/Add"}
    assert {tensor.name for tensor in made.initializer} >= {"table.weight", "words.weight"}
    axes = [[axis.dim_param or axis.dim_value for axis in one.type.tensor_type.shape.dim]
            for one in made.input]  # fmt: skip
    assert axes == [["batch", 4], ["batch", "length"]]


def test_nothing_local_is_left_and_the_bytes_are_the_same_twice() -> None:
    first, second = (
        exported(plain(), PIXELS).model.SerializeToString(deterministic=True) for _ in range(2)
    )
    assert first == second
    for leak in (b".py", b"pkg.torch", b"stack_trace", b"FlatModule"):
        assert leak not in first
    assert b"nets:build" in first


def test_attention_with_a_learned_bias_is_exported() -> None:
    """Traced with gradients, torch would refuse to reshape what it took for another layout."""
    made = exported(Attention(), "float32[batch,4,8]")
    rows = np.random.default_rng(0).standard_normal((5, 4, 8)).astype(np.float32)
    wanted = flat(Attention(), "float32[batch,4,8]").answer({"x": rows})["output"]
    found = open_session(made.model.SerializeToString()).run({"x": rows})["output"]
    assert np.abs(found - wanted).max() < 1e-6


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Fickle, "cannot export the module: what it computes depends on the values of its input"),
        (Unknown, r"No ONNX function found for .*_linalg_eigh.*\(operator aten._linalg_eigh"),
        (Fixed, "fixes the batch axis: traced with 2 rows of x, it takes no other number"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    module: Callable[[], nn.Module], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        exported(module(), "float32[batch,4]")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_the_place_in_the_users_code_is_named() -> None:
    with pytest.raises(ModelError, match=r"foreign_nets\.py:\d+\)$"):
        exported(Fickle(), "float32[batch,4]")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Large, "has 2.4 GB of weights; one ONNX file holds at most 2 GB"),
        (Elsewhere, "weights lie on meta; return it on the cpu"),
    ],
)
def test_weights_that_cannot_be_written(module: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_weights(module())


def test_the_sum_of_the_weights_is_theirs_alone() -> None:
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    assert weights_sha256(first) != weights_sha256(second)
    second.load_state_dict(first.state_dict())
    assert weights_sha256(first) == weights_sha256(second)
    assert weights_sha256(first.bfloat16()) != weights_sha256(second)
    with torch.no_grad():
        second.bias[1] += 1
    assert weights_sha256(nn.Sequential(second)) != weights_sha256(second)


# Pools behind a padding


def pool_model(dtype: int = TensorProto.FLOAT, lone: bool = False) -> onnx.ModelProto:
    """`y = MaxPool(Pad(x))` of one value and one zero beside it."""
    value = [1, 1, 1, 1]
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["padded"], name="pad"),
        helper.make_node(
            "MaxPool", ["x" if lone else "padded"], ["y"], kernel_shape=[1, 1 if lone else 2],
            strides=[1, 2], name="pool",
        ),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "pools",
        [helper.make_tensor_value_info("x", dtype, value)],
        [helper.make_tensor_value_info("y", dtype, value)],
        [numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 0, 0, 1]), "pads")],
        value_info=[helper.make_tensor_value_info("padded", dtype, [1, 1, 1, 2])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.INT8, TensorProto.DOUBLE])
def test_the_zero_beside_a_negative_value_wins(dtype: int) -> None:
    model = pool_model(dtype)
    assert keep_padding(model.graph) == 1
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Pad", "Max", "MaxPool"]
    below = np.full((1, 1, 1, 1), -1, helper.tensor_dtype_to_np_dtype(dtype))
    for level in ("none", "all"):
        session = open_session(model.SerializeToString(), optimize=level)
        assert session.run({"x": below})["y"].item() == 0


def test_a_pool_without_a_padding_stays_as_it_is() -> None:
    model = pool_model(lone=True)
    before = model.SerializeToString()
    assert keep_padding(model.graph) == 0
    assert model.SerializeToString() == before


def test_two_pools_behind_one_padding_share_what_keeps_it() -> None:
    model = pool_model()
    again = onnx.NodeProto()
    again.CopyFrom(model.graph.node[1])
    again.name, again.output[0] = "other", "z"
    model.graph.node.append(again)
    assert keep_padding(model.graph) == 2
    assert [node.op_type for node in model.graph.node] == ["Pad", "Max", "MaxPool", "MaxPool"]


def test_a_module_that_pads_before_it_pools() -> None:
    made = exported(PaddedPool(), "float32[batch,1,3,3]")
    assert made.padded_pools == 2
    rows = np.random.default_rng(0).standard_normal((3, 1, 3, 3)).astype(np.float32)
    wanted = flat(PaddedPool(), "float32[batch,1,3,3]").answer({"x": rows})["output"]
    found = open_session(made.model.SerializeToString()).run({"x": rows})["output"]
    assert (found == wanted).all()
