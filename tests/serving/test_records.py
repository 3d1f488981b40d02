from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pytest

from serving.errors import IntegrityError
from serving.files import read_record


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    size: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    axes: tuple[int | str | None, ...]
    parts: Mapping[str, Inner]
    items: tuple[Inner, ...]


GOOD = {
    "name": "a",
    "axes": ["batch", 3, None],
    "parts": {"p": {"size": 1}},
    "items": [{"size": 2.5}],
}


def test_a_record_comes_back_with_its_types() -> None:
    assert read_record(Outer, GOOD, "file") == Outer(
        name="a", axes=("batch", 3, None), parts={"p": Inner(size=1)}, items=(Inner(size=2.5),)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 1}, "file.name must be str, got 1"),
        ({"name": None}, "file.name must be str, got None"),
        ({"axes": [1.5]}, "file.axes[0] must be int or str or NoneType, got 1.5"),
        ({"axes": {}}, "file.axes must be a list, got {}"),
        ({"parts": [1]}, "file.parts must be a JSON object, got [1]"),
        ({"parts": {"p": 3}}, "file.parts.p must be a JSON object, got 3"),
        ({"items": [{"size": True}]}, "file.items[0].size must be float, got True"),
        ({"items": [{"size": 1, "more": 2}]}, "file.items[0] has an unknown key 'more'"),
        ({"items": [{}]}, "file.items[0] lacks the key 'size'"),
        ({"name": ["x" * 100]}, "..."),
    ],
)
def test_what_is_wrong_is_named_by_its_path(changes: dict[str, object], message: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        read_record(Outer, GOOD | changes, "file")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 120


@dataclass(frozen=True)
class Chosen:
    kind: Literal["NaN", "infinity"]


def test_a_literal_text_is_one_of_its_words() -> None:
    assert read_record(Chosen, {"kind": "infinity"}, "file") == Chosen("infinity")
    for wrong in ("nan", 1, None):
        with pytest.raises(IntegrityError, match=r"file\.kind must be NaN or infinity"):
            read_record(Chosen, {"kind": wrong}, "file")
