"""What the bundle stage measures of training data, with real sessions on tiny models."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_onnx import FLOAT, model, node

from pipeline.exporting.tokenizer import known_words, prepend
from pipeline.models.parts.vocabulary import Vocabulary
from serving.drift.check import DriftCheck
from serving.drift.quantities import MOST_ROWS, UNKNOWN_WORDS, reference_of
from serving.errors import InputError

WORDS = ("the", "film", "good", "naïve", "dull")
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(600, 3)).astype(np.float32)


def written(folder: Path, made: onnx.ModelProto) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def classifier(folder: Path) -> Path:
    """Of rows of three numbers the probabilities of four classes."""
    weight = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    nodes = [node("MatMul", "rows w", "product"), node("Softmax", "product", "probabilities")]
    outputs = {"probabilities": (FLOAT, ["n", 4])}
    return written(folder, model(nodes, {"rows": (FLOAT, ["n", 3])}, outputs, {"w": weight}))


def reader(folder: Path) -> Path:
    """Of a text the ids of its words, as ferry exports the look-up."""
    ids = (TensorProto.INT64, ["batch", 6])
    made = model([node("Identity", "ids", "found")], {"ids": ids}, {"found": ids})
    del made.opset_import[:]
    made.opset_import.append(helper.make_opsetid("", 20))
    prepend(made, Vocabulary(WORDS, 6))
    return written(folder, made)


def test_inputs_are_of_the_training_rows_and_answers_of_those_held_out(tmp_path: Path) -> None:
    found = reference_of(classifier(tmp_path), ROWS, held_out=ROWS[:200] * 2, data="toy")
    assert (found.data, found.kind, found.known_words) == ("toy", "classifier", "")
    assert {name: (one.of, one.rows) for name, one in found.quantities.items()} == {
        "feature 0": ("inputs", 600),
        "feature 1": ("inputs", 600),
        "feature 2": ("inputs", 600),
        "confidence": ("predictions", 200),
    }
    assert len(found.classes) == 4
    assert sum(found.classes) == 200


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    path = classifier(tmp_path)
    first, second = (reference_of(path, ROWS, held_out=ROWS, data="toy") for _ in range(2))
    assert first.content() == second.content()


def test_of_many_rows_some_are_measured_from_the_first_to_the_last(tmp_path: Path) -> None:
    rows = np.zeros((4 * MOST_ROWS, 3), np.float32)
    rows[:, 0] = np.arange(len(rows))
    found = reference_of(classifier(tmp_path), rows, held_out=rows, data="toy")
    first = found.quantities["feature 0"]
    assert first.rows == MOST_ROWS == sum(found.classes)
    assert first.edges[0] == pytest.approx(len(rows) / 10, rel=0.01)
    assert first.edges[-1] == pytest.approx(len(rows) * 0.9, rel=0.01)


def test_a_row_without_a_finite_answer_is_not_measured(tmp_path: Path) -> None:
    rows = ROWS.copy()
    rows[::2] = np.nan
    found = reference_of(classifier(tmp_path), ROWS, held_out=rows, data="toy")
    assert found.quantities["confidence"].rows == 300
    rows[:] = np.nan
    with pytest.raises(InputError, match="gave no finite answer to 600 rows of toy"):
        reference_of(classifier(tmp_path), ROWS, held_out=rows, data="toy")


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="toy has no rows to measure"):
        reference_of(classifier(tmp_path), ROWS[:0], held_out=ROWS, data="toy")


def test_the_vocabulary_is_read_from_the_graph(tmp_path: Path) -> None:
    path = reader(tmp_path)
    assert known_words(onnx.load(path)) == WORDS
    training = np.array(["the good film", "dull"] * 50)
    held_out = np.array(["the great film"] * 40)
    found = reference_of(path, training, held_out=held_out, data="toy", known_words=WORDS)
    assert found.known_words.split() == list(WORDS)
    unknown = found.quantities[UNKNOWN_WORDS]
    assert (unknown.of, unknown.rows) == ("inputs", 40)
    assert unknown.edges[-1] == pytest.approx(1 / 3)
    assert found.quantities["words"].rows == 100
    assert found.kind == "other"
    assert "mean of found" in found.quantities
    DriftCheck(found).add(held_out, {"id": held_out, "found": np.ones((40, 6))})


def test_a_model_of_another_kind_has_no_vocabulary(tmp_path: Path) -> None:
    assert known_words(onnx.load(classifier(tmp_path))) == ()


def test_a_look_up_of_something_else_is_no_vocabulary(tmp_path: Path) -> None:
    path = reader(tmp_path)
    made = onnx.load(path)
    split = next(one for one in made.graph.node if one.op_type == "StringSplit")
    split.attribute.append(helper.make_attribute("delimiter", ","))
    assert known_words(made) == ()
