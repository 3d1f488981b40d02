from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from tiny_classifier import LABELS, METADATA, classifier, expected_scores, images
from tiny_kinds import (
    SENTIMENTS,
    TEXTS,
    WEIGHT,
    autoencoder,
    errors,
    features,
    halved,
    passing,
    positive,
    table_classifier,
    text_classifier,
)

import serving
from serving.errors import InputError, MissingInputError, ModelError, ProviderError
from serving.model import open_model
from serving.runtime.session import open_session
from serving.runtime.tensors import answer_in_batches


def saved(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    return path


def test_the_package_itself_opens_models(built_bundle: Path) -> None:
    assert serving.open_model is open_model
    assert serving.open_model(str(built_bundle)).labels == LABELS


def test_the_package_has_nothing_else() -> None:
    with pytest.raises(AttributeError, match="no attribute 'close_model'"):
        serving.close_model  # noqa: B018 - the access is the test


def test_a_bundle_answers_arrays(built_bundle: Path) -> None:
    rows = images(70)
    answer = open_model(built_bundle).predict(rows)
    expected = expected_scores(rows)
    assert len(answer) == 70
    assert answer.label_index.dtype == np.int64
    assert answer.label_index.tolist() == expected.argmax(axis=1).tolist()
    assert answer.label == [LABELS[index] for index in answer.label_index]
    assert answer.probabilities.dtype == answer.probability.dtype == np.float32
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(answer.probability, expected.max(axis=1), atol=1e-6)


@pytest.mark.parametrize("batch_rows", [1, 7, 70, 1000])
def test_the_batch_size_changes_nothing(model_file: Path, batch_rows: int) -> None:
    answer = open_model(model_file).predict(images(70), batch_rows=batch_rows)
    np.testing.assert_allclose(answer.scores, expected_scores(images(70)), atol=1e-6)


@pytest.mark.parametrize("rows", [1, 4, 6, 9])
def test_a_model_of_one_batch_size_takes_any_number_of_rows(tmp_path: Path, rows: int) -> None:
    model = open_model(saved(tmp_path, classifier(batch=4)))
    assert model.fixed_batch == 4
    answer = model.predict(images(rows))
    np.testing.assert_allclose(answer.probabilities, expected_scores(images(rows)), atol=1e-6)


def test_no_rows_no_answers(model_file: Path) -> None:
    answer = open_model(model_file).predict(images(0))
    assert (len(answer), answer.label, answer.scores.shape) == (0, [], (0, 3))


def test_rows_need_not_be_contiguous(model_file: Path) -> None:
    rows = np.asfortranarray(images(20))[::2]
    answer = open_model(model_file).predict(rows)
    np.testing.assert_allclose(answer.scores, expected_scores(images(20)[::2]), atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (images(2).astype(np.float32), "got float32 [2, 4, 5, 1]"),
        (images(2).transpose(0, 3, 1, 2), "got uint8 [2, 1, 4, 5]"),
        (images(2)[..., 0], "got uint8 [2, 4, 5]"),
        (images(2)[0], "got uint8 [4, 5, 1]"),
        (images(2).tolist(), "got a list, not a numpy array"),
        (np.array(3, np.uint8), "got uint8 []"),
    ],
)
def test_other_rows_are_refused(model_file: Path, rows: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        open_model(model_file).predict(rows)
    assert "takes uint8 [rows, 4, 5, 1], " + message in str(caught.value)


def test_without_labels_the_class_is_its_index(tmp_path: Path) -> None:
    answer = open_model(saved(tmp_path, classifier(metadata={}))).predict(images(9))
    assert answer.label == [str(index) for index in answer.label_index]
    assert answer.are_probabilities


def test_scores_are_not_called_probabilities(tmp_path: Path) -> None:
    model = open_model(saved(tmp_path, classifier(outputs=("logits",))))
    answer = model.predict(images(9))
    assert not answer.are_probabilities
    assert answer.label_index.tolist() == expected_scores(images(9)).argmax(axis=1).tolist()
    assert (answer.score == answer.scores.max(axis=1)).all()
    with pytest.raises(ModelError, match="no output named 'probabilities'"):
        _ = answer.probability


def test_any_single_table_holds_scores_by_the_users_word_alone(tmp_path: Path) -> None:
    path = saved(tmp_path, passing(TensorProto.DOUBLE, ["n", None]))
    assert open_model(path).kind == "other"
    answer = open_model(path, task="classification").predict(np.array([[1.0, 5.0, 2.0]]))
    assert (answer.label, answer.score.tolist()) == (["1"], [5.0])
    path = saved(tmp_path, passing(TensorProto.FLOAT, [None, 2], out_type=TensorProto.FLOAT16))
    half = open_model(path, task="classification")
    assert half.predict(np.array([[0.5, 0.25]], np.float32)).scores.dtype == np.float32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (passing(TensorProto.FLOAT, []), "has no batch axis"),
        (classifier(metadata=METADATA | {"ferry.labels": "cat"}), "not JSON"),
        (classifier(metadata=METADATA | {"ferry.labels": "[" * 100_000}), r"not JSON: '\[{60}'$"),
        (classifier(metadata=METADATA | {"ferry.labels": "[1, 2, 3]"}), "not a list of names"),
        (classifier(metadata=METADATA | {"ferry.labels": '["\\ud800"]'}), "not a list of names"),
        (classifier(metadata=METADATA | {"ferry.labels": '["a", "a", "b"]'}), "the same label"),
    ],
)
def test_what_cannot_be_served_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        open_model(saved(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (passing(TensorProto.FLOAT, ["n", 3], outputs=2), "is no classifier that ferry can read"),
        (passing(TensorProto.FLOAT, ["n", 3], out_type=TensorProto.INT64), "out0 int64"),
        (autoencoder(), "reconstruction float32 .*error float32"),
    ],
    ids=["two tables", "integers", "reconstruction"],
)
def test_what_is_no_classifier_classifies_nothing(
    tmp_path: Path, content: bytes, message: str
) -> None:
    model = open_model(saved(tmp_path, content))
    assert model.kind != "classifier"
    with pytest.raises(ModelError, match=message):
        model.predict(np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("batch_rows", [1, 7, 1000])
def test_a_reconstruction_answers_with_both_outputs(tmp_path: Path, batch_rows: int) -> None:
    model = open_model(saved(tmp_path, autoencoder()))
    answers = model.answers(images(20), batch_rows=batch_rows)
    assert (model.kind, list(answers)) == ("reconstruction", ["reconstruction", "error"])
    np.testing.assert_allclose(answers["reconstruction"], halved(images(20)), atol=1e-6)
    np.testing.assert_allclose(answers["error"], errors(images(20)), atol=1e-6)
    assert (answers["reconstruction"].dtype, answers["error"].shape) == (np.float32, (20,))


def test_a_reconstruction_of_rows_of_numbers_is_no_classifier(tmp_path: Path) -> None:
    """Its output looks like scores; the names say what it is."""
    infos = [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 3])]
    outputs = [
        helper.make_tensor_value_info("reconstruction", TensorProto.FLOAT, ["n", 3]),
        helper.make_tensor_value_info("error", TensorProto.FLOAT, ["n"]),
    ]
    nodes = [
        helper.make_node("Identity", ["rows"], ["reconstruction"]),
        helper.make_node("ReduceMax", ["rows"], ["error"], axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "g", infos, outputs)
    imports = [helper.make_opsetid("", 17)]
    content = helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()
    assert open_model(saved(tmp_path, content)).kind == "reconstruction"


def test_any_other_model_gives_its_outputs_as_they_are(tmp_path: Path) -> None:
    content = passing(TensorProto.INT64, ["n", 3, 2], outputs=2, out_type=TensorProto.INT32)
    model = open_model(saved(tmp_path, content))
    rows = np.arange(30).reshape(5, 3, 2)
    answers = model.answers(rows, batch_rows=2)
    assert (model.kind, list(answers)) == ("other", ["out0", "out1"])
    np.testing.assert_array_equal(answers["out1"], rows)
    assert answers["out1"].dtype == np.int32
    assert model.answers(rows[:0])["out0"].shape == (0, 3, 2)


def test_batches_must_answer_one_entry_a_row_of_one_shape() -> None:
    rows = {"x": np.zeros((3, 2))}
    with pytest.raises(ModelError, match=r"a\.onnx: output total has shape \[1\] for 3 rows"):
        answer_in_batches(lambda _: {"total": np.zeros(1)}, rows, 3, name="a.onnx")
    with pytest.raises(
        ModelError, match=r"a\.onnx: output y has another shape from batch to batch"
    ):
        answer_in_batches(
            lambda feeds: {"y": np.zeros((len(feeds["x"]), len(feeds["x"])))},
            rows,
            2,
            name="a.onnx",
        )


def test_batches_that_no_memory_holds() -> None:
    rows = {"x": np.zeros((3, 4), np.float32)}
    for size in (2**40, 2**62):
        with pytest.raises(ModelError, match=rf"a\.onnx takes batches of {size:,} rows: no memory"):
            answer_in_batches(dict, rows, 1, name="a.onnx", fixed=size)


def test_one_logit_and_two_probabilities(tmp_path: Path) -> None:
    rows = features(50)
    model = open_model(saved(tmp_path, table_classifier()))
    answer = model.predict(rows)
    expected = 1 / (1 + np.exp(-(rows @ WEIGHT)[:, 0]))
    np.testing.assert_allclose(answer.probabilities[:, 1], expected, atol=1e-6)
    assert answer.label == ["yes" if p > 0.5 else "no" for p in expected]
    assert model.answers(rows)["logits"].shape == (50, 1)


@pytest.mark.parametrize("dtype", [np.str_, object])
def test_texts_are_classified(tmp_path: Path, dtype: type) -> None:
    model = open_model(saved(tmp_path, text_classifier()))
    answer = model.predict(np.array(TEXTS, dtype), batch_rows=2)
    assert (model.kind, model.takes()) == ("classifier", "string [rows]")
    assert set(answer.labels) == set(SENTIMENTS)
    np.testing.assert_allclose(answer.probabilities[:, 1], positive(TEXTS), atol=1e-6)


@pytest.mark.parametrize("value", [3.5, None, b"bytes"])
def test_a_value_that_is_no_string_is_refused(tmp_path: Path, value: object) -> None:
    model = open_model(saved(tmp_path, text_classifier()))
    message = f"takes strings, value 1 of its input is a {type(value).__name__}"
    with pytest.raises(InputError, match=message):
        model.predict(np.array(["good", value], object))


def test_labels_that_are_not_as_many_as_the_scores(tmp_path: Path) -> None:
    model = open_model(
        saved(tmp_path, classifier(metadata=METADATA | {"ferry.labels": '["a", "b"]'}))
    )
    with pytest.raises(ModelError, match="has 2 labels and gives 3 scores"):
        model.predict(images(1))


def test_a_classes_axis_that_turns_out_to_be_one(tmp_path: Path) -> None:
    path = saved(tmp_path, passing(TensorProto.FLOAT, ["n", None]))
    model = open_model(path, task="classification")
    with pytest.raises(ModelError, match=r"has shape \[5, 1\]"):
        model.predict(np.zeros((5, 1), np.float32))


def test_two_inputs_cannot_be_fed(tmp_path: Path) -> None:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "ab"]
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["logits"])], "g", infos, [out])
    imports = [helper.make_opsetid("", 18)]
    content = helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()
    with pytest.raises(ModelError, match="has the inputs a, b; exactly one"):
        open_model(saved(tmp_path, content))


def test_strings_are_taken_as_numpy_gives_them(tmp_path: Path) -> None:
    """A table of numbers in words: the smallest model that takes text."""
    content = passing(TensorProto.STRING, ["n", 2])
    model = open_model(saved(tmp_path, content))
    assert model.takes() == "string [rows, 2]"
    for rows in (np.array([["1.5", "4"]]), np.array([["1.5", "4"]], dtype=object)):
        assert model.answers(rows)["out0"].tolist() == [[1.5, 4.0]]
    with pytest.raises(InputError, match="takes string"):
        model.answers(np.array([[1.5, 4.0]]))


def test_paths_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="should be a bundle or an ONNX file"):
        open_model(tmp_path / "none")
    with pytest.raises(MissingInputError, match="is not a bundle"):
        open_model(tmp_path)


def test_the_provider_and_the_threads_are_the_ones_asked_for(model_file: Path) -> None:
    assert open_model(model_file, threads=1).session.settings.threads == 1
    with pytest.raises(ProviderError):
        open_model(model_file, provider="qnn")


def test_the_session_is_of_the_checked_bytes(bundle: Path) -> None:
    model = open_model(bundle)
    assert model.session.sha256 == open_session(bundle / "model.onnx").sha256
