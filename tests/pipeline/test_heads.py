"""The heads: what each answers and how far that is from what is right, by hand."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.network.losses import BinaryCrossEntropy, CrossEntropy, MeanSquaredError, head_of

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 0.0]])
NOTHING = torch.empty(0)


def test_each_loss_has_its_head() -> None:
    assert isinstance(head_of("cross_entropy"), CrossEntropy)
    assert isinstance(head_of("binary_cross_entropy"), BinaryCrossEntropy)
    assert isinstance(head_of("mean_squared_error"), MeanSquaredError)


@pytest.mark.parametrize(
    ("loss", "width"),
    [("cross_entropy", 7), ("binary_cross_entropy", 1), ("mean_squared_error", 0)],
)
def test_how_many_values_a_row_it_needs(loss: str, width: int) -> None:
    assert head_of(loss).width(7) == width  # type: ignore[arg-type]


def test_cross_entropy_by_hand() -> None:
    labels = torch.tensor([0, 2])
    by_hand = 0.0
    for row, label in zip(LOGITS.tolist(), labels.tolist(), strict=True):
        by_hand += math.log(sum(math.exp(value) for value in row)) - row[label]
    head = CrossEntropy()
    assert float(head.loss(LOGITS, NOTHING, labels)) == pytest.approx(by_hand / 2, rel=1e-6)
    assert head.predicted(LOGITS).tolist() == [0, 1]
    logits, probabilities = head.answers(LOGITS, NOTHING)
    assert torch.equal(logits, LOGITS)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))


def test_smoothing_makes_a_sure_answer_cost() -> None:
    labels = torch.tensor([0, 1])
    head = CrossEntropy()
    assert head.loss(9 * LOGITS, NOTHING, labels, 0.1) > head.loss(9 * LOGITS, NOTHING, labels)


def test_binary_cross_entropy_by_hand() -> None:
    logits, labels = torch.tensor([[1.5], [-0.5]]), torch.tensor([1, 1])
    by_hand = sum(math.log(1 + math.exp(-value)) for value in (1.5, -0.5)) / 2
    head = BinaryCrossEntropy()
    assert float(head.loss(logits, NOTHING, labels)) == pytest.approx(by_hand, rel=1e-6)
    assert head.predicted(logits).tolist() == [1, 0]


def test_smoothed_binary_targets_lie_between_the_classes() -> None:
    logits = torch.tensor([[0.7]])
    smoothed = BinaryCrossEntropy().loss(logits, NOTHING, torch.tensor([1]), 0.2)
    sure, wrong = (
        BinaryCrossEntropy().loss(logits, NOTHING, torch.tensor([label])) for label in (1, 0)
    )
    assert float(smoothed) == pytest.approx(float(0.9 * sure + 0.1 * wrong), rel=1e-6)


def test_both_classes_get_a_probability_however_far_the_logit_is() -> None:
    _, probabilities = BinaryCrossEntropy().answers(torch.tensor([[40.0], [-40.0]]), NOTHING)
    assert probabilities.shape == (2, 2)
    assert (probabilities > 0).all(), "1 - p would be 0"
    assert probabilities.argmax(1).tolist() == [1, 0]


def test_reconstructions_are_pixels_with_the_error_of_each_row() -> None:
    inputs = torch.rand(3, 2, 4, 5)
    output = inputs.clone()
    output[1] += 0.5
    reconstruction, error = MeanSquaredError().answers(output, inputs)
    assert reconstruction.shape == (3, 4, 5, 2)
    assert torch.equal(reconstruction[0], inputs[0].permute(1, 2, 0))
    torch.testing.assert_close(error, torch.tensor([0.0, 0.25, 0.0]))
    loss: Tensor = MeanSquaredError().loss(output, inputs, NOTHING)
    torch.testing.assert_close(loss, error.mean())
    assert MeanSquaredError().predicted(output) is None
