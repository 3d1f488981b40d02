import numpy as np
import pytest

from pipeline.datasets import stratified

LABELS = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [600, 300, 100]))


def test_each_class_gives_its_share() -> None:
    left, taken = stratified(LABELS, 100, 1)
    assert np.bincount(LABELS[taken]).tolist() == [60, 30, 10]
    assert np.bincount(LABELS[left]).tolist() == [540, 270, 90]


def test_every_row_goes_one_way_and_keeps_its_order() -> None:
    left, taken = stratified(LABELS, 100, 1)
    assert (np.diff(left) > 0).all()
    assert (np.diff(taken) > 0).all()
    np.testing.assert_array_equal(np.sort(np.concatenate([left, taken])), np.arange(1000))


def test_the_seed_alone_decides() -> None:
    np.testing.assert_array_equal(stratified(LABELS, 100, 1)[1], stratified(LABELS, 100, 1)[1])
    assert (stratified(LABELS, 100, 1)[1] != stratified(LABELS, 100, 2)[1]).any()


@pytest.mark.parametrize("rows", [2, 998])
def test_fewer_rows_than_classes_are_refused(rows: int) -> None:
    with pytest.raises(ValueError, match="should be greater or equal to the number of classes"):
        stratified(LABELS, rows, 1)
