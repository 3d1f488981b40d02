"""Hostile rows, batches without rows and rows beside others: what is answered and what breaks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
import proof_models as small
import pytest
from onnx import TensorProto, helper
from small_models import product_net, rows_for

from pipeline.proof.differences import DecisionRule
from pipeline.proof.empty import ask_nothing
from pipeline.proof.hostile import failing, hostile_feeds, hostile_rows, zero_rows
from pipeline.proof.measure import beside_others, keep, sample
from pipeline.proof.prove import ask_onnx_reference
from pipeline.proof.rows import Rows
from pipeline.proof.sides import ModelSide
from pipeline.quantization.apply import Quantizer
from pipeline.quantization.recipes import parse
from pipeline.records.parity import BatchDifference, HostileRow
from serving.errors import InputError
from serving.runtime.tensors import TensorInfo

USUAL = {"logits": 10.0, "probabilities": 1.0}
LIMITS = dict.fromkeys(USUAL, 1e-3)
EXAMPLE = {"features": np.ones((1, small.FEATURES), np.float32)}
ROWS = small.rows(labelled=False)
FLOATS = [
    *("zeros", "one at its largest", "noise", "denormals", "all at their largest"),
    *("all at their least", "10 times the range"),
]


def rows_of(**inputs: np.ndarray) -> Rows:
    return Rows(name="rows", inputs=inputs, labels=None)


@dataclass(frozen=True)
class Answering:
    """A side that answers what a function says."""

    answers: Mapping[str, float | str]
    name: str = "answering"
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    sha256: str = ""

    def answer(self, feeds: Mapping[str, np.ndarray], _batch_size: int) -> dict[str, np.ndarray]:
        row = feeds["features"]
        kind = "zeros" if not row.any() else "others"
        answer = self.answers.get(kind, 0.0)
        if isinstance(answer, str):
            raise InputError(answer)
        return {"values": np.full((len(row), 2), answer)}


def test_images_get_ends_a_pixel_and_noise() -> None:
    feeds = hostile_feeds(rows_of(images=np.full((3, 5, 5, 1), 7, np.uint8)))
    assert list(feeds) == ["zeros", "all 255", "one hot pixel", "noise"]
    assert not feeds["zeros"]["images"].any()
    assert (feeds["all 255"]["images"] == 255).all()
    assert feeds["one hot pixel"]["images"].sum() == 255
    assert len(np.unique(feeds["noise"]["images"])) > 15
    assert all(one["images"].dtype == np.uint8 for one in feeds.values())
    assert all(one["images"].shape == (1, 5, 5, 1) for one in feeds.values())


def test_floats_are_hostile_within_their_own_range() -> None:
    values = np.array([[0, 10, 5, 9], [1, 30, 5, 7], [np.nan, 20, 5, np.inf]], np.float32)
    feeds = {name: one["x"] for name, one in hostile_feeds(rows_of(x=values)).items()}
    assert list(feeds) == FLOATS
    assert feeds["all at their least"].tolist() == [[0, 10, 5, 7]]
    assert feeds["all at their largest"].tolist() == [[1, 30, 5, 9]]
    assert feeds["one at its largest"].tolist() == [[0, 10, 5, 9]]
    assert feeds["10 times the range"].tolist() == [[5.5, 120, 5, 18]], "of 0.5, 20, 5 and 8"
    noise = feeds["noise"]
    assert ((noise >= [0, 10, 5, 7]) & (noise <= [1, 30, 5, 9])).all()
    assert (feeds["denormals"] > 0).all()
    assert (feeds["denormals"] < np.finfo(np.float32).tiny).all()
    assert all(one.dtype == np.float32 for one in feeds.values())


def test_a_wide_range_of_small_floats_does_not_overflow() -> None:
    feeds = hostile_feeds(rows_of(x=np.array([[-6e4], [6e4]], np.float16)))
    assert feeds["10 times the range"]["x"].tolist() == [[65504]]
    nothing = hostile_feeds(rows_of(x=np.full((2, 1), np.nan, np.float32)))
    assert nothing["noise"]["x"].tolist() == [[0]]


def test_texts_get_none_and_far_too_much() -> None:
    feeds = hostile_feeds(rows_of(text=np.array(["fine"], object)))
    assert list(feeds) == ["empty text", "blanks", "odd letters", "10,000 words"]
    assert feeds["empty text"]["text"].tolist() == [""]
    assert len(feeds["10,000 words"]["text"][0].split()) == 10_000


def test_ids_are_not_looked_up_beyond_their_table() -> None:
    feeds = hostile_feeds(rows_of(ids=np.array([3, 4]), bytes=np.zeros((2, 1), np.uint8)))
    assert feeds["zeros"]["ids"].tolist() == [0]
    assert feeds["all 255"]["ids"].tolist() == [3]
    assert feeds["all 255"]["bytes"].tolist() == [[255]]


def test_noise_is_the_same_each_time() -> None:
    first, second = hostile_feeds(ROWS), hostile_feeds(ROWS)
    np.testing.assert_array_equal(first["noise"]["features"], second["noise"]["features"])


def test_the_same_model_passes_every_row() -> None:
    side = small.side(small.linear())
    rows = hostile_rows(side, side.at("none"), ROWS, LIMITS, USUAL)
    assert [row.name for row in rows] == FLOATS
    assert all(row.passed for row in rows)
    assert all(row.message == "" for row in rows)


def test_a_difference_that_only_a_hostile_row_shows() -> None:
    linear = small.side(small.linear())
    largest = float(np.abs(linear.answer(ROWS.inputs, 64)["logits"]).max())
    capped = small.side(small.capped(largest))
    rows = hostile_rows(linear, capped, ROWS, LIMITS, USUAL)
    ends = ["all at their largest", "all at their least"]
    assert [row.name for row in rows if not row.passed] == ends
    assert all(row.passed for row in hostile_rows(capped, capped, ROWS, LIMITS, USUAL))
    # Without a limit it is told and no failure.
    message = hostile_rows(linear, capped, ROWS, {}, USUAL)
    assert all(row.passed for row in message)
    assert max(row.max_abs_diff or 0 for row in message) > 1


def test_beyond_the_range_of_the_rows_nothing_fails() -> None:
    sides = small.side(small.linear()), small.side(small.clipped())
    rows = hostile_rows(*sides, ROWS, LIMITS, USUAL)
    beyond = rows[-1]
    assert [row.name for row in rows if not row.gated] == [beyond.name] == ["10 times the range"]
    assert (beyond.passed, beyond.limit) == (True, None)
    assert beyond.max_abs_diff is not None
    assert beyond.max_abs_diff > 10
    assert list(failing(rows)) == []


def test_what_was_calibrated_is_not_held_to_the_ends_of_its_ranges() -> None:
    model, rows = product_net(), rows_for(product_net(), 256)
    whole = small.side(model)
    int8 = small.side(Quantizer(model, rows).apply(parse("static-u8s8")))
    wanted, found = (one.answer(rows.inputs, 64)["logits"] for one in (whole, int8))
    apart, largest = float(np.abs(wanted - found).max()), float(np.abs(wanted).max())
    asked = hostile_rows(whole, int8, rows, {"logits": 1.5 * apart}, {"logits": largest})
    assert all(row.passed for row in asked)
    assert [row.name for row in asked if not row.gated] == FLOATS[-3:]
    assert max(row.max_abs_diff or 0 for row in asked) > 5 * apart
    shifted = rows_of(features=rows.inputs["features"] + 9)
    asked = hostile_rows(whole, int8, shifted, {"logits": 1.5 * apart}, {"logits": largest})
    ungated = {row.name for row in asked if not row.gated}
    assert ungated == {"zeros", "denormals", *FLOATS[-3:]}, "none of the rows is near zero"


def rounded_to_half(made: onnx.ModelProto) -> onnx.ModelProto:
    """With logits that 16 bits must hold."""
    made.graph.node[0].output[0] = "wide"
    nodes = [
        helper.make_node("Cast", ["wide"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Max", ["half", "low"], ["same"]),
        helper.make_node("Cast", ["same"], ["logits"], to=TensorProto.FLOAT),
    ]
    for at, node in enumerate(nodes, start=1):
        made.graph.node.insert(at, node)
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.float16(-np.inf), "low"))
    return made


def test_half_precision_that_overflows_at_the_ends_fails_without_a_limit() -> None:
    largest = float(np.abs(ROWS.inputs["features"] @ small.weights()).max())
    weights = small.weights() * np.float32(5e4 / largest)
    half = small.side(rounded_to_half(small.linear(weights)), level="none")
    whole, limits = small.side(small.linear(weights)), dict.fromkeys(USUAL, 1e3)
    asked = hostile_rows(whole, half, ROWS, limits, USUAL)
    rows = {row.name: row for row in asked}
    ends = rows["all at their largest"]
    assert (ends.gated, ends.passed) == (False, False)
    assert ends.message == "NaN or infinite on one side alone"
    assert rows["10 times the range"].passed
    assert rows["noise"].passed


def test_answers_of_two_shapes_are_told() -> None:
    class Chosen(Answering):
        def answer(self, feeds: Mapping[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
            return {"values": super().answer(feeds, size)["values"][:, :1]}

    rows = hostile_rows(Answering({}), Chosen({}), ROWS, {"values": 1.0}, {})
    assert {row.message for row in rows} == {"answered in two shapes"}


@pytest.mark.parametrize(
    ("left", "right", "passed", "message"),
    [
        (np.nan, np.nan, True, "NaN or infinite on both sides"),
        (np.inf, np.inf, True, "NaN or infinite on both sides"),
        (np.inf, -np.inf, False, "NaN or infinite on one side alone"),
        (1.0, np.nan, False, "NaN or infinite on one side alone"),
        (np.nan, 1.0, False, "NaN or infinite on one side alone"),
        (1.0, np.inf, False, "NaN or infinite on one side alone"),
        ("too odd", "odd", True, "refused by both"),
        ("too odd", 1.0, False, "refused by one side: too odd"),
        (1.0, "too odd", False, "refused by one side: too odd"),
        (1.0, 1.5, True, ""),
        (1.0, 3.5, False, ""),
    ],
)
def test_what_is_no_number_must_be_so_on_both_sides(
    left: float | str, right: float | str, passed: bool, message: str
) -> None:
    rows = hostile_rows(
        Answering({"zeros": left}), Answering({"zeros": right}), ROWS, {"values": 2.0}, {}
    )
    zeros = next(row for row in rows if row.name == "zeros")
    assert zeros.passed is passed
    assert zeros.message == message
    assert all(row.passed for row in rows if row.name != "zeros")


def test_the_worst_of_what_fails_is_named_and_all_that_is_odd() -> None:
    hostile = (
        HostileRow(name="zeros", passed=True, max_abs_diff=1e-6, limit=1e-4, message=""),
        HostileRow(name="noise", passed=False, max_abs_diff=3e-3, limit=2e-4, message=""),
        HostileRow(name="all 255", passed=False, max_abs_diff=5e-3, limit=3e-4, message=""),
        HostileRow(
            name="denormals", passed=False, max_abs_diff=None, limit=None, message="too small"
        ),
    )
    assert list(failing(hostile)) == [
        "5.0e-03 at the hostile row 'all 255', limit 3.0e-04",
        "hostile row 'denormals': too small",
    ]


def test_a_batch_without_rows_is_answered() -> None:
    assert zero_rows(small.side(small.linear()), EXAMPLE) == ("answered 0 rows", True)
    assert zero_rows(Answering({}), EXAMPLE) == ("answered 0 rows", True)


def test_a_batch_without_rows_may_be_refused_in_words() -> None:
    made = small.linear()
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    message, sane = zero_rows(small.side(made), EXAMPLE)
    assert sane
    assert message.startswith("refused: the model refused its input: ")
    assert zero_rows(Answering({"zeros": "none?"}), EXAMPLE) == ("refused: none?", True)


def test_an_answer_out_of_nothing_is_not_sane() -> None:
    class Inventing(Answering):
        def answer(self, feeds: Mapping[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
            return {"values": np.zeros((1, 2))}

    assert zero_rows(Inventing({}), EXAMPLE) == ("answered 1 rows", False)


def recurrent() -> onnx.ModelProto:
    """A GRU over three steps of two numbers."""
    generator = np.random.default_rng(0)
    nodes = [
        helper.make_node("Transpose", ["features"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["steps", "w", "r"], ["all", "last"], hidden_size=4),
        helper.make_node("Squeeze", ["last", "axis"], ["values"]),
    ]
    constants = {
        "w": generator.standard_normal((1, 12, 2)).astype(np.float32),
        "r": generator.standard_normal((1, 12, 4)).astype(np.float32),
        "axis": np.array([0], np.int64),
    }
    return small.model(
        nodes,
        {"features": (TensorProto.FLOAT, ["batch", 3, 2])},
        {"values": (TensorProto.FLOAT, ["batch", 4])},
        constants,
    )


def test_a_recurrent_layer_refuses_what_would_take_the_process_down() -> None:
    side = small.side(recurrent())
    example = {"features": np.ones((1, 3, 2), np.float32)}
    message, sane = zero_rows(side, example)
    assert message.startswith("refused: ")
    assert "needs at least one row" in message
    assert sane
    assert side.answer(example, 1)["values"].shape == (1, 4)


def test_bytes_that_are_no_model_are_refused_in_the_other_process() -> None:
    message, sane = ask_nothing(b"no model", "cpu", EXAMPLE)
    assert sane
    assert "refused: the model cannot be loaded" in message


def beside(side: ModelSide, rows: Rows, numbers: np.ndarray) -> BatchDifference:
    return beside_others(side, keep(side, rows, DecisionRule(near=None)), numbers)


def test_a_row_is_answered_alike_wherever_it_stands() -> None:
    found = beside(small.side(small.linear()), small.rows(40), sample(40, 9, 1))
    assert found.rows == 9
    assert found.max_abs_diff < 1e-5


def test_an_answer_that_depends_on_the_rows_beside_it_is_found() -> None:
    rows = small.rows(40)
    found = beside(small.side(small.less_the_mean()), rows, sample(40, 9, 1))
    assert found.max_abs_diff > 0.1
    assert found.max_scaled_diff > 0.1
    assert found.where.startswith("alone and ")
    assert found.where.endswith(" of 7")


def test_equal_rows_hide_nothing_of_nan() -> None:
    """NaN beside NaN is the same answer."""
    rows = rows_of(features=np.full((10, small.FEATURES), -1, np.float32))
    found = beside(small.side(small.logarithm()), rows, np.arange(10))
    assert found.max_abs_diff == 0


def test_a_sample_is_seeded_sorted_and_without_repeats() -> None:
    drawn = sample(1000, 64, 5)
    assert drawn.dtype == np.int64
    assert len(np.unique(drawn)) == 64
    assert (np.diff(drawn) > 0).all()
    assert drawn.tolist() == sample(1000, 64, 5).tolist() != sample(1000, 64, 6).tolist()
    assert sample(5, 64, 1).tolist() == [0, 1, 2, 3, 4]


def test_onnx_reference_agrees_with_both() -> None:
    side = small.side(small.linear())
    found = ask_onnx_reference(side, side, small.rows(3).slice(0, 3))
    assert found.skipped is None
    assert found.rows == 3
    assert found.to_model is not None
    assert found.to_model < 1e-5


def test_onnx_reference_tells_a_wrong_runtime_from_a_wrong_model() -> None:
    """The file means one thing, and its runtime and the reference answer another."""
    side = small.side(small.linear())
    lying = replace(side, content=small.linear(small.weights() * 2).SerializeToString())
    found = ask_onnx_reference(side, lying, small.rows(3).slice(0, 3))
    assert found.to_model is not None
    assert found.to_model > 0.5
    assert found.to_reference == pytest.approx(found.to_model)


def test_what_numpy_lacks_is_told() -> None:
    node = helper.make_node(
        "FusedGemm", ["features", "weight"], ["values"], domain="com.microsoft", activation="Relu"
    )
    made = small.model(
        [node],
        {"features": (TensorProto.FLOAT, ["batch", small.FEATURES])},
        {"values": (TensorProto.FLOAT, ["batch", small.CLASSES])},
        {"weight": small.weights()},
        domains=["com.microsoft"],
    )
    side = small.side(made)
    found = ask_onnx_reference(side, side, small.rows(3).slice(0, 3))
    assert found.to_model is None
    assert found.skipped is not None
    assert found.skipped.startswith("onnx.reference cannot run it: ")
    assert "FusedGemm" in found.skipped


def test_pytorch_has_no_operators_to_ask() -> None:
    found = ask_onnx_reference(Answering({}), Answering({}), EXAMPLE)
    assert found.skipped == "answering is no ONNX model"


def test_the_limit_grows_with_an_answer_that_is_larger_than_usual() -> None:
    """Rounding does; what is off by more than that still fails."""
    sides = Answering({"zeros": 5000.0}), Answering({"zeros": 5000.4})
    (zeros, *_) = hostile_rows(*sides, ROWS, {"values": 1e-3}, {"values": 5.0})
    assert zeros.passed
    assert zeros.limit == pytest.approx(1.0)
    (zeros, *_) = hostile_rows(*sides, ROWS, {"values": 1e-3}, {"values": 5000.0})
    assert not zeros.passed
    assert zeros.limit == pytest.approx(1e-3)
