from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from trained_graphs import linear_graph, stripes

from pipeline.records.ready import Split
from pipeline.stages.insight.answers import (
    MISTAKES,
    Answers,
    answer,
    class_accuracy,
    mistakes,
    most_confident,
    worst,
)


def answers(probabilities: list[list[float]], labels: list[int]) -> Answers:
    table, actual = np.array(probabilities), np.array(labels)
    losses = -np.log(table[np.arange(len(actual)), actual])
    return Answers(probabilities=table, losses=losses, labels=actual)


THREE = answers(
    [[0.90, 0.08, 0.02], [0.20, 0.70, 0.10], [0.55, 0.44, 0.01], [0.2, 0.2, 0.6]], [1, 1, 2, 2]
)
LABELS = ("cat", "dog", "owl")


@pytest.mark.parametrize("binary", [False, True])
def test_answers_are_those_of_the_graph(binary: bool) -> None:
    graph, split = linear_graph(binary=binary), stripes(450, seed=1)
    found = answer(graph, split)
    with torch.inference_mode():
        expected = graph(graph.tensor(split.inputs))[1].numpy()
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    picked = found.probabilities[np.arange(450), split.labels]
    np.testing.assert_allclose(found.losses, -np.log(picked))
    assert (found.predicted == split.labels).mean() > 0.9


def test_the_loss_of_an_utterly_wrong_answer_is_finite() -> None:
    graph, split = linear_graph(), stripes(20)
    for weight in graph.network.parameters():
        weight.mul_(1e3)
    found = answer(graph, replace_labels(split, 1 - answer(graph, split).predicted))
    assert np.isfinite(found.losses).all()
    assert found.losses.max() > 200


def replace_labels(split: Split, labels: np.ndarray) -> Split:
    return replace(split, labels=labels)


def test_accuracy_of_each_class() -> None:
    assert class_accuracy(THREE, LABELS) == {"cat": None, "dog": 0.5, "owl": 0.5}


def test_a_constant_classifier_is_right_about_one_class() -> None:
    constant = answers([[0.6, 0.3, 0.1]] * 3, [0, 1, 2])
    assert class_accuracy(constant, LABELS) == {"cat": 1, "dog": 0, "owl": 0}


def test_the_most_confident_and_the_worst_mistakes_differ_in_order() -> None:
    assert most_confident(THREE).tolist() == [0, 2]
    assert worst(THREE).tolist() == [2, 0]


def test_a_perfect_classifier_makes_none() -> None:
    perfect = answers([[0.9, 0.1], [0.2, 0.8]], [0, 1])
    assert not len(most_confident(perfect))
    assert not len(worst(perfect))


def test_only_some_are_told() -> None:
    many = answers([[0.9, 0.1]] * 30, [1] * 30)
    assert most_confident(many).tolist() == list(range(MISTAKES))


def test_a_mistake_is_told_in_words() -> None:
    images = Split(np.zeros((4, 2, 2, 1), np.uint8), THREE.labels)
    first, second = mistakes(THREE, most_confident(THREE), images, LABELS)
    assert (first.row, first.actual, first.answered) == (0, "dog", "cat")
    assert first.probability == 0.9
    assert first.loss == pytest.approx(-np.log(0.08))
    assert first.text is None
    assert (second.actual, second.answered) == ("owl", "cat")


def test_of_a_sentence_the_beginning_is_quoted() -> None:
    sentences = Split(np.array(["a " * 80, "b", "short one", "d"]), THREE.labels)
    first, second = mistakes(THREE, most_confident(THREE), sentences, LABELS)
    assert first.text == "a " * 50
    assert second.text == "short one"


def test_a_network_in_training_is_not_meant() -> None:
    graph = linear_graph()
    graph.network = nn.Sequential(graph.network, nn.Dropout(0.9)).eval()
    split = stripes(10)
    assert np.array_equal(answer(graph, split).losses, answer(graph, split).losses)
