import importlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trained_graphs import convolutional_graph, linear_graph, stripes

from pipeline.config.experiment import EvaluateConfig
from pipeline.models.insight.robustness import Ball, attack, fast_gradient, projected_gradient
from pipeline.models.parts.graph import Graph

CONFIG = EvaluateConfig(strengths=(0.05, 0.2), rows=200, steps=8, against="stripes")
RADIUS, LARGEST = 20.0, 170.0


def rows(graph: Graph, count: int = 40) -> tuple[Tensor, Tensor]:
    split = stripes(count, seed=5)
    return graph.values(graph.tensor(split.inputs)), torch.from_numpy(split.labels)


def loss(graph: Graph, images: Tensor, labels: Tensor) -> float:
    inputs = graph.inputs(images)
    return float(graph.head.loss(graph.network(inputs), inputs, labels))


@pytest.fixture(scope="module")
def evasion(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The attacks of the Adversarial Robustness Toolbox.

    It writes its settings to the home folder when it is imported, and two processes that do so at
    the same time break each other's import.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        return importlib.import_module("art.attacks.evasion")


def estimator(graph: Graph) -> Any:
    """The graph from raw values to logits, as the library of attacks takes it."""
    from art.estimators.classification import PyTorchClassifier

    class FromValues(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph = graph

        def forward(self, values: Tensor) -> Tensor:
            return self.graph.network(self.graph.inputs(values))

    return PyTorchClassifier(
        FromValues(), nn.CrossEntropyLoss(), (1, 6, 6), 2, clip_values=(0, LARGEST)
    )


def test_one_step_on_a_linear_network_is_the_closed_form() -> None:
    graph = linear_graph()
    images, labels = rows(graph)
    found = fast_gradient(graph, Ball(images, RADIUS, LARGEST), labels)
    difference = (graph.network.linear.weight[0] - graph.network.linear.weight[1]).view(1, 1, 6, 6)
    # Away from the actual class: the loss falls with its logit.
    sides = torch.where(labels == 0, -1.0, 1.0).view(-1, 1, 1, 1)
    expected = (images + RADIUS * sides * difference.sign()).clamp(0, LARGEST)
    torch.testing.assert_close(found, expected)


def test_a_single_logit_is_attacked_as_well() -> None:
    graph = linear_graph(binary=True)
    images, labels = rows(graph)
    found = fast_gradient(graph, Ball(images, RADIUS, LARGEST), labels)
    sides = torch.where(labels == 1, -1.0, 1.0).view(-1, 1, 1, 1)
    signs = graph.network.linear.weight.view(1, 1, 6, 6).sign()
    torch.testing.assert_close(found, (images + RADIUS * sides * signs).clamp(0, LARGEST))


def test_a_library_makes_the_same_step(evasion: ModuleType) -> None:
    graph = convolutional_graph()
    images, labels = rows(graph)
    method = evasion.FastGradientMethod(estimator(graph), eps=RADIUS)
    expected = method.generate(images.numpy(), y=np.eye(2)[labels])
    found = fast_gradient(graph, Ball(images, RADIUS, LARGEST), labels)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


def test_a_library_descends_to_the_same_images(evasion: ModuleType) -> None:
    graph = convolutional_graph()
    images, labels = rows(graph)
    method = evasion.ProjectedGradientDescentPyTorch(
        estimator(graph), eps=RADIUS, eps_step=2.5 * RADIUS / 8, max_iter=8, verbose=False
    )
    expected = method.generate(images.numpy(), y=np.eye(2)[labels])
    ball = Ball(images, RADIUS, LARGEST)
    found = projected_gradient(graph, ball, labels, start=images, steps=8)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("radius", [1.0, 20.0, 1000.0])
def test_attacks_stay_in_the_ball_and_in_the_range_of_pixels(radius: float) -> None:
    graph = convolutional_graph()
    images, labels = rows(graph)
    ball = Ball(images, radius, LARGEST)
    far = images + 3 * radius
    for found in (
        fast_gradient(graph, ball, labels),
        projected_gradient(graph, ball, labels, start=far, steps=3),
    ):
        assert float((found - images).abs().max()) <= radius * (1 + 1e-5)
        assert float(found.min()) >= 0
        assert float(found.max()) <= LARGEST
        assert not found.requires_grad


def test_several_steps_hurt_at_least_as_much_as_one() -> None:
    graph = convolutional_graph()
    images, labels = rows(graph)
    ball = Ball(images, RADIUS, LARGEST)
    one = loss(graph, fast_gradient(graph, ball, labels), labels)
    several = loss(graph, projected_gradient(graph, ball, labels, start=images, steps=10), labels)
    assert loss(graph, images, labels) < one <= several + 1e-4


def test_accuracy_falls_with_the_strength() -> None:
    graph, split = convolutional_graph(), stripes(300, seed=3)
    found = attack(graph, split, CONFIG, seed=1)
    assert (found.rows, found.largest, found.steps) == (200, float(split.inputs.max()), 8)
    assert found.accuracy > 0.9
    assert [(one.name, one.strength) for one in found.attacks] == [
        ("FGSM", 0.05),
        ("PGD", 0.05),
        ("FGSM", 0.2),
        ("PGD", 0.2),
    ]
    weak_step, weak, strong_step, strong = (one.accuracy for one in found.attacks)
    assert found.accuracy > weak_step > strong_step
    assert weak > strong
    assert strong <= strong_step


def test_the_same_seed_gives_the_same_numbers() -> None:
    graph, split = convolutional_graph(), stripes(120, seed=3)
    assert attack(graph, split, CONFIG, seed=1) == attack(graph, split, CONFIG, seed=1)


def test_fewer_rows_than_are_asked_for_are_all_attacked() -> None:
    assert attack(linear_graph(), stripes(30), CONFIG, seed=1).rows == 30


def test_the_weights_stay_as_they_are() -> None:
    graph = convolutional_graph()
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    attack(graph, stripes(60), CONFIG, seed=1)
    for name, value in graph.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(weight.grad is None for weight in graph.parameters())
