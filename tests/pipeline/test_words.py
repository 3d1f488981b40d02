"""The words of Python are those of the exported graph."""

import sys

import numpy as np
import pytest
from onnx import TensorProto, helper

from pipeline.records.ready import words
from serving.runtime.session import Session, open_session

CHARACTERS = " \t\n\r\v\f\u0085\u00a0\u2003\u3000a.é\U0001f600"


@pytest.fixture(scope="module")
def split() -> Session:
    """StringSplit as the exported graph has it: no delimiter."""
    graph = helper.make_graph(
        [helper.make_node("StringSplit", ["text"], ["words", "counts"])],
        "split",
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["batch"])],
        [
            helper.make_tensor_value_info("words", TensorProto.STRING, ["batch", "most"]),
            helper.make_tensor_value_info("counts", TensorProto.INT64, ["batch"]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return open_session(model.SerializeToString())


def split_by_the_graph(session: Session, texts: list[str]) -> list[list[str]]:
    found = session.run({"text": np.array(texts, dtype=object)})
    rows = zip(found["words"], found["counts"], strict=True)
    return [row[:count].tolist() for row, count in rows]


def test_several_blanks_are_one_and_those_at_the_ends_none() -> None:
    assert words("  two   words ") == ["two", "words"]
    assert words("") == words("   ") == []


def test_a_blank_alone_splits_words() -> None:
    assert words("a\tb c\nd\u00a0e ") == ["a\tb", "c\nd\u00a0e"]


def test_texts_by_chance_are_split_as_the_graph_does(split: Session) -> None:
    random = np.random.default_rng(1)
    texts = ["".join(random.choice(list(CHARACTERS), size)) for size in np.arange(2000) % 12]
    assert split_by_the_graph(split, texts) == [words(text) for text in texts]
    assert len({len(words(text)) for text in texts}) > 4


def test_no_other_character_splits_in_the_graph(split: Session) -> None:
    every = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    blanks = [one for one in every if one.isspace() or not one.isprintable()][:5000]
    texts = [f"a{one}b" for one in blanks]
    assert "a\tb" in texts
    assert split_by_the_graph(split, texts) == [words(text) for text in texts]
