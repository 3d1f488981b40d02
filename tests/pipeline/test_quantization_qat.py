"""Quantization-aware training: what is rounded, what is left of it, and that it helps."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from project import Project
from torch import nn

from pipeline.config.experiment import Experiment, ModelConfig, Params
from pipeline.exporting import onnxmodel
from pipeline.models.parts.graph import Graph, load_graph
from pipeline.quantization.qat import fine_tune, rounding, trained_again
from pipeline.quantization.recipes import Recipe, parse
from pipeline.records import ready

STATIC = parse("static-u8s8")
TERNARY = replace(parse("weights-int4"), bits=2)
"""Harsher than any recipe: -1, 0 and 1, in blocks of 32."""


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3), nn.Flatten(), nn.Linear(128, 3)
    ).eval()


def steps(weight: torch.Tensor) -> int:
    return len(weight.detach().unique())


def test_weights_are_rounded_with_a_scale_per_output_channel() -> None:
    network = layers()
    before = copy.deepcopy(network)
    rounding(network, STATIC)
    for index, axis in ((0, 0), (2, 1), (4, 0)):
        plain, rounded = before[index].weight, network[index].weight
        size = plain.abs().amax(dim=[n for n in range(plain.ndim) if n != axis], keepdim=True)
        assert not torch.equal(plain, rounded)
        assert ((plain - rounded).abs() <= size / 127 / 2 * 1.001).all()


def test_weights_of_seven_bits_are_rounded_to_as_many_steps_as_they_have() -> None:
    network = layers()
    plain = network[4].weight.detach().clone()
    rounding(network, parse("static-u8s8-reduced"))
    size = plain.abs().amax(dim=1, keepdim=True)
    whole = network[4].weight.detach() / size * 64
    torch.testing.assert_close(whole, whole.round(), rtol=0, atol=1e-3)
    assert 100 < steps(whole.round()) <= 129


def test_one_scale_for_all_is_coarser() -> None:
    network, tensor = layers(), layers()
    plain = network[0].weight.detach().clone()
    rounding(network, STATIC)
    rounding(tensor, parse("static-u8s8-tensor"))
    errors = [(one[0].weight - plain).abs().mean() for one in (network, tensor)]
    assert errors[1] > errors[0] > 0


def test_four_bits_are_of_matrices_alone_in_blocks() -> None:
    network = layers()
    rounding(network, parse("weights-int4"))
    linear = network[4].weight.detach().reshape(-1, 32)
    assert all(steps(block) <= 15 for block in linear)
    assert steps(network[0].weight[0]) == 9, "8 bits tell 9 weights apart"


def test_activations_are_rounded_to_where_they_were_of_late() -> None:
    network = layers()
    rounding(network, STATIC)
    images = torch.rand(8, 1, 8, 8)
    network.train()
    network(images)
    (hook,) = network[0]._forward_pre_hooks.values()
    high = float(hook.high)
    assert hook.low == 0
    assert high == pytest.approx(float(images.max()))
    network.eval()
    rounded, beyond = hook(network[0], (images,)), hook(network[0], (2 * images,))
    assert steps(rounded) <= 256
    assert (rounded - images).abs().max() <= high / 255 / 2 * 1.01
    assert float(beyond.max()) == pytest.approx(high, rel=1e-3)


def test_gradients_pass_through_the_rounding() -> None:
    network = layers()
    rounding(network, STATIC)
    network.train()(torch.rand(8, 1, 8, 8)).square().mean().backward()
    original = network[4].parametrizations.weight.original
    assert original.grad is not None
    assert (original.grad != 0).float().mean() > 0.9


def mlp_of(params: Params) -> Experiment:
    experiment = params.experiment("digits-mlp")
    settings = {**experiment.model.settings, "hidden": [32]}
    return replace(
        experiment,
        epochs=12,
        model=ModelConfig(name="mlp", settings=settings),
        quantize=replace(experiment.quantize, qat_epochs=8),
    )


@pytest.fixture(scope="module")
def mlp(ready: Path, params: Params, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small perceptron that really is trained on the digits."""
    from pipeline.stages.train import train

    folder = tmp_path_factory.mktemp("mlp")
    experiment = mlp_of(params)
    (folder / "data").symlink_to(ready / "data")
    project = Project(folder, experiment)
    train(
        project.data,
        project.weights,
        project.files("train"),
        project.plots("train"),
        experiment=experiment,
        device="cpu",
        track=False,
    )
    return project


def graph_of(project: Project) -> Graph:
    return load_graph(project.weights, project.experiment, ready.open_manifest(project.data))


def rounded_accuracy(graph: Graph, data: Path, recipe: Recipe) -> float:
    rounded = copy.deepcopy(graph)
    rounding(rounded, recipe)
    test = ready.open_split(data, "test")
    answers = rounded.eval().answer(np.array(test.inputs), 256)[1]
    return float((answers.argmax(1).numpy() == test.labels).mean())


def test_training_with_the_rounding_wins_back_what_the_rounding_lost(mlp: Project) -> None:
    plain, trained, control = graph_of(mlp), graph_of(mlp), graph_of(mlp)
    fine_tune(trained, mlp.data, TERNARY, experiment=mlp.experiment)
    # The same training with hardly any rounding: that it is longer does not help.
    fine_tune(control, mlp.data, parse("weights-int8"), experiment=mlp.experiment)
    before, after, longer = (
        rounded_accuracy(graph, mlp.data, TERNARY) for graph in (plain, trained, control)
    )
    assert after > before + 0.05
    assert after > longer + 0.02


def test_nothing_of_the_rounding_is_left_behind(mlp: Project) -> None:
    graph = graph_of(mlp)
    keys = set(graph.state_dict())
    fine_tune(graph, mlp.data, STATIC, experiment=mlp.experiment)
    assert set(graph.state_dict()) == keys
    assert not any(one._forward_pre_hooks for one in graph.modules())
    assert not graph.training


def test_the_same_training_gives_the_same_weights(mlp: Project) -> None:
    graphs = [graph_of(mlp), graph_of(mlp)]
    for graph in graphs:
        fine_tune(graph, mlp.data, STATIC, experiment=mlp.experiment)
    first, second = (graph.state_dict() for graph in graphs)
    assert all(torch.equal(first[key], second[key]) for key in first)
    before = graph_of(mlp).state_dict()
    assert any(not torch.equal(first[key], before[key]) for key in first)


def test_images_are_as_large_as_they_will_be_served(exported: Project) -> None:
    again = replace(
        exported.experiment, quantize=replace(exported.experiment.quantize, qat_epochs=1)
    )
    smaller = replace(again, train=replace(again.train, sides=(4, 6)))
    graphs = [graph_of(exported), graph_of(exported)]
    for graph, experiment in zip(graphs, (again, smaller), strict=True):
        fine_tune(graph, exported.data, STATIC, experiment=experiment)
    first, second = (graph.state_dict() for graph in graphs)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_was_trained_is_exported_as_the_same_model_in_float(exported: Project) -> None:
    original = onnxmodel.load(exported.models["fp32"], "ferry export x")
    again = replace(
        exported.experiment, quantize=replace(exported.experiment.quantize, qat_epochs=1)
    )
    made = trained_again(original, exported.weights, exported.data, STATIC, experiment=again)
    assert [node.op_type for node in made.graph.node] == [
        node.op_type for node in original.graph.node
    ]
    facts = onnxmodel.metadata(made)
    assert facts.pop("ferry.qat_epochs") == "1"
    assert facts == onnxmodel.metadata(original)
    weights = [
        {tensor.name: tensor.raw_data for tensor in one.graph.initializer}
        for one in (original, made)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert weights[0] != weights[1]
