"""What ferry refuses to run of an ONNX file that it did not make, each in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_onnx import FLOAT, chain, model, node

from pipeline.exporting.onnxmodel import load_foreign
from serving.errors import FerryError, InputError, MissingInputError, ModelError

ROW = {"x": (FLOAT, ["n", 2])}
ANSWER = {"y": (FLOAT, ["n", 2])}


def kept(made: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def refused(path: Path, error: type[FerryError] = ModelError) -> str:
    with pytest.raises(error) as caught:
        load_foreign(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    return message


def test_a_sound_file_comes_back_as_it_is(tmp_path: Path) -> None:
    made = chain(2)
    assert load_foreign(kept(made, tmp_path)) == made


def test_what_is_not_there(tmp_path: Path) -> None:
    assert "it should be an ONNX file" in refused(tmp_path / "net.onnx", MissingInputError)
    assert "is a folder" in refused(tmp_path, InputError)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"PK\x03\x04 not a model", b"<html></html>", b"\x08\x07", bytes(64)]
)
def test_what_is_no_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    assert "is not an ONNX file" in refused(path)


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    path = kept(chain(3), tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    assert "is not an ONNX file, or it is cut short" in refused(path)


def test_a_file_format_of_tomorrow(tmp_path: Path) -> None:
    made = chain(1)
    made.ir_version = 99
    assert "has IR version 99, ONNX Runtime takes up to 13" in refused(kept(made, tmp_path))


def external_weight(made: onnx.ModelProto) -> str:
    onnx.external_data_helper.set_external_data(made.graph.initializer[0], "weights.bin")
    return "w0"


def external_constant(made: onnx.ModelProto) -> str:
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "secret")
    onnx.external_data_helper.set_external_data(tensor, "weights.bin")
    made.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    return "secret"


def external_in_a_branch(made: onnx.ModelProto) -> str:
    tensor = numpy_helper.from_array(np.zeros(1, np.float32), "deep")
    onnx.external_data_helper.set_external_data(tensor, "weights.bin")
    out = helper.make_tensor_value_info("deep", FLOAT, [1])
    branch = helper.make_graph([], "branch", [], [out], [tensor])
    choice = helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch)
    made.graph.node.append(choice)
    return "deep"


@pytest.mark.parametrize("plant", [external_weight, external_constant, external_in_a_branch])
def test_weights_in_another_file(plant: Callable[[onnx.ModelProto], str], tmp_path: Path) -> None:
    made = chain(1)
    name = plant(made)
    message = refused(kept(made, tmp_path))
    assert f"keeps {name} in another file, 'weights.bin'" in message
    assert "onnx.save" in message


def of_domain(domain: str) -> onnx.ModelProto:
    work = node("Secret", "x", "y", domain=domain, name="the/Secret")
    return model([work], ROW, ANSWER, domains={domain: 1})


def test_an_operator_of_nobody_knows_whom(tmp_path: Path) -> None:
    message = refused(kept(of_domain("evil.org"), tmp_path))
    assert "needs the operator evil.org::Secret, at node 'the/Secret'" in message


def test_a_node_without_a_name_is_told_by_what_it_makes(tmp_path: Path) -> None:
    made = of_domain("evil.org")
    made.graph.node[0].name = ""
    assert "at node 'that makes y'" in refused(kept(made, tmp_path))


def test_operators_that_every_runtime_has(tmp_path: Path) -> None:
    for domain in ("ai.onnx.ml", "com.microsoft"):
        assert load_foreign(kept(of_domain(domain), tmp_path))


def test_an_import_that_no_node_uses_does_no_harm(tmp_path: Path) -> None:
    made = model([node("Relu", "x", "y")], ROW, ANSWER, domains={"evil.org": 1})
    assert load_foreign(kept(made, tmp_path))


def test_a_function_of_the_file_itself(tmp_path: Path) -> None:
    made = of_domain("local")
    body = [helper.make_node("Relu", ["a"], ["b"])]
    opset = [helper.make_opsetid("", 18)]
    made.functions.append(helper.make_function("local", "Secret", ["a"], ["b"], body, opset))
    assert load_foreign(kept(made, tmp_path))
    made.functions[0].node[0].domain = "evil.org"
    assert "evil.org::Relu" in refused(kept(made, tmp_path))


def looping(trips: str, condition: list[onnx.NodeProto], **weights: object) -> onnx.ModelProto:
    """A Loop that adds 1 to `x`; `condition` are the nodes that make `go` of `going`."""
    one = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Add", ["kept", "one"], ["more"]), *condition],
        "body",
        [
            one("turn", TensorProto.INT64, []),
            one("going", TensorProto.BOOL, []),
            one("kept", FLOAT, ["n", 2]),
        ],
        [one("go", TensorProto.BOOL, []), one("more", FLOAT, ["n", 2])],
    )
    loop = helper.make_node("Loop", [trips, "start", "x"], ["y"], name="the/Loop", body=body)
    values = {"one": np.float32(1), "start": np.array(True), **weights}
    return model([loop], ROW, ANSWER, values)


IDENTITY = helper.make_node("Identity", ["going"], ["go"])
TRUE = helper.make_node("Constant", [], ["go"], value=helper.make_tensor("t", 9, [], [True]))
FALSE = helper.make_node("Constant", [], ["go"], value=helper.make_tensor("t", 9, [], [False]))
IDENTITY_OF_OTHER = helper.make_node("Identity", ["other"], ["go"])
OTHER_OF_IDENTITY = helper.make_node("Cast", ["go"], ["other"], to=TensorProto.BOOL)
COMPUTED = helper.make_node("Less", ["kept", "one"], ["go"])


@pytest.mark.parametrize(
    "made",
    [
        looping("", [IDENTITY]),
        looping("", [TRUE]),
        looping("most", [IDENTITY], most=np.array(2**63 - 1)),
    ],
)
def test_a_loop_without_an_end(made: onnx.ModelProto, tmp_path: Path) -> None:
    assert "nothing ends the loop at node 'the/Loop'" in refused(kept(made, tmp_path))


@pytest.mark.parametrize(
    "made",
    [
        looping("most", [IDENTITY], most=np.array(3)),
        looping("", [FALSE]),
        looping("", [COMPUTED]),
        looping("", [IDENTITY], start=np.array(False)),
        looping("most", [IDENTITY], most=np.zeros(0, np.int64)),
        looping("most", [IDENTITY], most=np.array(["many"], object)),
        # What the graph around it computes may be false.
        looping("", [helper.make_node("Identity", ["outside"], ["go"])]),
        # Circles, and what reads nothing, are ONNX Runtime's to refuse.
        looping("", [helper.make_node("Identity", ["go"], ["go"])]),
        looping("", [IDENTITY_OF_OTHER, OTHER_OF_IDENTITY]),
        looping("", [helper.make_node("Cast", [], ["go"])]),
        looping("", [helper.make_node("Constant", [], [])]),
    ],
)
def test_a_loop_that_may_end(made: onnx.ModelProto, tmp_path: Path) -> None:
    assert load_foreign(kept(made, tmp_path))


def test_a_split_that_would_end_the_process(tmp_path: Path) -> None:
    split = node("Split", "x sizes", "a y", axis=1, name="the/Split")
    split.output[0] = ""
    made = model([split], ROW, ANSWER, {"sizes": np.array([1, 1])})
    assert "an output of the Split 'the/Split' without a name" in refused(kept(made, tmp_path))


def without_body(loop: onnx.NodeProto) -> None:
    del loop.attribute[:]


def without_answers(loop: onnx.NodeProto) -> None:
    del loop.attribute[0].g.output[:]


def without_inputs(loop: onnx.NodeProto) -> None:
    del loop.input[:]


def with_one_input(loop: onnx.NodeProto) -> None:
    del loop.input[1:]


@pytest.mark.parametrize("spoil", [without_body, without_answers, without_inputs, with_one_input])
def test_a_loop_without_its_parts(spoil: Callable[[onnx.NodeProto], None], tmp_path: Path) -> None:
    made = looping("", [IDENTITY])
    spoil(made.graph.node[0])
    assert "the loop at node 'the/Loop' lacks " in refused(kept(made, tmp_path))


def test_a_loop_without_a_condition_has_no_end(tmp_path: Path) -> None:
    made = looping("", [COMPUTED])
    made.graph.node[0].input[1] = ""
    assert "nothing ends the loop" in refused(kept(made, tmp_path))


@pytest.mark.parametrize("text", [b"Tanh/t0", b"seven", b"author", b"someone"])
def test_text_that_is_not_utf8(text: bytes, tmp_path: Path) -> None:
    made = chain(1)
    made.graph.doc_string = "seven"
    made.metadata_props.add(key="author", value="someone")
    path = kept(made, tmp_path)
    path.write_bytes(path.read_bytes().replace(text, b"\xff" + text[1:]))
    assert f"holds text that is not UTF-8: {bytes([255]) + text[1:]!r}" in refused(path)
