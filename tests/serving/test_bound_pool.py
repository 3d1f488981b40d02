import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from tiny_classifier import classifier, expected_scores, images
from tiny_kinds import autoencoder, passing, text_classifier

from serving.errors import InputError
from serving.model import open_model
from serving.runtime.binding import BoundPool, can_bind
from serving.runtime.session import open_session
from serving.runtime.settings import SessionSettings
from serving.runtime.tensors import TensorInfo

BOUND = SessionSettings(threads=1, parallel=2, binding=True)


def test_answers_are_those_of_unbound_calls_to_the_bit() -> None:
    session = open_session(classifier(), settings=BOUND)
    pool = BoundPool(session, 8)
    for seed in range(3):
        rows = np.random.default_rng(seed).integers(0, 256, (8, 4, 5, 1)).astype(np.uint8)
        bound, unbound = pool.run("images", rows), session.run({"images": rows})
        assert list(bound) == list(unbound)
        for name, values in unbound.items():
            np.testing.assert_array_equal(bound[name], values)


def test_an_answer_is_the_callers_own() -> None:
    pool = BoundPool(open_session(classifier(), settings=BOUND), 4)
    first = pool.run("images", images(8)[:4])["probabilities"]
    kept = first.copy()
    pool.run("images", images(8)[4:])
    np.testing.assert_array_equal(first, kept)


def test_more_threads_than_memory_get_their_own_answers() -> None:
    pool = BoundPool(open_session(classifier(), settings=BOUND), 2)
    batches = [images(400)[at : at + 2] for at in range(0, 400, 2)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda rows: pool.run("images", rows), batches))
    scores = np.concatenate([one["probabilities"] for one in found])
    np.testing.assert_allclose(scores, expected_scores(images(400)), atol=1e-6)


def test_a_refused_batch_gives_its_memory_back() -> None:
    pool = BoundPool(open_session(classifier(), settings=BOUND), 2)
    for _ in range(5):
        with pytest.raises(InputError, match="refused its input"):
            pool.run("images", np.zeros((2, 4, 5, 1), np.float32))
    assert pool.run("images", images(2))["logits"].shape == (2, 3)


@pytest.mark.parametrize(
    ("content", "can"),
    [
        (classifier(), True),
        (classifier(batch=4), True),
        (autoencoder(), True),
        (text_classifier(), False),
        (passing(TensorProto.FLOAT, ["n", None]), False),
        (passing(TensorProto.FLOAT, []), False),
    ],
    ids=["classifier", "fixed batch", "autoencoder", "texts", "free axis", "no axis"],
)
def test_what_can_be_bound(content: bytes, can: bool) -> None:
    assert can_bind(open_session(content, threads=1)) == can


def test_what_is_no_array_cannot_be_bound() -> None:
    session = open_session(classifier(), threads=1)
    table = TensorInfo(name="map", dtype="seq(map(int64,tensor(float)))", shape=("n",))
    assert not can_bind(dataclasses.replace(session, outputs=(*session.outputs, table)))


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 100])
def test_a_model_binds_full_batches_and_no_others(model_file: Path, rows: int) -> None:
    model, plain = open_model(model_file, settings=BOUND), open_model(model_file, threads=1)
    assert model.bound is not None
    assert model.bound.batch_size == 32
    found, expected = model.answers(images(rows)), plain.answers(images(rows))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    np.testing.assert_array_equal(
        model.predict(images(rows), batch_rows=7).scores,
        plain.predict(images(rows), batch_rows=7).scores,
    )


def test_a_model_of_texts_runs_unbound(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(text_classifier())
    model = open_model(tmp_path / "m.onnx", settings=BOUND)
    assert model.bound is None
    assert len(model.predict(np.array(["good", "bad"] * 40))) == 80
