"""The graph that is trained and exported: its preprocessing, its weights and its heads."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.config.experiment import Experiment, ModelConfig
from pipeline.config.params import load
from pipeline.errors import ConfigError
from pipeline.models.parts.graph import (
    BinaryCrossEntropy,
    CrossEntropy,
    Graph,
    MeanSquaredError,
    build_graph,
    head_of,
    load_graph,
    save_weights,
)
from pipeline.records import record, record_of
from pipeline.records.ready import ArrayInfo, DatasetManifest
from serving.errors import IntegrityError, MissingInputError
from serving.files import sha256_of_file

ROOT = Path(__file__).parents[2]


def manifest(shape: tuple[int, int, int] = (6, 5, 3), classes: int = 4) -> DatasetManifest:
    channels = shape[2]
    rows = ArrayInfo(shape=(9, *shape), dtype="uint8", sha256="")
    return DatasetManifest(
        dataset="mine",
        kind="image",
        vocabulary=(),
        labels=tuple(str(label) for label in range(classes)),
        class_counts={},
        mean=tuple(100.0 + 20 * channel for channel in range(channels)),
        std=tuple(50.0 + 10 * channel for channel in range(channels)),
        seed=1,
        arrays={"train_inputs.npy": rows},
    )


@pytest.fixture
def experiment() -> Experiment:
    tiny = ModelConfig(name="mlp", settings={"hidden": [7], "activation": "relu", "dropout": 0.5})
    return replace(load(ROOT / "params.yaml").experiment("digits-mlp"), model=tiny)


@pytest.fixture
def weights(experiment: Experiment, tmp_path: Path) -> Path:
    """The weights of an untrained graph, as a file."""
    path = tmp_path / "model.safetensors"
    state = build_graph(experiment, manifest()).state_dict()
    safetensors.torch.save_file({key: value.contiguous() for key, value in state.items()}, path)
    record(path, sha256_of_file(path))
    return path


def rows(count: int = 8, shape: tuple[int, ...] = (6, 5, 3)) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, *shape), dtype=np.uint8)


def graph_of(network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> Graph:
    graph = Graph(network, "image", CrossEntropy())
    graph.standardise(mean, std)
    return graph


class Seen(nn.Module):
    """A network that keeps what it was given."""

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        self.planes = planes
        return planes.mean(dim=(2, 3))


def test_planes_are_the_raw_values_with_channels_first() -> None:
    images = rows()
    planes = graph_of(Seen(), (0.0,) * 3, (1.0,) * 3).values(torch.from_numpy(images))
    assert planes.dtype == torch.float32
    assert planes.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(planes.numpy(), images.transpose(0, 3, 1, 2).astype(np.float32))


def test_the_network_gets_standardised_channels() -> None:
    described = manifest()
    graph = graph_of(Seen(), described.mean, described.std)
    images = rows()
    graph(torch.from_numpy(images))
    mean, std = np.array(described.mean), np.array(described.std)
    expected = ((images.astype(np.float64) - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(graph.network.planes.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_answers_are_logits_and_their_softmax(experiment: Experiment) -> None:
    graph = build_graph(experiment, manifest()).eval()
    images = torch.from_numpy(rows())
    logits, probabilities = graph(images)
    assert logits.shape == probabilities.shape == (8, 4)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(8))
    shifted = np.exp(logits.detach().double().numpy())
    np.testing.assert_allclose(
        probabilities.detach().numpy(), shifted / shifted.sum(axis=1, keepdims=True), rtol=1e-5
    )
    assert torch.equal(logits, graph.network(graph.inputs(graph.values(images))))


def test_extreme_logits_still_give_probabilities() -> None:
    class Extreme(nn.Module):
        def forward(self, planes: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[1e30, 0.0, -1e30]]).repeat(len(planes), 1)

    _, probabilities = graph_of(Extreme(), (0.0,), (1.0,))(torch.zeros(2, 1, 1, 1).byte())
    assert probabilities.tolist() == [[1, 0, 0]] * 2


def test_they_are_not_trained(experiment: Experiment) -> None:
    names = [name for name, _ in build_graph(experiment, manifest()).named_parameters()]
    assert names
    assert all(name.startswith("network.") for name in names)


def test_weights_come_back_ready_for_use(experiment: Experiment, weights: Path) -> None:
    graph = load_graph(weights, experiment, manifest())
    assert not graph.training
    images = torch.from_numpy(rows())
    assert torch.equal(graph(images)[0], graph(images)[0]), "no dropout"
    for key, value in safetensors.torch.load_file(weights).items():
        assert torch.equal(graph.state_dict()[key], value)


def test_missing_weights_name_the_command(experiment: Experiment, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as caught:
        load_graph(tmp_path / "model.safetensors", experiment, manifest())
    assert str(caught.value).endswith("is not there; `ferry train digits-mlp` makes it")


def one_line(path: Path, experiment: Experiment, described: DatasetManifest) -> str:
    with pytest.raises(IntegrityError) as caught:
        load_graph(path, experiment, described)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{path} does not hold the weights of digits-mlp: ")
    assert message.endswith("; `ferry train digits-mlp` makes it anew")
    return message


def test_weights_of_another_shape(experiment: Experiment, weights: Path) -> None:
    assert "size mismatch" in one_line(weights, experiment, manifest((8, 8, 3)))
    assert "size mismatch" in one_line(weights, experiment, manifest(classes=5))


def test_weights_of_another_model(experiment: Experiment, weights: Path) -> None:
    deeper = ModelConfig(
        name="mlp", settings={"hidden": [7, 7], "activation": "relu", "dropout": 0}
    )
    assert "Missing key" in one_line(weights, replace(experiment, model=deeper), manifest())


def test_weights_of_the_same_shapes_with_other_settings(
    experiment: Experiment, weights: Path
) -> None:
    state = safetensors.torch.load_file(weights)
    weights.write_bytes(save_weights(state, experiment))
    record(weights, sha256_of_file(weights))
    load_graph(weights, experiment, manifest())
    settings = {**experiment.model.settings, "activation": "gelu"}
    other = replace(experiment, model=replace(experiment.model, settings=settings))
    with pytest.raises(IntegrityError) as caught:
        load_graph(weights, other, manifest())
    assert str(caught.value) == (
        f"{weights} was trained with model.activation relu, params.yaml says gelu: write the first "
        f"there, or `ferry train digits-mlp` trains with the second"
    )


def test_one_changed_bit_of_the_weights_or_of_their_record_is_told(
    experiment: Experiment, weights: Path
) -> None:
    for path in (weights, record_of(weights)):
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(IntegrityError, match=r"rotted .*`ferry train digits-mlp`") as told:
                load_graph(weights, experiment, manifest())
            assert f"`rm {weights} {record_of(weights)} && dvc checkout train@" in str(told.value)
        path.write_bytes(whole)
    load_graph(weights, experiment, manifest())


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 64])
def test_bytes_that_are_no_weights(experiment: Experiment, weights: Path, content: bytes) -> None:
    weights.write_bytes(content)
    record(weights, sha256_of_file(weights))
    one_line(weights, experiment, manifest())


def test_wrong_settings_name_the_experiment(experiment: Experiment) -> None:
    wrong = replace(
        experiment, model=ModelConfig(name="mlp", settings={"hidden": [7], "activation": "relu"})
    )
    with pytest.raises(ConfigError, match=r"^experiments\.digits-mlp\.model\.dropout is missing$"):
        build_graph(wrong, manifest())


LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 0.0]])
NOTHING = torch.empty(0)


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
