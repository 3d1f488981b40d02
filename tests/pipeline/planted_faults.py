"""Faults as exporters, converters and people make them, and the node that each of them spoils.

The models are small ones of ferry's own architectures, exported by its own export; the benchmark
`benchmarks/planted_faults.py` prints what the tests assert.
"""

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from model_cases import CASES, LENGTH, VOCABULARY, case
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from trained_graphs import fit, graph_of, stripes

from pipeline.exporting import onnxmodel
from pipeline.exporting.exporter import to_onnx
from pipeline.models.parts.graph import BinaryCrossEntropy, CrossEntropy, Graph, MeanSquaredError
from pipeline.models.parts.vocabulary import Vocabulary

OPSET = 20
LIMIT = 1e-4
"""The gate of fp32."""
INT8_LIMIT = 0.5
PYTORCH, SOUND = "PyTorch", "the sound model"
Plant = Callable[[onnx.ModelProto], str]


@dataclass(frozen=True)
class Subject:
    """A sound model, what it was exported from, and a row for it."""

    graph: Graph
    model: onnx.ModelProto
    feeds: Mapping[str, np.ndarray]
    limit: float = LIMIT


@dataclass(frozen=True)
class Fault:
    """One kind of fault, planted in one model."""

    kind: str
    subject: str
    plant: Plant
    """Spoils a model and returns the name of the node that is to be named."""
    against: tuple[str, ...] = (PYTORCH, SOUND)


# The models


@functools.cache
def subject(name: str) -> Subject:
    """A model by its name; each is made once."""
    if name == "int8":
        return quantized()
    if name == "trained":
        graph = trained()
        rows = stripes().inputs[:2]
    else:
        graph, rows = seeded(name)
    with torch.no_grad():
        model = to_onnx(graph, rows, OPSET)
    return Subject(graph, model, {model.graph.input[0].name: rows[:1]})


def trained() -> Graph:
    """Two convolutions that really tell stripes apart, and whose biases matter."""
    torch.manual_seed(3)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(4, 6, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(54, 54),
        torch.nn.Tanh(),
        torch.nn.Linear(54, 2),
    )
    return fit(graph_of(network, CrossEntropy()), stripes())


def seeded(name: str) -> tuple[Graph, np.ndarray]:
    """One of ferry's architectures with seeded weights, and two raw rows."""
    if name == "average":
        network, shape = case("cnn", seed=5, head="average"), CASES["cnn"][1]
    else:
        network, shape = case(name, seed=5), CASES[name][1]
    heads = {"autoencoder": MeanSquaredError(), "text_lstm": BinaryCrossEntropy()}
    graph = Graph(network, shape.kind, heads.get(name, CrossEntropy())).eval()
    if shape.kind == "text":
        known = tuple(f"word{rank}" for rank in range(VOCABULARY - 2))
        graph.vocabulary = Vocabulary(known, LENGTH)
        return graph, np.array(["word3 unheard word7 word1", "word5 word9"])
    channels, height, width = shape.row
    graph.standardise((90.0,) * channels, (60.0,) * channels)
    drawn = np.random.default_rng(5).integers(0, 256, (2, height, width, channels))
    return graph, drawn.astype(np.uint8)


class Calibration(CalibrationDataReader):
    """The striped images, in one batch."""

    def __init__(self, name: str) -> None:
        self.feeds = iter([{name: stripes().inputs}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def quantized() -> Subject:
    """The trained model with int8 weights and uint8 activations."""
    sound = subject("trained")
    with tempfile.TemporaryDirectory() as folder, onnxmodel.quiet():
        before, after = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(sound.model, before)
        (name,) = sound.feeds
        quantize_static(
            before,
            after,
            Calibration(name),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return Subject(sound.graph, onnx.load(after), sound.feeds, INT8_LIMIT)


# Small changes to models


def nodes(model: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == operator]


def attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [one for one in node.attribute if one.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def edit(
    model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray | None]
) -> None:
    """Change a weight, in place or by what `change` returns."""
    (tensor,) = [one for one in model.graph.initializer if one.name == name]
    array = numpy_helper.to_array(tensor).copy()
    changed = change(array)
    kept = array if changed is None else changed.astype(array.dtype)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(kept), name))


def weight_of(operator: str, at: int, change: Callable[[np.ndarray], Any], place: int = 1) -> Plant:
    """Change the weight that the node of that operator reads at a place."""

    def plant(model: onnx.ModelProto) -> str:
        node = nodes(model, operator)[at]
        edit(model, node.input[place], change)
        return str(node.name)

    return plant


def set_attribute(operator: str, at: int, name: str, value: Any) -> Plant:
    def plant(model: onnx.ModelProto) -> str:
        node = nodes(model, operator)[at]
        attribute(node, name, value)
        return str(node.name)

    return plant


def without_bias(operator: str, at: int) -> Plant:
    def plant(model: onnx.ModelProto) -> str:
        node = nodes(model, operator)[at]
        del node.input[2:]
        return str(node.name)

    return plant


def replaced(operator: str, at: int, by: str) -> Plant:
    def plant(model: onnx.ModelProto) -> str:
        node = nodes(model, operator)[at]
        node.op_type = by
        del node.attribute[:]
        return str(node.name)

    return plant


def channels_swapped(weight: np.ndarray) -> np.ndarray:
    order = np.arange(len(weight))
    order[[0, 1]] = [1, 0]
    return weight[order]


def gates_turned(weight: np.ndarray) -> np.ndarray:
    """The gates of an LSTM in torch's order where ONNX has its own."""
    one, two, three, four = np.split(weight, 4, axis=1)
    return np.concatenate([one, three, four, two], axis=1)


def word_of_another_id(model: onnx.ModelProto) -> str:
    (node,) = nodes(model, "LabelEncoder")
    (keys,) = [one.strings for one in node.attribute if one.name == "keys_strings"]
    (ids,) = [one for one in node.attribute if one.name == "values_int64s"]
    ids.ints[list(keys).index(b"word7")] += 1
    return str(node.name)


def half_in_the_middle(model: onnx.ModelProto) -> str:
    """What a converter does that takes one layer for safe."""
    pool = nodes(model, "MaxPool")[0]
    to = onnx.TensorProto
    there = helper.make_node("Cast", [pool.output[0]], ["half"], "to_half", to=to.FLOAT16)
    back = helper.make_node("Cast", ["half"], ["whole"], "to_whole", to=to.FLOAT)
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            if name == pool.output[0]:
                node.input[at] = "whole"
    kept = list(model.graph.node)
    at = kept.index(pool) + 1
    del model.graph.node[:]
    model.graph.node.extend([*kept[:at], there, back, *kept[at:]])
    return "to_half"


def quantizer(model: onnx.ModelProto, at: int = 1) -> onnx.NodeProto:
    """One that rounds activations."""
    return nodes(model, "QuantizeLinear")[at]


def activation_zero_point(model: onnx.ModelProto) -> str:
    node = quantizer(model)
    edit(model, node.input[2], lambda zero: zero + 100)
    return str(node.name)


def activation_scale(model: onnx.ModelProto) -> str:
    node = quantizer(model)
    edit(model, node.input[1], lambda scale: scale / 2)
    return str(node.name)


def weight_scale(model: onnx.ModelProto, *, layer: bool) -> str:
    """Named at the weight itself where the reference has it, else at the layer that reads it."""
    conv = nodes(model, "Conv")[1]
    (node,) = [one for one in nodes(model, "DequantizeLinear") if one.output[0] == conv.input[1]]
    edit(model, node.input[1], lambda scale: scale * 2)
    return str(conv.name if layer else node.name)


def of_layer(model: onnx.ModelProto) -> str:
    return weight_scale(model, layer=True)


def of_weight(model: onnx.ModelProto) -> str:
    return weight_scale(model, layer=False)


def clamped(weight: np.ndarray) -> np.ndarray:
    return weight.clip(-0.02, 0.02)


def poisoned(weight: np.ndarray) -> None:
    weight.flat[3] = np.nan


def shifted_a_little(weight: np.ndarray) -> None:
    weight.flat[0] += 3e-3


FAULTS = (
    Fault(
        "wrong epsilon in a batch norm",
        "fast",
        set_attribute("BatchNormalization", 1, "epsilon", 1e-2),
    ),
    Fault(
        "height and width swapped (Transpose)",
        "trained",
        set_attribute("Transpose", 0, "perm", [0, 3, 2, 1]),
    ),
    Fault("wrong axis (Concat)", "text_lstm", set_attribute("Concat", -1, "axis", 0)),
    Fault("wrong axis (Softmax)", "trained", set_attribute("Softmax", 0, "axis", 0)),
    Fault("clamped weight", "trained", weight_of("Conv", 1, clamped)),
    Fault("clamped weight behind many layers", "resnet", weight_of("Conv", 5, clamped)),
    Fault("two channels of a weight swapped", "trained", weight_of("Conv", 0, channels_swapped)),
    Fault("one weight a little off, early", "resnet", weight_of("Conv", 0, shifted_a_little)),
    Fault("wrong padding", "trained", set_attribute("Conv", 1, "pads", [0, 0, 2, 2])),
    Fault("wrong pool kernel", "trained", set_attribute("MaxPool", 0, "kernel_shape", [1, 1])),
    Fault("wrong stride", "average", set_attribute("MaxPool", 0, "strides", [1, 1])),
    Fault(
        "wrong padding (ConvTranspose)",
        "autoencoder",
        set_attribute("ConvTranspose", 0, "pads", [0, 0, 2, 2]),
    ),
    Fault("bias dropped (Conv)", "trained", without_bias("Conv", 1)),
    Fault("bias dropped (Gemm)", "mlp", without_bias("Gemm", 0)),
    Fault("ReLU removed", "trained", replaced("Relu", 1, "Identity")),
    Fault("ReLU replaced by LeakyRelu", "trained", replaced("Relu", 0, "LeakyRelu")),
    Fault("wrong normalisation constant", "cnn", weight_of("Sub", 0, lambda mean: mean + 2)),
    Fault("wrong alpha (Gemm)", "mlp", set_attribute("Gemm", 1, "alpha", 0.5)),
    Fault("weight transposed (Gemm)", "trained", set_attribute("Gemm", 0, "transB", 0)),
    Fault("gates of an LSTM in another order", "lstm", weight_of("LSTM", 0, gates_turned)),
    Fault("gates of the second LSTM", "text_lstm", weight_of("LSTM", 1, gates_turned, 2)),
    Fault("wrong variant of a GRU", "gru", set_attribute("GRU", 1, "linear_before_reset", 0)),
    Fault("a word of another id", "text_lstm", word_of_another_id),
    # Beside PyTorch it is one operation with the Equal before it.
    Fault("a truth the other way round", "text_lstm", replaced("Not", 0, "Identity"), (SOUND,)),
    Fault("NaN in a weight", "trained", weight_of("Conv", 1, poisoned)),
    Fault("cast to half in the middle", "trained", half_in_the_middle),
    Fault("scale of a weight off by 2 (int8)", "int8", of_weight, (SOUND,)),
    Fault("the same beside PyTorch", "int8", of_layer, (PYTORCH,)),
    Fault("scale of an activation off by 2 (int8)", "int8", activation_scale),
    Fault("wrong zero point (int8)", "int8", activation_zero_point),
)


@dataclass(frozen=True)
class Planted:
    """A fault in its model, and what it is to be compared with."""

    fault: Fault
    against: str
    reference: Graph | onnx.ModelProto
    model: onnx.ModelProto
    node: str
    feeds: Mapping[str, np.ndarray]
    limit: float


def planted(fault: Fault, against: str) -> Planted:
    """Plant a fault in a copy of its model."""
    sound = subject(fault.subject)
    model = onnx.ModelProto()
    model.CopyFrom(sound.model)
    node = fault.plant(model)
    reference = sound.graph if against == PYTORCH else sound.model
    return Planted(fault, against, reference, model, node, sound.feeds, sound.limit)


def cases() -> Iterator[tuple[Fault, str]]:
    """Each fault beside each of its references."""
    for fault in FAULTS:
        for against in fault.against:
            yield fault, against
