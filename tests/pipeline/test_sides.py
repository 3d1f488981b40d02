"""Sides: whatever answers rows is asked the same way, and what cannot be compared is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import proof_models as small
import pytest
import torch
from onnx import TensorProto, helper
from project import REPOSITORY, Project
from torch import Tensor, nn
from trained_graphs import convolutional_graph, drawing_graph, graph_of, linear_graph, stripes

from pipeline.config.params import load
from pipeline.models.parts.graph import CrossEntropy, Graph
from pipeline.proof.sides import (
    Side,
    check_alike,
    model_side,
    open_side,
    open_torchscript,
    open_variant,
    open_weights,
)
from pipeline.stages import export
from serving.errors import (
    InputError,
    IntegrityError,
    MissingInputError,
    ModelError,
    UnknownNameError,
    UsageError,
)
from serving.runtime.session import open_session


@pytest.fixture
def at_home(exported: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """In the folder of a project."""
    monkeypatch.chdir(exported.root)
    return exported


def opened(spec: str) -> Side:
    return open_side(spec, load(REPOSITORY / "params.yaml").experiment)


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_a_model_answers_the_same_in_batches_of_any_size(batch_size: int) -> None:
    side, rows = small.side(small.linear()), small.rows(20)
    wanted = rows.inputs["features"] @ small.weights()
    found = side.answer(rows.slice(0, 20), batch_size)
    np.testing.assert_allclose(found["logits"], wanted, atol=1e-5)
    assert found["probabilities"].shape == (20, 4)


def test_several_inputs_of_several_dtypes() -> None:
    side = small.side(small.two_inputs())
    feeds = {"ids": np.array([3, 0, 1]), "offsets": np.ones((3, small.FEATURES), np.float32)}
    found = side.answer(feeds, 2)
    np.testing.assert_allclose(found["sum"], small.weights().T[[3, 0, 1]] + 1)
    assert found["odd"].tolist() == [1, 0, 1]
    assert [info.name for info in side.outputs] == ["sum", "odd"]


def test_a_model_of_one_batch_size_is_filled_up() -> None:
    made = small.linear()
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    side, rows = small.side(made), small.rows(6)
    found = side.answer(rows.slice(0, 6), 1)
    wanted = small.side(small.linear()).answer(rows.slice(0, 6), 6)
    np.testing.assert_allclose(found["logits"], wanted["logits"], atol=1e-6)
    with pytest.raises(InputError, match="takes batches of 4 and no others"):
        side.answer(rows.slice(0, 0), 1)


def test_a_batch_without_rows_has_no_answers() -> None:
    found = small.side(small.linear()).answer(small.rows().slice(0, 0), 7)
    assert found["logits"].shape == (0, 4)


def test_pytorch_answers_as_its_graph_does(exported: Project) -> None:
    side = open_weights(exported.weights, exported.data, exported.experiment)
    assert side.name == "digits-cnn"
    assert [info.takes() for info in side.inputs] == ["uint8 [rows, 8, 8, 1]"]
    assert [info.name for info in side.outputs] == ["logits", "probabilities"]
    rows = np.load(exported.data / "test_inputs.npy")[:9]
    wanted = side.graph.answer(rows, 9)[0].numpy()
    np.testing.assert_allclose(side.answer({"images": rows}, 4)["logits"], wanted, atol=1e-5)
    with pytest.raises(InputError, match="PyTorch refused its input"):
        side.answer({"images": np.zeros((2, 3, 3, 1), np.uint8)}, 2)


def test_all_ways_to_name_a_side(at_home: Project, tmp_path: Path) -> None:
    model = at_home.models["int8"]
    # The weights of the repository's own settings do not fit the tiny network that was trained.
    with pytest.raises(IntegrityError, match=r"was trained with model\.widths"):
        opened("digits-cnn")
    for spec in ("digits-cnn:int8", "digits-cnn:int8@cpu", str(model), f"{model}@cpu"):
        side = opened(spec)
        assert side.name == spec
        assert side.sha256 == open_session(model).sha256


def test_a_path_with_an_at_sign_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "model@cpu"
    path.write_bytes(small.linear().SerializeToString())
    assert opened(str(path)).name == str(path)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("nowhere.onnx", MissingInputError, "nowhere.onnx is not there"),
        ("some/model", MissingInputError, "it should be an ONNX file or a bundle"),
        ("digits-cn", UnknownNameError, "no experiment named 'digits-cn'; did you mean"),
        ("digits-cnn:int4", UnknownNameError, "no variant of digits-cnn named 'int4'"),
        ("digits-cnn@cdua", UnknownNameError, "no provider named 'cdua'; did you mean 'cuda'"),
        ("digits-cnn@cuda", UsageError, "PyTorch answers on the CPU; digits-cnn:fp32@cuda is"),
        ("models", MissingInputError, "models is not a bundle"),
    ],
)
def test_what_is_no_side(at_home: Project, spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        opened(spec)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    big = np.zeros((small.FEATURES, small.CLASSES), np.float32)
    onnx.save(
        small.linear(big), path, save_as_external_data=True, location="weights", size_threshold=0
    )
    with pytest.raises(ModelError, match="in another file, 'weights'"):
        opened(str(path))


def test_an_operator_of_an_unknown_domain_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Magic", ["features"], ["values"], name="main/Magic", domain="mine.ops")
    shape = (TensorProto.FLOAT, ["batch", 3])
    made = small.model([node], {"features": shape}, {"values": shape}, domains=["mine.ops"])
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(ModelError, match=r"needs the operator mine\.ops::Magic, at node 'main/Mag"):
        opened(str(path))


def test_a_variant_of_other_weights_is_refused(exported: Project) -> None:
    with pytest.raises(IntegrityError, match="was not exported from the weights 000000000000"):
        open_variant(exported.models["fp32"], "0" * 64, exported.experiment)


def test_sides_that_take_or_answer_something_else_are_refused() -> None:
    linear, other = small.side(small.linear()), small.side(small.two_inputs(), "two.onnx")
    with pytest.raises(InputError) as caught:
        check_alike(linear, other)
    assert str(caught.value) == (
        "model.onnx takes features float32 [rows, 6], two.onnx takes ids int64 [rows], offsets "
        "float32 [rows, 6]: they cannot be compared"
    )
    with pytest.raises(InputError, match=r"takes features float32 .*takes rows float32"):
        check_alike(linear, small.side(small.linear(name="rows")))
    with pytest.raises(InputError, match=r"answers logits .* answers values"):
        check_alike(linear, small.side(small.logarithm()))


def test_another_precision_of_what_is_answered_is_no_other_answer() -> None:
    linear = small.side(small.linear())
    logits, probabilities = linear.outputs
    half = replace(logits, dtype="float16")
    check_alike(linear, replace(linear, outputs=(half, probabilities)))
    whole = replace(logits, dtype="int64")
    with pytest.raises(InputError, match="cannot be compared"):
        check_alike(linear, replace(linear, outputs=(whole, probabilities)))


def test_a_side_at_another_level_is_the_same_model() -> None:
    side = small.side(small.linear())
    plain = side.at("none")
    assert plain.sha256 == side.sha256
    assert plain.session.settings.optimize == "none"
    rows = small.rows(5).slice(0, 5)
    np.testing.assert_allclose(
        plain.answer(rows, 5)["logits"], side.answer(rows, 5)["logits"], atol=1e-6
    )


def test_a_model_without_inputs_has_nothing_to_be_asked() -> None:
    constant = helper.make_node(
        "Constant", [], ["values"], value=onnx.numpy_helper.from_array(np.zeros(3, np.float32))
    )
    made = small.model([constant], {}, {"values": (TensorProto.FLOAT, [3])})
    with pytest.raises(ModelError, match="has no inputs"):
        small.side(made)


# The second exporter: the same answers by another way, or a clear reason


@pytest.mark.parametrize(
    "make", [linear_graph, lambda: linear_graph(binary=True), convolutional_graph, drawing_graph]
)
def test_both_exporters_answer_as_pytorch_does(make: object) -> None:
    graph: Graph = make()  # type: ignore[operator]
    rows = stripes(20).inputs
    wanted = [output.numpy() for output in graph.answer(rows, 20)]
    dynamo = model_side("model", export.to_onnx(graph, rows[:2], 20).SerializeToString())
    for side in (dynamo, open_torchscript(graph, rows[:2], 20)):
        assert [info.name for info in side.outputs] == list(graph.head.outputs)
        for batch_size in (1, 3, 20):
            found = side.answer({"images": rows}, batch_size)
            for name, array in zip(graph.head.outputs, wanted, strict=True):
                np.testing.assert_allclose(found[name], array, atol=1e-5)


def test_they_are_two_ways_and_not_one() -> None:
    graph, rows = convolutional_graph(), stripes(2).inputs
    dynamo, script = export.to_onnx(graph, rows, 20), open_torchscript(graph, rows, 20).model()
    assert [node.name for node in dynamo.graph.node] != [node.name for node in script.graph.node]


class Unknown(nn.Module):
    """An operator that TorchScript's exporter has no name for."""

    def forward(self, planes: Tensor) -> Tensor:
        return torch.linalg.qr(planes.flatten(2)).Q.flatten(1)[:, :2]


def test_what_it_cannot_export_is_told_in_one_line() -> None:
    with pytest.raises(ModelError) as caught:
        open_torchscript(graph_of(Unknown(), CrossEntropy()), stripes(2).inputs, 20)
    message = str(caught.value)
    assert message.startswith("TorchScript cannot export the model: ")
    assert "qr" in message
    assert len(message.splitlines()) == 1
    assert len(message) < 400
