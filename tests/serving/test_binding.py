"""Bound memory gives the answers of a plain run, and only what can be bound is."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny_onnx
from odd_models import reshaping_to_two_rows
from onnx import TensorProto
from tiny_classifier import classifier, expected_scores, images
from tiny_kinds import TEXTS, autoencoder, passing, text_classifier

from serving.errors import InputError
from serving.model import open_model
from serving.runtime.binding import BoundPool, bind, can_bind
from serving.runtime.providers import PROVIDERS
from serving.runtime.session import open_session, usable_providers
from serving.runtime.settings import SessionSettings
from serving.runtime.tensors import TensorInfo

ROWS = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32)


def session_of(content=None, **options):
    return open_session(content or tiny_onnx.linear(["batch", 16]), **options)


def test_the_answers_are_those_of_a_plain_run():
    session = session_of(threads=1)
    bound = bind(session, {"inputs": ROWS})
    np.testing.assert_array_equal(bound.run()["logits"], session.run({"inputs": ROWS})["logits"])


def test_what_is_written_into_the_inputs_is_what_the_next_call_reads():
    session = session_of(threads=1)
    bound = bind(session, {"inputs": ROWS})
    first = bound.run()["logits"].copy()
    bound.inputs["inputs"][:] = 2 * ROWS
    np.testing.assert_allclose(bound.run()["logits"], 2 * first, rtol=1e-5)
    assert bound.run()["logits"] is bound.outputs["logits"]


def test_the_memory_is_its_own():
    rows = ROWS.copy()
    bound = bind(session_of(), {"inputs": rows})
    first = bound.run()["logits"].copy()
    rows[:] = 0
    np.testing.assert_array_equal(bound.run()["logits"], first)


def test_rows_that_are_not_contiguous_are_bound_all_the_same():
    session = session_of()
    columns = np.asfortranarray(ROWS)
    bound = bind(session, {"inputs": columns})
    np.testing.assert_array_equal(bound.run()["logits"], session.run({"inputs": ROWS})["logits"])


def test_texts_have_no_memory_to_bind():
    session = open_session(text_classifier())
    feeds = {session.inputs[0].name: np.array(TEXTS[:2], dtype=object)}
    with pytest.raises(InputError, match=r"holds texts, which cannot be bound: use binding=off"):
        bind(session, feeds)


def test_what_the_model_does_not_take_is_refused():
    session = session_of(reshaping_to_two_rows())
    with pytest.raises(InputError, match="refused its input"):
        bind(session, {"inputs": np.zeros((3, 4), np.float32)})


@pytest.mark.gpu
@pytest.mark.parametrize("graph", ["cuda_graph=on", "cuda_graph=off"])
def test_memory_of_a_gpu_is_bound(graph):
    from serving.runtime.settings import SessionSettings, parse_settings

    reason = usable_providers().get("cuda", "not part of this onnxruntime")
    if reason:
        pytest.skip(f"cuda: {reason}")
    settings = parse_settings(["binding=on", graph], SessionSettings(threads=1))
    session = session_of(provider="cuda", settings=settings)
    bound = bind(session, {"inputs": ROWS})
    assert set(session.proof.nodes) == {PROVIDERS["cuda"]}
    expected = session_of().run({"inputs": ROWS})["logits"]
    for _ in range(3):
        np.testing.assert_allclose(bound.run()["logits"], expected, atol=1e-4)


@pytest.mark.gpu
def test_a_captured_graph_is_of_one_binding_alone():
    if reason := usable_providers().get("cuda", "not part of this onnxruntime"):
        pytest.skip(f"cuda: {reason}")
    settings = SessionSettings(threads=1, binding=True, cuda_graph=True)
    session, cpu = session_of(provider="cuda", settings=settings), session_of()
    bindings = [bind(session, {"inputs": rows}) for rows in (ROWS, ROWS[:2], ROWS)]
    for bound in (*bindings, *reversed(bindings)):
        rows = bound.inputs["inputs"]
        rows += 1
        expected = cpu.run({"inputs": rows})["logits"]
        np.testing.assert_allclose(bound.run()["logits"], expected, atol=1e-4)
        unbound = session.run({"inputs": rows[:1]})["logits"]
        np.testing.assert_allclose(unbound, expected[:1], atol=1e-4)


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


@pytest.mark.parametrize("rows", [0, 31, 32, 100])
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
