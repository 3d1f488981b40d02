"""Values as numbers: what is done to many at once is what is done to each by itself."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.inputs.tables.columns import Numbers, shown


def number(name: str, value: Any, dtype: np.dtype[Any]) -> float | int:
    return Numbers(dtype).one(name, value)


def number_rows(records: Any, dtype: np.dtype[Any]) -> np.ndarray | None:
    return Numbers(dtype).records(records)


def convert(values: np.ndarray, dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
    return Numbers(dtype).convert(values)


DTYPES = [np.dtype(name) for name in ("float32", "float64", "float16", "int64", "uint8", "int8")]
VALUES = st.one_of(
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.integers(-300, 300),
    st.booleans(),
    st.none(),
    st.text(max_size=5),
    st.floats().map(str),
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from([" 7 ", "+7", "1_000", "1e3", "-0", "0x10", "nan", "٣", "3.0", "9" * 5000]),
)


def one_by_one(values: list[Any], dtype: np.dtype[Any]) -> list[float | int | None]:
    made: list[float | int | None] = []
    for value in values:
        try:
            made.append(number("a", value, dtype))
        except ValueError:
            made.append(None)
    return made


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=4), st.sampled_from(DTYPES))
def test_records_at_once_are_records_one_by_one(
    records: list[tuple[Any, Any]], dtype: np.dtype[Any]
) -> None:
    rows = number_rows(records, dtype)
    each = [one_by_one(list(record), dtype) for record in records]
    if rows is not None:
        assert rows.dtype == dtype
        np.testing.assert_array_equal(rows, np.array(each, dtype))


def test_what_is_no_number_is_named() -> None:
    with pytest.raises(ValueError, match=r"^column 'a' is nan, not a number; --missing nan reads"):
        number("a", math.nan, DTYPES[0])
    with pytest.raises(ValueError, match=r"^column 'b' is 300, which is no uint8$"):
        number("b", 300, np.dtype(np.uint8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [str, int])
def test_plain_numbers_are_done_at_once(dtype: np.dtype[Any], kind: type) -> None:
    rows = number_rows([[kind(1), kind(2)], [kind(3), kind(40)]], dtype)
    assert rows is not None
    assert rows.tolist() == [[1, 2], [3, 40]]


@given(st.lists(st.floats(), max_size=20), st.sampled_from(DTYPES))
def test_floats_of_a_column(values: list[float], dtype: np.dtype[Any]) -> None:
    column = np.array(values, np.float64)
    rows, good = convert(column, dtype)
    each = one_by_one(values, dtype)
    assert good.tolist() == [one is not None for one in each]
    kept = np.array([one for one in each if one is not None], dtype)
    np.testing.assert_array_equal(rows[good], kept)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), st.sampled_from(DTYPES))
def test_whole_numbers_of_a_column(values: list[int], dtype: np.dtype[Any]) -> None:
    rows, good = convert(np.array(values, np.int64), dtype)
    each = one_by_one(values, dtype)
    assert good.tolist() == [one is not None for one in each]
    kept = np.array([one for one in each if one is not None], dtype)
    np.testing.assert_array_equal(rows[good], kept)


def test_the_limits_of_whole_numbers() -> None:
    int64 = np.dtype(np.int64)
    assert convert(np.array([2.0**63, -(2.0**63)]), int64)[1].tolist() == [False, True]
    unsigned = np.array([2**63, 2**63 - 1], np.uint64)
    assert convert(unsigned, int64)[1].tolist() == [False, True]
    assert convert(np.array([-1, 256, 255]), np.dtype(np.uint8))[1].tolist() == [
        False,
        False,
        True,
    ]
    assert number("a", "-9007199254740993", int64) == -9007199254740993
    assert number("a", "9007199254740993", int64) == 9007199254740993


def test_the_same_dtype_is_not_copied() -> None:
    for values in (np.ones(3, np.float32), np.ones(3, np.uint8)):
        assert convert(values, values.dtype)[0] is values
    assert convert(np.array([1, math.inf, math.nan]), np.dtype(np.float64))[1].tolist() == [
        True,
        False,
        False,
    ]


def test_a_value_in_a_message_is_short() -> None:
    assert shown(None) == shown("") == "empty"
    assert shown("x" * 99) == "'" + "x" * 36 + "..."
    assert len(shown(list(range(99)))) == 40
