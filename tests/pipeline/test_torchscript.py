"""The second exporter: the same answers by another way, or a clear reason."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trained_graphs import convolutional_graph, drawing_graph, graph_of, linear_graph, stripes

from pipeline.network.graph import Graph
from pipeline.network.losses import CrossEntropy
from pipeline.proof.sides import model_side
from pipeline.proof.variants import torchscript_model
from pipeline.stages import export
from serving.errors import ModelError


@pytest.mark.parametrize(
    "make", [linear_graph, lambda: linear_graph(binary=True), convolutional_graph, drawing_graph]
)
def test_both_exporters_answer_as_pytorch_does(make: object) -> None:
    graph: Graph = make()  # type: ignore[operator]
    rows = stripes(20).inputs
    wanted = [output.numpy() for output in graph.answer(rows, 20)]
    for exporter in (export.to_onnx, torchscript_model):
        side = model_side("model", exporter(graph, rows[:2], 20).SerializeToString())
        assert [info.name for info in side.outputs] == list(graph.head.outputs)
        for batch_size in (1, 3, 20):
            found = side.answer({"images": rows}, batch_size)
            for name, array in zip(graph.head.outputs, wanted, strict=True):
                np.testing.assert_allclose(found[name], array, atol=1e-5)


def test_they_are_two_ways_and_not_one() -> None:
    graph, rows = convolutional_graph(), stripes(2).inputs
    dynamo, script = export.to_onnx(graph, rows, 20), torchscript_model(graph, rows, 20)
    assert [node.name for node in dynamo.graph.node] != [node.name for node in script.graph.node]


class Unknown(nn.Module):
    """An operator that TorchScript's exporter has no name for."""

    def forward(self, planes: Tensor) -> Tensor:
        return torch.linalg.qr(planes.flatten(2)).Q.flatten(1)[:, :2]


def test_what_it_cannot_export_is_told_in_one_line() -> None:
    with pytest.raises(ModelError) as caught:
        torchscript_model(graph_of(Unknown(), CrossEntropy()), stripes(2).inputs, 20)
    message = str(caught.value)
    assert message.startswith("TorchScript cannot export the model: ")
    assert "qr" in message
    assert len(message.splitlines()) == 1
    assert len(message) < 400
