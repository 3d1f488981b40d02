"""Inputs as a person writes them."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.exporting.signatures import (
    DTYPES,
    FreeAxis,
    InputSpec,
    agreed,
    example,
    parse_input,
    random_rows,
)
from serving.errors import InputError, MissingInputError, UnknownNameError, UsageError


def test_a_name_a_dtype_and_axes() -> None:
    spec = parse_input("pixels:float32[batch,3,224,224]")
    assert spec == InputSpec(name="pixels", dtype="float32", axes=(3, 224, 224))


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("float32[2,3,8,8]", (3, 8, 8)),
        ("float32[n]", ()),
        ("int64[batch,length]", (FreeAxis(name="length"),)),
        ("uint8[ batch, 4, width ,1 ]", (4, FreeAxis(name="width"), 1)),
    ],
)
def test_the_first_axis_is_the_batch_whatever_it_is_called(
    text: str, axes: tuple[int | FreeAxis, ...]
) -> None:
    spec = parse_input(text)
    assert spec.name is None
    assert spec.axes == axes


@pytest.mark.parametrize(
    "text", ["x", "float32", "float32[2,3", "a:b:float32[2]", "float32[[2]]", "[2,3]", "x.txt"]
)
def test_another_form_is_refused_with_the_right_one(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_input(text)
    assert repr(text) in str(caught.value)
    assert "write NAME:float32[batch,3,224,224]" in str(caught.value)


@pytest.mark.parametrize("axis", ["0", "-1", "1.5", "", "2x"])
def test_an_axis_is_a_name_or_a_number(axis: str) -> None:
    with pytest.raises(UsageError, match=r"must be a name or a number of 1 or more, or .* got"):
        parse_input(f"float32[batch,{axis}]")


@pytest.mark.parametrize(
    ("text", "least", "most", "example"),
    [
        ("t", None, None, 8),
        ("t=1..512", 1, 512, 8),
        ("t=..5", None, 5, 5),
        ("t = 32..", 32, None, 32),
        ("t=1..2", 1, 2, 2),
    ],
)
def test_an_axis_of_a_range(text: str, least: int | None, most: int | None, example: int) -> None:
    (axis,) = parse_input(f"float32[batch,{text}]").axes
    assert axis == FreeAxis(name="t", least=least, most=most)
    assert isinstance(axis, FreeAxis)
    assert axis.example == example
    assert str(axis) == text.replace(" ", "")
    assert example in axis
    assert (least or 1) - 1 not in axis
    assert most is None or most + 1 not in axis


@pytest.mark.parametrize("text", ["t=0..5", "t=5..5", "t=9..5", "t=..1", "t=..0"])
def test_a_range_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="a range goes from 1 or more to more than that, got"):
        parse_input(f"float32[batch,{text}]")


@pytest.mark.parametrize("text", ["b=1..64,3", "b,b", "b,3,batch"])
def test_the_batch_is_one_axis_without_a_range(text: str) -> None:
    with pytest.raises(UsageError, match="the batch"):
        parse_input(f"float32[{text}]")


def test_axes_of_one_name_have_one_range() -> None:
    specs = [parse_input(f"float32[b,{axis}]") for axis in ("t", "t=2..", "s", "t")]
    free, bound = FreeAxis(name="s"), FreeAxis(name="t", least=2)
    assert [one.axes for one in agreed(specs)] == [(bound,), (bound,), (free,), (bound,)]
    with pytest.raises(UsageError, match=r"an axis has one range, got t=2\.\. and t=3\.\."):
        agreed([*specs, parse_input("float32[b,t=3..]")])


def test_an_input_without_a_batch() -> None:
    with pytest.raises(UsageError, match="has no batch axis"):
        parse_input("float32[]")


def test_an_unknown_dtype_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'float32'"):
        parse_input("float31[batch,3]")


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_example_of_every_dtype(dtype: str) -> None:
    rows = example(parse_input(f"{dtype}[batch,5]"))
    assert rows.shape == (2, 5)
    assert rows.dtype == dtype


def test_random_rows_are_seeded_and_fill_free_axes() -> None:
    specs = [parse_input("float32[batch,3]"), parse_input("int64[batch,length]")]
    first, again, other = (random_rows(specs, 6, seed=seed) for seed in (1, 1, 2))
    assert [one.shape for one in first] == [(6, 3), (6, 8)]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != other[0]).all()
    assert len(np.unique(first[0], axis=0)) == 6


@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_no_mask_that_is_made_up_hides_all_of_a_row(dtype: str) -> None:
    (rows,) = random_rows([parse_input(f"{dtype}[batch,t]")], 64, seed=1, sizes={"t": 1})
    assert rows.shape == (64, 1)
    assert rows.all()


def test_rows_of_a_file_are_taken_over_again(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    spec = parse_input(str(tmp_path / "rows.npy"))
    (rows,) = random_rows([spec], 7, seed=1)
    assert (rows[:, 0] == [0, 4, 8, 0, 4, 8, 0]).all()


def test_a_file_of_rows(tmp_path: Path) -> None:
    rows = np.arange(24, dtype=np.float32).reshape(6, 4)
    np.save(tmp_path / "rows.npy", rows)
    spec = parse_input(f"x:{tmp_path / 'rows.npy'}")
    assert (spec.name, spec.dtype, spec.axes) == ("x", "float32", (4,))
    assert (example(spec) == rows[:2]).all()
    assert spec.rows is not None
    assert len(spec.rows) == 6


def test_a_file_of_one_row_is_repeated_for_the_exporter(tmp_path: Path) -> None:
    np.save(tmp_path / "row.npy", np.ones((1, 4), np.float32))
    assert example(parse_input(str(tmp_path / "row.npy"))).shape == (2, 4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((0, 4), np.float32), "holds no rows"),
        (np.float32(1), "holds no rows"),
        (np.array(["a", "b"]), "holds <U1; a module takes one of float32"),
        (np.zeros((2, 2), np.complex64), "holds complex64"),
    ],
)
def test_rows_that_no_module_takes(tmp_path: Path, rows: object, message: str) -> None:
    np.save(tmp_path / "rows.npy", rows)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        parse_input(str(tmp_path / "rows.npy"))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "rows.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"is not a \.npy file that can be read"):
        parse_input(str(tmp_path / "rows.npy"))
    with pytest.raises(MissingInputError, match="is not there; it should hold rows"):
        parse_input(str(tmp_path / "none.npy"))
