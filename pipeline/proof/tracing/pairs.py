"""Which value of a reference each value of an ONNX model stands for.

The exporter and the quantizers keep names, so most values are found by theirs. What they put in
between stands for what it carries: a cast for what it casts, and behind a quantizer the value that
goes on is the dequantized one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline.proof.tracing.values import outputs_of, users
from serving.runtime.tensors import Array

DEQUANTIZED = "_DequantizeLinear_Output"
"""What onnxruntime's quantizer adds to the name of a value."""
RECURRENT = ("LSTM", "GRU", "RNN")
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True, slots=True)
class Steps:
    """What a quantizer's whole numbers stand for: (number - zero) * scale."""

    scale: Array
    zero: Array
    axis: int

    def values(self, numbers: Array) -> Array:
        """Whole numbers as the values they stand for, float64."""
        shape = [1] * numbers.ndim
        if self.scale.ndim:
            shape[self.axis] = -1
        scale, zero = (one.astype(np.float64).reshape(shape) for one in (self.scale, self.zero))
        return (numbers.astype(np.float64) - zero) * scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A value of the model and the one of the reference that it must equal."""

    wanted: str
    """The name in the reference."""
    steps: Steps | None = None
    """Of a quantizer's output: what its numbers stand for."""
    clipped: bool = False
    """Whether a quantizer is all that reads it, whose range does the clipping of a ReLU."""


def product_of(linear: str) -> str:
    """The name of what a linear layer of the reference has before it adds its bias."""
    return f"{linear}.product"


def pair_values(
    model: onnx.ModelProto, names: Collection[str], recurrent: Sequence[tuple[str, int]] = ()
) -> dict[str, Pair]:
    """The counterpart of each value, by name, where there is one among `names`.

    `recurrent` are the states of the reference's own recurrent operators and their layers, in
    graph order; each layer of one is an operator of its own in ONNX, and the last has the states.
    """
    pairs = _by_name(model, names) | _by_order(model, recurrent)
    pairs = _products(model, pairs, names) | pairs
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for name in outputs_of(node):
            carried = _carried(node, pairs, names, constants)
            if name not in pairs and carried is not None:
                pairs[name] = carried
    for node in reversed(model.graph.node):
        if _carries(node) and node.input[0] not in pairs and node.output[0] in pairs:
            pairs[node.input[0]] = Pair(wanted=pairs[node.output[0]].wanted)
    return pairs | _clipped(model, pairs)


def _by_name(model: onnx.ModelProto, names: Collection[str]) -> dict[str, Pair]:
    known = set(names)
    taken = {tensor.name for tensor in model.graph.initializer}
    pairs = {}
    for node in model.graph.node:
        for name in outputs_of(node):
            # The exporter numbers a value anew where a weight has its name.
            base = name.removesuffix("_1")
            if name in known:
                pairs[name] = Pair(wanted=name)
            elif base in taken and base in known:
                pairs[name] = Pair(wanted=base)
    return pairs


def _by_order(model: onnx.ModelProto, recurrent: Sequence[tuple[str, int]]) -> dict[str, Pair]:
    found = [node for node in model.graph.node if node.op_type in RECURRENT and node.output[0]]
    if len(found) != sum(layers for _, layers in recurrent):
        return {}
    pairs, last = {}, -1
    for states, layers in recurrent:
        last += layers
        pairs[found[last].output[0]] = Pair(wanted=states)
    return pairs


def _products(
    model: onnx.ModelProto, pairs: dict[str, Pair], names: Collection[str]
) -> dict[str, Pair]:
    """Of a linear layer that is a MatMul and an Add in ONNX, the product alone."""
    known = set(names)
    products = {
        name for node in model.graph.node if node.op_type == "MatMul" for name in node.output
    }
    return {
        name: Pair(wanted=product_of(pairs[node.output[0]].wanted))
        for node in model.graph.node
        if node.op_type == "Add"
        and node.output[0] in pairs
        and product_of(pairs[node.output[0]].wanted) in known
        for name in products & set(node.input)
    }


def _carried(
    node: onnx.NodeProto,
    pairs: dict[str, Pair],
    names: Collection[str],
    constants: dict[str, onnx.TensorProto],
) -> Pair | None:
    """What a node's output stands for when it hands its input on, in another form or not."""
    if node.op_type == "DequantizeLinear":
        base = node.output[0].removesuffix(DEQUANTIZED)
        if base in names:
            return Pair(wanted=base)
    before = pairs.get(node.input[0]) if node.input else None
    if before is None:
        return None
    if node.op_type == "QuantizeLinear":
        steps = steps_of(node, constants)
        return None if steps is None else Pair(wanted=before.wanted, steps=steps)
    if node.op_type == "DequantizeLinear" and before.steps is not None:
        return Pair(wanted=before.wanted)
    return Pair(wanted=before.wanted) if _carries(node) else None


def _carries(node: onnx.NodeProto) -> bool:
    """Whether a node hands on what it reads, but for rounding."""
    if node.op_type == "Cast":
        return any(one.name == "to" and one.i in FLOATS for one in node.attribute)
    return node.op_type == "Identity"


def steps_of(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> Steps | None:
    """Those of a QuantizeLinear or a DequantizeLinear, where they are constants."""
    known = [numpy_helper.to_array(constants[name]) for name in node.input[1:] if name in constants]
    if len(known) != 2 or known[0].ndim > 1:
        return None
    axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
    return Steps(scale=known[0], zero=known[1], axis=int(axis))


def _clipped(model: onnx.ModelProto, pairs: dict[str, Pair]) -> dict[str, Pair]:
    """The pairs of values that only quantizers read, where the reference has no such numbers."""
    readers = users(model.graph)
    outputs = {output.name for output in model.graph.output}
    return {
        name: Pair(wanted=pair.wanted, steps=pair.steps, clipped=True)
        for name, pair in pairs.items()
        if name not in outputs
        and name in readers
        and all(
            node.op_type == "QuantizeLinear"
            and all(one in pairs and pairs[one].steps for one in outputs_of(node))
            for node in readers[name]
        )
    }
