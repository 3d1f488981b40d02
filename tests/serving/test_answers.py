from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from samples_of_rows import opened
from tiny_classifier import LABELS, classifier, images
from tiny_kinds import autoencoder

from serving.batch.answers import answer
from serving.errors import UsageError

IDS = ["a", "b", "c"]


def converted() -> bytes:
    """As converters of other libraries make it: an output named id, scores, and a list of maps."""
    maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, []))
    )
    graph = helper.make_graph(
        [
            helper.make_node("ArgMax", ["rows"], ["id"], axis=1, keepdims=0),
            helper.make_node("Unsqueeze", ["rows", "one"], ["scores"]),
            helper.make_node(
                "ZipMap", ["rows"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]
            ),
        ],
        "converted",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 3])],
        [
            helper.make_tensor_value_info("id", TensorProto.INT64, ["n"]),
            helper.make_value_info("maps", maps),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 1, 3]),
        ],
        [helper.make_tensor("one", TensorProto.INT64, [1], [1])],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()


@pytest.mark.parametrize("all_classes", [False, True])
def test_the_columns_of_a_classifier(tmp_path: Path, all_classes: bool) -> None:
    model = opened(tmp_path, classifier())
    found = answer(model, IDS, images(3), all_classes=all_classes)
    columns, finite = found.columns, found.finite
    classes = [f"probability_{label}" for label in LABELS] if all_classes else []
    assert list(columns) == ["id", "label", "label_index", "probability", *classes]
    assert columns["id"].tolist() == IDS
    assert finite.tolist() == [True] * 3


def test_the_error_of_a_reconstruction_comes_first(tmp_path: Path) -> None:
    columns = answer(opened(tmp_path, autoencoder()), IDS, images(3)).columns
    assert list(columns) == ["id", "error", "reconstruction"]
    assert columns["reconstruction"].shape == (3, 4, 5, 1)


def test_outputs_of_a_strange_model(tmp_path: Path) -> None:
    """The list of a ZipMap is a table, and an output named as our own column gets another name."""
    rows = np.array([[1, 0, 0], [0, np.inf, 0], [0, 0, 1]], np.float32)
    model = opened(tmp_path, converted())
    found = answer(model, IDS, rows)
    columns, finite = found.columns, found.finite
    assert (model.kind, list(columns)) == ("other", ["id", "output_id", "maps", "scores"])
    np.testing.assert_array_equal(columns["maps"], rows)
    assert columns["output_id"].tolist() == [0, 1, 2]
    assert finite.tolist() == [True, False, True]


def test_the_best_classes_come_in_their_order(tmp_path: Path) -> None:
    model = opened(tmp_path, classifier())
    found = answer(model, IDS, images(3), top_k=2).columns
    scores = model.predict(images(3)).scores
    order = np.argsort(-scores, axis=1)[:, :2]
    assert list(found)[-2:] == ["top_labels", "top_probabilities"]
    assert found["top_labels"].tolist() == [[LABELS[index] for index in row] for row in order]
    np.testing.assert_array_equal(found["top_labels"][:, 0], found["label"])
    np.testing.assert_allclose(
        found["top_probabilities"], np.take_along_axis(scores, order, axis=1)
    )


def test_more_best_classes_than_there_are(tmp_path: Path) -> None:
    model = opened(tmp_path, classifier())
    with pytest.raises(UsageError, match="--top-k must be at most 3, the classes there are, got 4"):
        answer(model, IDS, images(3), top_k=4)
