"""The first diverging node beside the planted faults: large graphs, several inputs, any module."""

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
import torch
from planted_faults import subject
from small_onnx import FLOAT, chain, changed, copied, model, node

from pipeline.proof.tracing import divergence
from pipeline.proof.tracing.divergence import first_divergence
from pipeline.proof.tracing.torch_values import Traced
from pipeline.proof.tracing.values import OnnxValues, first_nonfinite
from serving.errors import InputError

FEEDS = {"x": np.array([[0.5, -1.0, 2.0, 0.25]], np.float32)}
LIMIT = 1e-4


@pytest.mark.parametrize("at", [0, 31, 90, 199])
def test_a_fault_is_found_anywhere_in_a_large_graph(at: int) -> None:
    sound = chain(200)
    found = first_divergence(sound, changed(sound, f"w{at}", 0.01), FEEDS, LIMIT)
    assert found is not None
    assert found.node == f"MatMul/p{at}"
    assert found.input_relative_diff == (None if at == 0 else 0.0)
    assert found.reference == "unoptimized ONNX Runtime"


def test_memory_is_bounded_by_what_is_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = chain(300)
    fetch, asked = OnnxValues.fetch, []

    def counted(self: OnnxValues, names: list[str]) -> dict[str, np.ndarray]:
        asked.append(len(names))
        return fetch(self, names)

    monkeypatch.setattr(OnnxValues, "fetch", counted)
    # Room for the values of about ten nodes: 16 bytes each.
    monkeypatch.setattr(divergence, "CHUNK_BYTES", 160)
    assert first_divergence(sound, copied(sound), FEEDS, LIMIT) is None
    assert max(asked) == divergence.FIRST_CHUNK
    assert sorted(asked)[len(asked) // 2] <= 10


def test_a_small_fault_that_later_layers_enlarge_is_named_where_it_is() -> None:
    nodes = [node("Mul", "x w", "a"), node("Sub", "a near", "b"), node("Mul", "b many", "y")]
    weights = {"w": np.float32(2), "near": np.float32(0.999), "many": np.float32(1000)}
    row = {"x": (FLOAT, ["n", 1])}
    sound = model(nodes, row, {"y": (FLOAT, ["n", 1])}, weights)
    spoilt = changed(sound, "w", 1e-4)
    # The first difference is within the limit; what the subtraction makes of it is not.
    found = first_divergence(sound, spoilt, {"x": np.array([[0.5]], np.float32)}, 10.0)
    assert found is not None
    assert (found.node, found.operator, found.tensor) == ("Mul/a", "Mul", "a")
    assert found.relative_diff == pytest.approx(5e-5, rel=0.01)


def test_the_largest_is_named_where_none_is_beyond_the_limit() -> None:
    sound = chain(5)
    spoilt = changed(changed(sound, "w1", 1e-6), "w3", 1e-4)
    for limit in (1.0, None):
        found = first_divergence(sound, spoilt, FEEDS, limit)
        assert found is not None
        assert found.node == "MatMul/p3"


def test_nothing_in_common_is_nothing_to_name() -> None:
    renamed = copied(chain(2))
    for one in renamed.graph.node:
        one.input[:] = [f"{name}_" if name[0] in "pt" else name for name in one.input]
        one.output[:] = [f"{name}_" if name[0] in "pt" else name for name in one.output]
    sound = chain(2)
    assert first_divergence(renamed, sound, FEEDS, LIMIT) is None


def test_values_of_the_same_name_but_another_shape() -> None:
    sound = chain(2)
    spoilt = copied(sound)
    spoilt.graph.node[1].op_type = "Transpose"
    found = first_divergence(sound, spoilt, {"x": np.eye(4, dtype=np.float32)[:4]}, LIMIT)
    assert found is not None
    assert found.node == "Tanh/t0"
    narrow = {"x": FEEDS["x"]}
    with pytest.raises(InputError, match="refused its input"):
        first_divergence(sound, spoilt, narrow, LIMIT)  # no longer runs at all


def test_what_differs_beyond_numbers_is_told_without_them() -> None:
    sound = chain(2)
    found = first_divergence(sound, changed(sound, "w1", float("nan")), FEEDS, LIMIT)
    assert found is not None
    assert (found.node, found.max_abs_diff, found.relative_diff) == ("MatMul/p1", None, None)
    assert found.input_relative_diff == 0.0
    assert found.describe() == (
        "MatMul/p1 (MatMul): p1 differs beside unoptimized ONNX Runtime, its inputs by 0.0e+00"
    )


def several() -> onnx.ModelProto:
    """uint8, int64 and bool inputs: `y` is a row of a table plus pixels, where it is used."""
    nodes = [
        node("Cast", "pixels", "real", to=FLOAT),
        node("Gather", "table ids", "looked_up"),
        node("Add", "real looked_up", "sum"),
        node("Not", "used", "unused"),
        node("Where", "unused zero sum", "y"),
    ]
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    types = onnx.TensorProto
    inputs = {
        "pixels": (types.UINT8, ["n", 3]),
        "ids": (types.INT64, ["n"]),
        "used": (types.BOOL, ["n", 1]),
    }
    weights = {"table": table, "zero": np.float32(0)}
    return model(nodes, inputs, {"y": (FLOAT, ["n", 3])}, weights)


SEVERAL: Mapping[str, np.ndarray] = {
    "pixels": np.array([[7, 255, 0]], np.uint8),
    "ids": np.array([2]),
    "used": np.array([[True]]),
}


def test_several_inputs_of_any_type() -> None:
    sound = several()
    found = first_divergence(sound, changed(sound, "table", 0.1), SEVERAL, LIMIT)
    assert found is not None
    assert found.node == "Gather/looked_up"
    spoilt = copied(sound)
    spoilt.graph.node[3].op_type = "Identity"
    found = first_divergence(sound, spoilt, SEVERAL, LIMIT)
    assert found is not None
    assert found.node == "Not/unused"


def test_a_reference_whose_inputs_have_other_names() -> None:
    sound = chain(3)
    renamed = copied(sound)
    renamed.graph.input[0].name = "rows"
    renamed.graph.node[0].input[0] = "rows"
    found = first_divergence(renamed, changed(sound, "w2", 0.1), FEEDS, LIMIT)
    assert found is not None
    assert found.node == "MatMul/p2"


# Any module


class Unlike(torch.nn.Module):
    """Two inputs of different types and a linear layer over three axes: MatMul and Add in ONNX."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(9, 6)
        self.linear = torch.nn.Linear(6, 6)
        self.norm = torch.nn.LayerNorm(6)

    def forward(self, ids: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.tanh(self.linear(self.embedding(ids) + shift))).mean(1)


@pytest.fixture(scope="module")
def exported() -> tuple[Traced, onnx.ModelProto, Mapping[str, np.ndarray]]:
    torch.manual_seed(0)
    example = (torch.randint(0, 9, (2, 5)), torch.randn(2, 5, 6))
    program = torch.onnx.export(
        Unlike().eval(),
        example,
        dynamo=True,
        verbose=False,
        opset_version=20,
        input_names=["ids", "shift"],
        output_names=["answer"],
        dynamic_shapes=({0: torch.export.Dim("n")}, {0: torch.export.Dim("n")}),
    )
    assert program is not None
    traced = Traced(program=program.exported_program, inputs=("ids", "shift"), outputs=("answer",))
    feeds = {"ids": example[0][:1].numpy(), "shift": example[1][:1].numpy()}
    return traced, program.model_proto, feeds


@pytest.mark.parametrize(
    ("operator", "place"), [("Gather", 0), ("MatMul", 1), ("Add", 1), ("LayerNormalization", 1)]
)
def test_any_module_of_pytorch_is_a_reference(
    exported: tuple[Traced, onnx.ModelProto, Mapping[str, np.ndarray]], operator: str, place: int
) -> None:
    traced, sound, feeds = exported
    weights = {tensor.name for tensor in sound.graph.initializer}
    (spoilt,) = [
        one
        for one in sound.graph.node
        if one.op_type == operator and weights & set(one.input[place : place + 1])
    ]
    found = first_divergence(traced, changed(sound, spoilt.input[place], 0.01), feeds, LIMIT)
    assert found is not None
    assert (found.node, found.reference) == (spoilt.name, "PyTorch")


# NaN and infinities


def test_the_first_node_that_makes_nan_is_named() -> None:
    sound = chain(100)
    assert first_nonfinite(sound, FEEDS) is None
    found = first_nonfinite(changed(sound, "w70", float("nan")), FEEDS)
    assert found is not None
    assert (found.node, found.operator) == ("MatMul/p70", "MatMul")
    assert (found.tensor, found.kind) == ("p70", "NaN")
    assert found.describe() == "MatMul/p70 (MatMul) is the first to make NaN, in p70"


def test_what_overflows_is_named_and_not_what_makes_nan_of_it() -> None:
    nodes = [node("Exp", "x", "e"), node("Mul", "e e", "m"), node("Sub", "m m", "y")]
    row = {"x": (FLOAT, ["n", 2])}
    made = model(nodes, row, {"y": (FLOAT, ["n", 2])})
    found = first_nonfinite(made, {"x": np.array([[1, 60]], np.float32)})
    assert found is not None
    assert (found.node, found.kind) == ("Mul/m", "infinity")


def masked(last: onnx.NodeProto) -> onnx.ModelProto:
    nodes = [node("Where", "used x hidden", "seen"), node("Softmax", "seen", "parts"), last]
    inputs = {"x": (FLOAT, ["n", 2]), "used": (onnx.TensorProto.BOOL, ["n", 2])}
    weights = {"hidden": np.float32(-np.inf), "zero": np.float32(0)}
    return model(nodes, inputs, {"y": (FLOAT, ["n", 2])}, weights)


def test_the_infinities_of_a_mask_are_meant() -> None:
    row = {"x": np.ones((1, 2), np.float32), "used": np.array([[True, False]])}
    assert first_nonfinite(masked(node("Neg", "parts", "y")), row) is None
    found = first_nonfinite(masked(node("Div", "parts zero", "y")), row)
    assert found is not None
    assert found.node == "Div/y", "and not the mask"
    nothing = {**row, "used": np.array([[False, False]])}
    found = first_nonfinite(masked(node("Neg", "parts", "y")), nothing)
    assert found is not None
    assert found.node == "Where/seen", "where all is masked, that is why"


def test_nothing_beside_the_way_to_the_output_is_named() -> None:
    made = chain(2)
    made.graph.node.append(node("Log", "t0", "unread"))
    assert first_nonfinite(made, FEEDS) is None


def test_words_and_images_are_looked_into_as_well() -> None:
    for name in ("text_lstm", "trained", "int8"):
        sound = subject(name)
        assert first_nonfinite(sound.model, sound.feeds) is None
