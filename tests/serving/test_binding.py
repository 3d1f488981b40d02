"""Bound memory gives the answers of a plain run, and only what can be bound is."""

import numpy as np
import pytest
import tiny_onnx
from odd_models import reshaping_to_two_rows
from tiny_kinds import TEXTS, text_classifier

from serving.errors import InputError
from serving.runtime.binding import bind
from serving.runtime.providers import PROVIDERS
from serving.runtime.session import open_session, usable_providers

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

    content = tiny_onnx.linear(["batch", 16])
    reason = usable_providers(content).get("cuda", "not part of this onnxruntime")
    if reason:
        pytest.skip(f"cuda: {reason}")
    settings = parse_settings(["binding=on", graph], SessionSettings(threads=1))
    session = session_of(provider="cuda", settings=settings)
    bound = bind(session, {"inputs": ROWS})
    assert set(session.proof.nodes) == {PROVIDERS["cuda"]}
    expected = session_of().run({"inputs": ROWS})["logits"]
    for _ in range(3):
        np.testing.assert_allclose(bound.run()["logits"], expected, atol=1e-4)
