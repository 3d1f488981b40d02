"""What an output varies by, column by column, and what stands for it where nothing varies."""

import numpy as np
import pytest

from pipeline.proof.variation import in_pieces, variation_of

RNG = np.random.default_rng(4)


def test_columns_are_measured_alone_and_without_their_mean() -> None:
    table = RNG.standard_normal((500, 3)) * [1, 10, 0.34] + [0, -50, 300]
    assert variation_of([table]).deviation == pytest.approx(table.std(axis=0))
    assert variation_of([table], together=True).deviation == pytest.approx(
        np.sqrt(table.var(axis=0).mean())
    )
    row = variation_of([table[:, 2]])
    assert row.deviation == pytest.approx(table[:, 2].std())
    assert row.largest == np.abs(table[:, 2]).max()


@pytest.mark.parametrize(("shape", "axis"), [((9, 84, 100), 1), ((9, 7, 3), 2), ((9, 5, 5, 1), 3)])
def test_of_more_axes_the_shortest_holds_the_columns(shape: tuple[int, ...], axis: int) -> None:
    values = RNG.standard_normal(shape)
    found = variation_of([values])
    others = tuple(one for one in range(1, len(shape)) if one != axis)
    assert found.axis == axis
    assert found.deviation == pytest.approx(
        np.sqrt(values.var(axis=0, keepdims=True).mean(axis=(0, *others)))
    )
    assert found.column(2) == f"[{':, ' * axis}2]"


def test_pieces_do_not_matter() -> None:
    values = (1e6 + RNG.standard_normal((100, 4))).astype(np.float32)
    whole, pieces = (
        variation_of([values]),
        variation_of(values[at : at + 7] for at in range(0, 100, 7)),
    )
    assert pieces.deviation == pytest.approx(whole.deviation)
    assert [len(values[piece]) for piece in in_pieces(5, (2**20, 3))] == [1] * 5


def test_what_does_not_vary_is_measured_by_its_size_and_zeros_by_the_others() -> None:
    table = np.zeros((50, 3), np.float32)
    table[:, 0], table[:, 1] = 300 + RNG.integers(0, 2, 50) * 2**-15, RNG.standard_normal(50)
    found = variation_of([table])
    size, varying, zeros = found.deviation
    assert size == pytest.approx(300)
    assert varying == pytest.approx(table[:, 1].std())
    assert zeros == pytest.approx(np.sqrt((size**2 + varying**2) / 3))
    assert not found.alike
    assert variation_of([table[:, ::2]]).alike
    assert not variation_of([table[:1]]).alike, "a single row tells nothing"


def test_whole_numbers_and_texts_are_right_or_wrong() -> None:
    assert variation_of([np.arange(5)]).scale == 1
    assert variation_of([np.array(["a", "b"], object)]).exact
    assert not variation_of([np.arange(5, dtype=np.uint8)]).exact


def test_noise_widens_the_scale_and_excuses_no_more_than_can_be_told() -> None:
    values = variation_of([RNG.standard_normal((500, 1)).astype(np.float32)])
    assert values.noise == pytest.approx(values.largest * 2**-23)
    assert values.scale == pytest.approx(values.deviation)
    assert values.with_noise(1e-9) == values.with_noise(0)
    assert values.with_noise(1e-4).scale == pytest.approx(10)
    assert values.with_noise(0.1).noise == pytest.approx(1e-3 * values.deviation)


def test_what_is_not_finite_is_left_out() -> None:
    table = np.array([[1.0, np.nan], [3.0, np.inf]])
    assert variation_of([table]).largest == 3
