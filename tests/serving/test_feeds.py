"""What models are fed for timing: made up by what they declare, or real rows of a file."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_kinds import TEXTS

from serving.errors import InputError
from serving.measuring.feeds import feeds_of, fixed_batch, random_feeds, read_rows
from serving.runtime.session import probe
from serving.runtime.tensors import TensorInfo


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    return path


def test_text_cannot_be_made_up():
    info = TensorInfo(name="sentences", dtype="object", shape=("batch",))
    with pytest.raises(InputError, match="'sentences' takes text"):
        random_feeds([info], 2)


def test_the_first_rows_are_fed_over_again_to_fill_a_batch(reviews):
    info = TensorInfo(name="text", dtype="object", shape=("batch",))
    rows = read_rows(reviews, [info], Path("m.onnx"), 3)
    assert rows["text"].tolist() == TEXTS[:3]
    (batch,) = feeds_of([info], rows, 7).values()
    assert batch.tolist() == [*TEXTS[:3], *TEXTS[:3], TEXTS[0]]
    pixels = TensorInfo(name="pixels", dtype="uint8", shape=("n", 2))
    np.save(reviews.with_name("p.npy"), np.arange(6, dtype=np.uint8).reshape(3, 2))
    rows = read_rows(reviews.with_name("p.npy"), [pixels], Path("m.onnx"), 128)
    assert feeds_of([pixels], rows, 4)["pixels"].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]


def test_feeds_are_seeded_and_cover_the_range_of_their_dtype():
    infos = [
        TensorInfo(name="pixels", dtype="uint8", shape=("n", 32, 32, 3)),
        TensorInfo(name="tokens", dtype="int64", shape=("n", 16)),
        TensorInfo(name="table", dtype="float32", shape=("n", 7)),
        TensorInfo(name="scale", dtype="float16", shape=()),
    ]
    first, second = random_feeds(infos, 5), random_feeds(infos, 5)
    for info in infos:
        np.testing.assert_array_equal(first[info.name], second[info.name])
        assert first[info.name].dtype == info.dtype
    assert first["pixels"].shape == (5, 32, 32, 3)
    assert (first["pixels"].min(), first["pixels"].max()) == (0, 255)
    assert set(first["tokens"].ravel()) == {0, 1}
    assert first["scale"].shape == ()
    assert not np.array_equal(random_feeds(infos, 5, seed=2)["pixels"], first["pixels"])


def test_the_batch_is_free_when_one_input_says_so():
    table = TensorInfo(name="table", dtype="float32", shape=("n", 7))
    constant = TensorInfo(name="constant", dtype="float32", shape=(3, 7))
    assert fixed_batch([table, constant]) is None
    assert fixed_batch([constant]) == 3
    assert fixed_batch([]) is None


def test_the_probe_is_what_the_helper_makes_and_runs():
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["inputs", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["outputs"]),
        ],
        "probe",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, [1, 4])],
        [
            numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight"),
            numpy_helper.from_array(np.zeros(4, np.float32), "bias"),
        ],
    )
    opset = [helper.make_opsetid("", 13)]
    made = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="ferry")
    assert made.SerializeToString(deterministic=True) == probe()
    assert len(probe()) < 500
