"""Sentences become the same ids in Python and inside an exported graph."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from pipeline.exporting.tokenizer import prepend
from pipeline.models.parts.vocabulary import PADDING, UNKNOWN, Vocabulary
from serving.runtime.session import Session, open_session

KNOWN = Vocabulary(("the", "film", "is", "n't", "café", "."), 5)


def session_of(vocabulary: Vocabulary) -> Session:
    """A graph that does nothing but look the words up."""
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", vocabulary.length])
    out = helper.make_tensor_value_info("out", TensorProto.INT64, ["batch", vocabulary.length])
    node = helper.make_node("Identity", ["ids"], ["out"])
    graph = helper.make_graph([node], "g", [ids], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    prepend(model, vocabulary)
    onnx.checker.check_model(model, full_check=True)
    return open_session(model.SerializeToString(), threads=1)


@pytest.fixture(scope="module")
def session() -> Session:
    return session_of(KNOWN)


def looked_up(session: Session, sentences: list[str]) -> np.ndarray:
    return session.run({"text": np.array(sentences, dtype=object)})["out"]


def test_words_are_numbered_by_frequency_behind_the_reserved_ids() -> None:
    assert KNOWN.encode(["the film is dull"]).tolist() == [[2, 3, 4, UNKNOWN, PADDING]]


def test_what_is_too_long_is_cut_and_what_is_short_filled_up() -> None:
    ids = KNOWN.encode(["the the the the the film", "", "   "])
    assert ids.dtype == np.int64
    assert ids.tolist() == [[2] * 5, [PADDING] * 5, [PADDING] * 5]


SENTENCES = [
    "the film is n't dull .",
    "",
    " ",
    "  the   café  ",
    "The",
    "the\tfilm",
    "the\nfilm is",
    "the\u00a0film",
    "\u3000the film",
    "\x00",
    "word " * 10_000,
    "é" * 300,
    "👍 the 👍🏽",
]


def test_a_batch_is_as_its_rows(session: Session) -> None:
    found = looked_up(session, SENTENCES)
    assert found.tolist() == KNOWN.encode(SENTENCES).tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet=st.sampled_from("the film\t.é\u00a0x"), max_size=40), max_size=6))
def test_any_sentences(sentences: list[str]) -> None:
    session = session_of(KNOWN)
    if sentences:
        assert looked_up(session, sentences).tolist() == KNOWN.encode(sentences).tolist()


def test_only_as_many_words_are_known_as_the_table_holds() -> None:
    class Network:
        vocabulary, length = 4, 3

    assert Vocabulary.of(("a", "b", "c"), Network()) == Vocabulary(("a", "b"), 3)
