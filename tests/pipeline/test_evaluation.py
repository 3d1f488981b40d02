"""Rows by batches, and what a graph answers on them, against sums done by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.network.graph import Graph, head_of
from pipeline.network.vocabulary import Vocabulary
from pipeline.records.ready import Split
from pipeline.training.batches import DeviceRows, evaluate

CPU = torch.device("cpu")


def table(rows: int) -> tuple[Graph, Split]:
    torch.manual_seed(1)
    graph = Graph(
        nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)), "table", head_of("cross_entropy")
    )
    graph.standardise((0.0,) * 3, (1.0,) * 3)
    generator = np.random.default_rng(1)
    inputs = generator.normal(size=(rows, 3)).astype(np.float32)
    return graph, Split(inputs, generator.integers(0, 4, rows))


def test_loss_and_accuracy_are_means_over_rows_not_over_batches() -> None:
    graph, split = table(2300)
    found = evaluate(graph, DeviceRows(graph, split, CPU))
    graph.eval()
    logits = graph.network(torch.from_numpy(split.inputs)).detach()
    labels = torch.from_numpy(split.labels)
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert found.accuracy == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert found.predicted is not None
    assert torch.equal(found.predicted, logits.argmax(1))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_what_it_was(training: bool) -> None:
    graph, split = table(10)
    graph.train(training)
    evaluate(graph, DeviceRows(graph, split, CPU))
    assert graph.training is training


def test_a_reconstruction_has_a_loss_alone() -> None:
    graph = Graph(nn.Identity(), "image", head_of("mean_squared_error"))
    graph.standardise((0.0,), (255.0,))
    split = Split(np.full((5, 4, 4, 1), 51, dtype=np.uint8), np.zeros(5, dtype=np.int64))
    found = evaluate(graph, DeviceRows(graph, split, CPU))
    assert (found.loss, found.accuracy, found.predicted) == (0.0, None, None)


def test_every_row_comes_once_in_the_given_order() -> None:
    graph, split = table(10)
    rows = DeviceRows(graph, split, CPU)
    order = torch.randperm(10)
    batches = list(rows.batches(order, 4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), rows.inputs[order])
    assert torch.equal(torch.cat([labels for _, labels in batches]), rows.labels[order])
    second = [inputs for inputs, _ in rows.batches(order[:8], 4, slice(2, 4))]
    assert torch.equal(torch.cat(second), rows.inputs[order[[2, 3, 6, 7]]])


class LastWord(nn.Module):
    """Answers by the last word of a sentence, and remembers how long the longest was."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor([0.0, -1.0, 1.0, 2.0]))
        self.longest: list[int] = []

    def forward(self, ids: Tensor) -> Tensor:
        self.longest.append(ids.shape[1])
        last = (ids != 0).sum(1).clamp(min=1) - 1
        return self.scores[ids.gather(1, last[:, None])]


def test_sentences_are_cut_behind_the_longest_of_their_batch() -> None:
    network = LastWord()
    graph = Graph(network, "text", head_of("binary_cross_entropy"))
    graph.vocabulary = Vocabulary(("good", "fine"), 50)
    split = Split(np.array(["a good", "", "x y z fine", "bad"]), np.array([1, 0, 1, 0]))
    rows = DeviceRows(graph, split, CPU)
    assert rows.inputs.shape == (4, 50)
    assert [inputs.shape[1] for inputs, _ in rows.batches(torch.arange(4), 2)] == [2, 4]
    assert [inputs.shape[1] for inputs, _ in rows.batches(torch.tensor([1, 1]), 2)] == [1]
    found = evaluate(graph, rows)
    assert found.accuracy == 1.0
    assert network.longest == [4]


def test_the_rows_are_copies() -> None:
    graph, split = table(4)
    frozen = split.inputs.copy()
    frozen.flags.writeable = False
    rows = DeviceRows(graph, Split(frozen, split.labels), CPU)
    rows.inputs.zero_()
    assert frozen.any()
