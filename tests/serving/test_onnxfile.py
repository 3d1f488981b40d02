import contextlib

import onnx
import pytest
from onnx import helper
from tiny_classifier import classifier
from tiny_kinds import text_classifier

from serving.errors import ModelError
from serving.runtime.onnxfile import Header, class_labels, minimum_runtime, read_header


def test_the_header_is_what_the_onnx_package_reads() -> None:
    content = classifier(opset=20, ir_version=10)
    model = onnx.load_from_string(content)
    header = read_header(content)
    assert header.ir_version == model.ir_version == 10
    assert header.opsets == {entry.domain: entry.version for entry in model.opset_import}


def test_several_domains_and_the_long_name_of_the_default_one() -> None:
    graph = helper.make_graph([], "empty", [], [])
    imports = [helper.make_opsetid("ai.onnx", 19), helper.make_opsetid("ai.onnx.ml", 4)]
    content = helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString()
    header = read_header(content)
    assert header.opsets == {"": 19, "ai.onnx.ml": 4}
    assert header.opset == 19


@pytest.mark.parametrize(
    ("opset", "ir_version", "runtime"),
    [(18, 8, "1.14"), (20, 8, "1.17"), (18, 10, "1.18"), (21, 10, "1.18"), (9, 4, "1.10")],
)
def test_the_first_runtime_that_takes_a_model(opset: int, ir_version: int, runtime: str) -> None:
    assert minimum_runtime(Header(ir_version=ir_version, opsets={"": opset})) == runtime


def test_looking_words_up_needs_a_runtime_of_its_own() -> None:
    old = Header(ir_version=8, opsets={"": 15, "ai.onnx.ml": 3})
    new = Header(ir_version=8, opsets={"": 15, "ai.onnx.ml": 4})
    assert (minimum_runtime(old), minimum_runtime(new)) == ("1.10", "1.17")
    assert minimum_runtime(read_header(text_classifier())) == "1.17"
    with pytest.raises(ModelError, match=r"ai\.onnx\.ml opset 99 is newer"):
        minimum_runtime(Header(ir_version=8, opsets={"": 15, "ai.onnx.ml": 99}))


def test_a_model_from_the_future() -> None:
    with pytest.raises(ModelError, match="opset 99 is newer"):
        minimum_runtime(Header(ir_version=8, opsets={"": 99}))
    with pytest.raises(ModelError, match="IR version 99 is newer"):
        minimum_runtime(Header(ir_version=99, opsets={"": 18}))


def test_every_truncation_is_refused_or_read_without_a_crash() -> None:
    content = classifier()
    for size in range(0, len(content), 7):
        with contextlib.suppress(ModelError):
            assert read_header(content[:size]).ir_version in {0, 8}


@pytest.mark.parametrize("content", [b"\xff" * 30, b"plain text", b"\x0f", b"\x42\xff\xff\x03"])
def test_what_is_no_model_is_refused(content: bytes) -> None:
    with pytest.raises(ModelError, match="not an ONNX file"):
        read_header(content)


def classified(operator: str = "ZipMap", **attributes: object) -> bytes:
    """A graph whose output `label` is handed on twice; nothing of it is ever run."""
    nodes = [
        helper.make_node(operator, ["rows"], ["found"], domain="ai.onnx.ml", **attributes),
        helper.make_node("Cast", ["found"], ["cast"], to=1),
        helper.make_node("Identity", ["cast"], ["label"]),
    ]
    return helper.make_model(helper.make_graph(nodes, "g", [], [])).SerializeToString()


def test_what_a_graph_calls_its_classes() -> None:
    numbers = classified(classlabels_int64s=[3, -1, 2**40])
    assert (
        class_labels(numbers, "label") == class_labels(numbers, "found") == ("3", "-1", str(2**40))
    )
    names = classified("LinearClassifier", classlabels_strings=["naïve", ""], coefficients=[1.0])
    assert class_labels(names, "label") == ("naïve", "")
    assert class_labels(names, "rows") is None
    assert class_labels(classified("Scaler", offset=[1.0]), "label") is None
    with pytest.raises(ModelError, match="not an ONNX file"):
        class_labels(b"\x0b" + numbers, "label")  # a field of a kind that is no more
