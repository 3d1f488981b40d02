"""A classifier of the shape and cost of MobileNet v1 (Howard et al., 2017) with drawn weights.

Run: python benchmarks/mobilenet.py MODEL.onnx

It answers uint8 photographs of 224 × 224 × 3 with 1,000 probabilities; only its cost counts.
"""

import sys
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["classifier"]

BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    *[(512, 1)] * 5, (1024, 2), (1024, 1),
)  # fmt: skip
"""Channels and stride of each pair of convolutions, table 1 of the paper."""
CLASSES = 1000


class Network:
    """Nodes and weights, one after the other."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self._rng = np.random.default_rng(1)

    def add(self, operator: str, *inputs: str, **attributes: object) -> str:
        """Add a node and return the name of its output."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, values: np.ndarray) -> str:
        """Add a weight and return its name."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def drawn(self, *shape: int) -> str:
        """Add a weight that keeps the size of what it is applied to."""
        spread = np.sqrt(2 / np.prod(shape[1:]))
        return self.constant(self._rng.normal(0, spread, shape).astype(np.float32))

    def convolution(self, values: str, channels: tuple[int, int], kernel: int, stride: int) -> str:
        """Add a convolution, depthwise where a kernel sees one channel, with its bias and ReLU."""
        out, seen = channels
        weight = self.drawn(out, seen, kernel, kernel)
        bias = self.constant(np.zeros(out, np.float32))
        group = out if seen == 1 else 1
        pads = [kernel // 2] * 4
        made = self.add("Conv", values, weight, bias, group=group, strides=[stride] * 2, pads=pads)
        return self.add("Relu", made)


def classifier() -> bytes:
    """The model as ONNX."""
    network = Network()
    values = network.add("Cast", "images", to=TensorProto.FLOAT)
    values = network.add("Div", values, network.constant(np.array(255, np.float32)))
    values = network.add("Transpose", values, perm=[0, 3, 1, 2])
    values = network.convolution(values, (32, 3), 3, 2)
    channels = 32
    for out, stride in BLOCKS:
        values = network.convolution(values, (channels, 1), 3, stride)
        values = network.convolution(values, (out, channels), 1, 1)
        channels = out
    values = network.add("Flatten", network.add("GlobalAveragePool", values))
    values = network.add("Gemm", values, network.drawn(channels, CLASSES))
    network.nodes.append(helper.make_node("Softmax", [values], ["probabilities"], axis=-1))
    return model_of(network).SerializeToString()


def model_of(network: Network) -> ModelProto:
    """The graph with its ends."""
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 224, 224, 3])
    answers = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES])
    graph = helper.make_graph(network.nodes, "mobilenet", [images], [answers], network.weights)
    imports = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def main() -> None:
    """Write the model."""
    Path(sys.argv[1]).write_bytes(classifier())


if __name__ == "__main__":
    main()
