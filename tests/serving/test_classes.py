"""Which outputs tell a class: by type, by name, by labels or by the user's word, and never else."""

import pytest

from serving.runtime.classes import Task, class_outputs
from serving.runtime.tensors import TensorInfo

TABLE, ROW, COLUMN, PICTURE = (None, 3), (None,), (None, 1), ("n", 3, 3)


def info(name: str, dtype: str, shape: tuple[int | str | None, ...]) -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=shape)


def judged(*outputs: TensorInfo, task: Task | None = None) -> tuple[str | None, str | None]:
    """The names of the label and of the scores."""
    found = class_outputs(outputs, task)
    return (found.label and found.label.name, found.scores and found.scores.name)


@pytest.mark.parametrize(
    ("outputs", "label", "scores"),
    [
        # Ferry's own, of more than two classes and of two.
        ([info("logits", "float32", TABLE), info("probabilities", "float32", TABLE)], 0, 2),
        ([info("logits", "float32", COLUMN), info("probabilities", "float32", (None, 2))], 0, 2),
        # skl2onnx: a classifier with and without ZipMap, a mixture, k-means, outliers, a regressor.
        ([info("label", "int64", ROW), info("probabilities", "float32", TABLE)], 1, 2),
        ([info("output_label", "object", ROW), info("output_probability", "seq(map(", ())], 1, 0),
        ([info("label", "int64", COLUMN), info("probabilities", "float32", TABLE)], 1, 2),
        ([info("label", "int64", ROW), info("scores", "float32", TABLE)], 1, 0),
        ([info("label", "int64", COLUMN), info("scores", "float32", COLUMN)], 1, 0),
        ([info("variable", "float32", TABLE)], 0, 0),
        # Two labels a row are no label.
        ([info("label", "int64", (None, 2)), info("probabilities", "float32", PICTURE)], 0, 0),
        # TensorFlow's names.
        ([info("model/dense/Softmax:0", "float32", TABLE)], 0, 1),
        ([info("StatefulPartitionedCall:0", "float32", TABLE)], 0, 0),
        # By its type alone, a number beside scores; of two such outputs nobody knows.
        ([info("logits", "float32", TABLE), info("argmax", "int64", ROW)], 2, 1),
        ([info("values", "float32", TABLE), info("length", "int64", ROW)], 0, 0),
        ([info("values", "float32", TABLE), info("species", "object", ROW)], 2, 0),
        ([info("species", "object", ROW)], 0, 0),
        ([info("v", "float32", TABLE), info("a", "object", ROW), info("b", "int64", ROW)], 0, 0),
        ([info("v", "float32", TABLE), info("a", "int64", ROW), info("label", "int64", ROW)], 3, 0),
        ([info("probabilities", "float32", PICTURE), info("label", "float32", ROW)], 0, 0),
    ],
)  # fmt: skip
def test_what_the_outputs_say(outputs: list[TensorInfo], label: int, scores: int) -> None:
    """The numbers of the outputs, from 1; 0 for none."""
    names = [None, *(one.name for one in outputs)]
    assert judged(*outputs) == (names[label], names[scores])


def test_one_table_holds_scores_by_the_users_word() -> None:
    table, other = info("out", "float32", TABLE), info("hidden", "float64", TABLE)
    assert judged(table) == (None, None)
    assert judged(table, task="classification") == (None, "out")
    assert judged(table, other, task="classification") == (None, None)
    assert judged(info("logits", "float32", TABLE), task="regression") == (None, None)


def test_probabilities_are_called_so() -> None:
    assert class_outputs([info("Softmax:0", "float32", TABLE)]).are_probabilities
    assert not class_outputs([info("logits", "float32", TABLE)]).are_probabilities
    assert not class_outputs([]).are_probabilities
