"""Decisions: planted flips and ties are told apart, and the statistics are those of scipy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.proof.differences import DecisionCount, margins, mcnemar, predicted, scores_of, wilson
from pipeline.records.parity import Decisions

NEAR = 2e-4


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def answers(logits: np.ndarray) -> dict[str, np.ndarray]:
    return {"logits": logits, "probabilities": softmax(logits)}


def decide(
    wanted: np.ndarray, found: np.ndarray, labels: np.ndarray | None = None, step: int = 7
) -> Decisions:
    count = DecisionCount("logits", NEAR)
    for start in range(0, len(wanted), step):
        piece = slice(start, start + step)
        known = None if labels is None else labels[piece]
        numbers = np.arange(start, min(start + step, len(wanted)))
        count.add(answers(wanted[piece]), answers(found[piece]), numbers, known)
    return count.report()


@pytest.fixture
def logits() -> np.ndarray:
    return 3 * np.random.default_rng(3).standard_normal((100, 4))


def test_nothing_flips_where_nothing_differs(logits: np.ndarray) -> None:
    message = decide(logits, logits)
    assert (message.rows, message.flips, message.near_ties) == (100, 0, 0)
    assert message.named == ()
    assert message.classes == {}
    assert message.accuracy is None
    assert message.mcnemar is None


def test_a_planted_flip_is_named(logits: np.ndarray) -> None:
    found = logits.copy()
    before = int(logits[41].argmax())
    after = (before + 1) % 4
    found[41, after] = logits[41].max() + 1
    message = decide(logits, found, labels=logits.argmax(1))
    assert message.flips == 1
    assert message.near_ties == 0
    (flip,) = message.named
    assert (flip.row, flip.reference, flip.other) == (41, before, after)
    assert flip.label == before
    two = np.sort(logits[41])[-2:]
    assert flip.margin == pytest.approx(two[1] - two[0])
    assert message.classes == {str(before): 1}


def test_a_near_tie_that_flips_is_told_and_not_counted(logits: np.ndarray) -> None:
    logits[12] = [1.0, 1.0 + 1.5e-4, 0.0, 0.0]
    found = logits.copy()
    found[12, 0] += 3e-4
    message = decide(logits, found)
    assert message.flips == 0
    assert message.near_ties == 1
    assert message.near_tie_rows == 1
    assert message.named[0].near_tie
    logits[12, 1] = 1.0 + 2.5e-4  # beyond the margin, the same change is a real flip
    assert decide(logits, found).flips == 1


def test_a_near_tie_that_holds_is_counted_among_the_rows(logits: np.ndarray) -> None:
    logits[[3, 5]] = [2.0, 2.0 + 1e-5, 0.0, 0.0]
    message = decide(logits, logits)
    assert message.near_tie_rows == 2
    assert message.near_ties == 0


def test_an_answer_that_is_no_number_is_a_real_flip(logits: np.ndarray) -> None:
    reference = logits.copy()
    reference[8] = [1.0, 5.0, 0.0, 0.0]
    found = reference.copy()
    found[8] = np.nan
    assert decide(reference, found).flips == 1
    # The other way round the margin is no number either, and no excuse.
    message = decide(found, reference)
    assert message.flips == 1
    assert message.named[0].margin is None


def test_all_are_counted_and_some_are_named() -> None:
    logits = np.tile([3.0, 0.0], (500, 1))
    message = decide(logits, -logits)
    assert message.flips == 500
    assert [flip.row for flip in message.named] == list(range(20))
    assert message.classes == {"0": 500}


def test_accuracy_and_what_was_lost_and_gained(logits: np.ndarray) -> None:
    labels = logits.argmax(1)
    labels[:10] = (labels[:10] + 1) % 4  # ten that the reference gets wrong
    found = logits.copy()
    for row in (0, 1, 2):  # three of them the other one gets right
        found[row, labels[row]] = 50
    for row in (50, 51, 52, 53, 54):  # and five more wrong
        found[row, (labels[row] + 1) % 4] = 50
    message = decide(logits, found, labels)
    assert message.reference_accuracy == pytest.approx(0.90)
    assert message.accuracy == pytest.approx(0.88)
    assert message.mcnemar is not None
    assert (message.mcnemar.lost, message.mcnemar.gained) == (5, 3)
    assert message.mcnemar.p_value == pytest.approx(stats.binomtest(5, 8).pvalue)


def test_one_logit_of_two_classes_has_twice_its_size_as_margin() -> None:
    logits = np.array([[0.4], [-3.0], [1e-4]])
    both = 1 / (1 + np.exp(np.concatenate([logits, -logits], axis=1)))
    message = {"logits": logits, "probabilities": both}
    assert margins(message).tolist() == pytest.approx([0.8, 6.0, 2e-4])
    assert predicted(message).tolist() == [1, 0, 1]


def test_a_logit_within_the_limit_of_zero_is_a_near_tie() -> None:
    """Two answers within 1e-4 of each other can part only where the logit is below that."""
    count = DecisionCount("logits", NEAR)
    before = np.array([[0.9e-4], [1.1e-4]])
    after = np.array([[-0.1e-4], [-0.1e-4]])

    def binary(logits: np.ndarray) -> dict[str, np.ndarray]:
        classes = np.concatenate([-logits, logits], axis=1)
        return {"logits": logits, "probabilities": 1 / (1 + np.exp(-classes))}

    count.add(binary(before), binary(after), np.arange(2), None)
    assert (count.flips, count.near_ties) == (1, 1)


@given(st.integers(0, 300), st.integers(1, 300))
def test_the_interval_is_wilsons(count: int, more: int) -> None:
    total = count + more
    found = wilson(count, total)
    # Wilson (1927), written out.
    z, rate = stats.norm.ppf(0.975), count / total
    middle = (rate + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * np.sqrt(rate * (1 - rate) / total + (z / (2 * total)) ** 2)
    assert found.low == pytest.approx(max(0.0, middle - half), abs=1e-12)
    assert found.high == pytest.approx(middle + half, abs=1e-12)


def test_no_flip_of_few_rows_proves_little_and_of_none_nothing() -> None:
    assert wilson(0, 20).high > 0.15
    assert wilson(0, 10_000).high < 4e-4
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0, 1)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int) -> None:
    found = mcnemar(lost, gained)
    if lost + gained:
        # Both tails of a fair coin, which are alike.
        tail = stats.binom.cdf(min(lost, gained), lost + gained, 0.5)
        assert found.p_value == pytest.approx(min(1.0, 2 * tail))
    else:
        assert found.p_value == 1
    assert mcnemar(gained, lost).p_value == pytest.approx(found.p_value)


def test_which_outputs_decide() -> None:
    table, one = np.zeros((3, 4), np.float32), np.zeros((3, 1), np.float32)
    picture, row = np.zeros((3, 2, 2, 1), np.float32), np.zeros(3, np.float32)
    both = {"logits": one, "probabilities": table}
    assert scores_of(both, labelled=False) == both
    assert scores_of({"logits": table, "hidden": picture}, labelled=False) == {"logits": table}
    assert scores_of({"reconstruction": picture, "error": row}, labelled=True) is None
    assert scores_of({"embedding": table}, labelled=False) is None
    assert scores_of({"output": table, "ids": row}, labelled=True) == {"logits": table}
    assert scores_of({"a": table, "b": table}, labelled=True) is None
    assert scores_of({"logits": one}, labelled=False) is None
