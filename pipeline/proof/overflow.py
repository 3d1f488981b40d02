"""Where integer products of a model overflow on a processor without VNNI, and what it answers then.

There x86 kernels multiply bytes two by two and add each pair in 16 bits, with saturation
(`vpmaddubsw`). Activations are 0 to 255 by then, so weights of int8 within ±64 can never overflow:
255 × 64 × 2 is 32,640. Kernels with VNNI, those of Arm and those for weights of uint8 are exact.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import helper, numpy_helper

from pipeline.exporting.onnxmodel import subgraphs
from pipeline.proof.tracing.values import OnnxValues
from serving.runtime.kernels import VNNI
from serving.runtime.tensors import Array

SAFE = 64
"""The largest size of a weight of int8 of which no pair of products overflows 16 bits."""
LOWEST, HIGHEST = -(2**15), 2**15 - 1
LARGEST_BYTE = 255
BETWEEN = ("Conv", "Gemm", "MatMul")
"""Products of integers where `DequantizeLinear` gives both what they take and their weights."""
WEIGHT_INPUTS = {
    **dict.fromkeys((*BETWEEN, "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"), (1,)),
    **dict.fromkeys(("DynamicQuantizeMatMul", "QAttention"), (1,)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), (3,)),
    "DynamicQuantizeLSTM": (1, 2),
}
MOVES = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""What may stand between integers and their product."""
PIECE = 16
"""Rows that are laid out for a product at once."""

Graph = onnx.GraphProto | onnx.FunctionProto
Makers = Mapping[str, onnx.NodeProto]
Constants = Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerProduct:
    """A node that multiplies integers and adds the products up."""

    node: onnx.NodeProto
    largest: int | None
    """The largest size of a weight of int8, 0 for weights of another type; None for weights that
    are computed, and may be anything."""

    @property
    def safe(self) -> bool:
        """Whether no pair of its products can overflow."""
        return self.largest is not None and self.largest <= SAFE


@dataclass(frozen=True, slots=True, kw_only=True)
class Overflows:
    """What overflows on some rows, and what the model answers then."""

    overflows: int
    """Pairs of products whose sum does not fit."""
    exact: Mapping[str, Array]
    """The outputs by name, each [rows, ...], as the graph says, whatever processor computes it."""
    answers: Mapping[str, Array]
    """The same with every sum as it comes out without VNNI."""


def integer_products(graph: Graph, outer: Constants | None = None) -> Iterator[IntegerProduct]:
    """All products of integers in a graph and in its subgraphs.

    `outer` are the constants of the graph around it.
    """
    known = {**(outer or {}), **_constants(graph)}
    made = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        for place in WEIGHT_INPUTS.get(node.op_type, ()):
            if node.op_type not in BETWEEN:
                largest = _largest(node.input[place], known=known)
                yield IntegerProduct(node=node, largest=largest)
            elif pair := _dequantizers(node, made):
                name, _, *zero = pair[1].input
                largest = _largest(name, *zero, known=known)
                yield IntegerProduct(node=node, largest=largest)
        for inner in subgraphs(node):
            yield from integer_products(inner, known)


def needs_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """What a processor must have to answer as the graph says: ("vnni",), or nothing.

    A proof of the file alone: nothing is needed where no pair of products can overflow.
    """
    graphs: list[Graph] = [model.graph, *model.functions]
    safe = all(one.safe for graph in graphs for one in integer_products(graph))
    return () if safe else (VNNI,)


def without_vnni(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Overflows:
    """Count the pairs of products that overflow on rows, and answer as without VNNI.

    `feeds` are [rows, ...] by the name of the input. The graph runs as it is written, and what each
    product loses is taken off its output, from the front to the back. That is exact for `Conv`,
    `Gemm` and `MatMul` between `QuantizeLinear` and `DequantizeLinear` and for `MatMulInteger`; all
    others, and those in subgraphs, answer as they are written.
    """
    changed = _exact(model)
    outputs = [output.name for output in model.graph.output]
    exact = OnnxValues(changed, feeds).fetch(outputs)
    made = {name: node for node in model.graph.node for name in node.output}
    known = _constants(model.graph)
    losses: dict[str, Array] = {}
    overflows = 0
    for product in integer_products(model.graph):
        node = product.node
        if product.safe or node.output[0] not in made:
            continue
        operands = _operands(node, OnnxValues(changed, {**feeds, **losses}), made, known)
        lost = _lost(node, operands) if operands else None
        if operands and lost and lost[1]:
            losses[_take_off(changed, node)] = lost[0].astype(operands.scale.dtype)
            overflows += lost[1]
    answers = OnnxValues(changed, {**feeds, **losses}).fetch(outputs)
    return Overflows(overflows=overflows, exact=exact, answers=answers)


# The proof


def _constants(graph: Graph) -> dict[str, Array]:
    stored = graph.initializer if isinstance(graph, onnx.GraphProto) else ()
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in stored}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                found[node.output[0]] = numpy_helper.to_array(attribute.t)
    return found


def _dequantizers(node: onnx.NodeProto, made: Makers) -> tuple[onnx.NodeProto, ...] | None:
    """The nodes that make floats of what a product takes and of its weights, if both do."""
    found = []
    for name in node.input[:2]:
        maker = made.get(name)
        while maker and maker.op_type in MOVES:
            maker = made.get(maker.input[0])
        if maker and maker.op_type == "DequantizeLinear":
            found.append(maker)
    return tuple(found) if len(found) == 2 else None


def _largest(name: str, zero: str = "", *, known: Constants) -> int | None:
    """The largest size of weights of int8; `zero` is their zero point, which has their type."""
    if name in known:
        weights = known[name]
        signed = weights.dtype == np.int8
        return int(np.abs(weights.astype(np.int16)).max(initial=0)) if signed else 0
    return 0 if zero in known and known[zero].dtype == np.uint8 else None


# The simulation


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operands:
    """What a product multiplies, as integers."""

    taken: Array
    """0 to 255, as the node takes it."""
    zero: int
    """What a padded place holds."""
    weights: Array
    """As the node takes them; outputs on the last axis, of a convolution on the first."""
    scale: Array
    """Of one in a sum: a number, or one for each output."""


def _exact(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose `MatMulInteger` have weights of uint8, which no processor lets overflow.

    Those of int8 overflow without VNNI even where the graph is run as it is written.
    """
    changed = copy.deepcopy(model)
    known = _constants(changed.graph)
    for node in changed.graph.node:
        if node.op_type != "MatMulInteger" or not _is_signed(node.input[1], known):
            continue
        zero = (
            known.get(node.input[3], np.zeros((), np.int8)) if len(node.input) > 3 else np.int8(0)
        )
        node.input.extend([""] * (4 - len(node.input)))
        for place, values in ((1, known[node.input[1]]), (3, zero)):
            shifted = (np.asarray(values, np.int16) + 128).astype(np.uint8)
            node.input[place] = f"{node.output[0]}.unsigned{place}"
            changed.graph.initializer.append(numpy_helper.from_array(shifted, node.input[place]))
    return changed


def _is_signed(name: str, known: Constants) -> bool:
    return name in known and known[name].dtype == np.int8


def _take_off(model: onnx.ModelProto, node: onnx.NodeProto) -> str:
    """Let an input of the model be added to what a node makes; returns the input's name."""
    (own,) = (one for one in model.graph.node if one.output[:1] == node.output[:1])
    name, exact, lost = node.output[0], f"{node.output[0]}.exact", f"{node.output[0]}.lost"
    own.output[0] = exact
    kind = onnx.TensorProto.INT32 if own.op_type == "MatMulInteger" else onnx.TensorProto.FLOAT
    model.graph.input.add(name=lost).type.tensor_type.elem_type = kind
    place = list(model.graph.node).index(own) + 1
    model.graph.node.insert(place, helper.make_node("Add", [exact, lost], [name]))
    return lost


def _operands(
    node: onnx.NodeProto, values: OnnxValues, made: Makers, known: Constants
) -> _Operands | None:
    """Those of a node; None for a form that is not computed here."""
    found = {**values.feeds, **values.fetch(node.input[:2])}
    taken, weights = (found[name] for name in node.input[:2])
    if node.op_type == "MatMulInteger":
        return _Operands(taken=taken, zero=0, weights=weights, scale=np.ones((), np.int32))
    pair = _dequantizers(node, made) if node.op_type in BETWEEN else None
    if pair is None or any(name not in known for one in pair for name in one.input[1:]):
        return None
    (scale, *zeros), (weight_scale, *_) = ([known[name] for name in one.input[1:]] for one in pair)
    zero = zeros[0] if zeros else np.zeros((), np.uint8)
    # Kernels turn activations of int8 into uint8 by adding 128.
    offset = int(zero.item()) + (128 if zero.dtype == np.int8 else 0)
    by_output = weight_scale
    if node.op_type == "Conv" and weight_scale.size > 1:
        by_output = weight_scale.reshape(-1, *[1] * (weights.ndim - 1))
    elif _attribute(node, "transB", 0):
        weights = weights.T
    return _Operands(
        taken=np.rint(taken / scale).astype(np.int32) + offset,
        zero=offset,
        weights=np.rint(weights / by_output).astype(np.int32),
        scale=(scale * weight_scale * _attribute(node, "alpha", 1.0)).astype(np.float32),
    )


def _lost(node: onnx.NodeProto, operands: _Operands) -> tuple[Array, int] | None:
    """What the sums of a node lose, in the shape of its output, and the pairs that overflow."""
    if node.op_type == "Conv":
        return _lost_by_convolution(node, operands)
    taken, weights = operands.taken, operands.weights
    if weights.ndim != 2 or taken.dtype == np.int8 or _attribute(node, "transA", 0):
        return None
    lost, count = lost_in_pairs(taken.reshape(-1, taken.shape[-1]), weights)
    return (lost * operands.scale).reshape(*taken.shape[:-1], -1), count


def _lost_by_convolution(node: onnx.NodeProto, operands: _Operands) -> tuple[Array, int] | None:
    taken, weights = operands.taken, operands.weights
    groups = _attribute(node, "group", 1)
    # Kernels for one plane at a time multiply in 32 bits.
    if _attribute(node, "auto_pad", b"NOTSET") != b"NOTSET" or groups == len(weights):
        return None
    parts, total = [], 0
    for start in range(0, len(taken), PIECE):
        windows = _windows(node, taken[start : start + PIECE], weights.shape[2:], operands.zero)
        found = []
        for inputs, own in zip(
            np.split(windows, groups, axis=-1), np.split(weights, groups), strict=True
        ):
            # Channels are innermost, as the kernels lay rows out.
            columns = inputs.reshape(-1, own[0].size)
            lost, count = lost_in_pairs(columns, np.moveaxis(own, 1, -1).reshape(len(own), -1).T)
            found.append(lost.reshape(*windows.shape[: taken.ndim - 1], -1))
            total += count
        parts.append(np.concatenate(found, axis=-1) * operands.scale)
    return np.moveaxis(np.concatenate(parts), -1, 1), total


def _windows(
    node: onnx.NodeProto, taken: Array, kernel: tuple[int, ...], zero: int
) -> npt.NDArray[Any]:
    """What each place of a convolution's output is made of: [rows, *places, *kernel, channels]."""
    count = len(kernel)
    pads = _attribute(node, "pads", [0] * 2 * count)
    strides = _attribute(node, "strides", [1] * count)
    dilations = _attribute(node, "dilations", [1] * count)
    edges = [(0, 0), (0, 0), *zip(pads[:count], pads[count:], strict=True)]
    padded = np.pad(taken, edges, constant_values=zero)
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    axes = tuple(range(2, 2 + count))
    windows = sliding_window_view(padded, spans, axis=axes)
    steps = (*(slice(None, None, step) for step in (*strides, *dilations)),)
    return np.moveaxis(windows[(slice(None), slice(None), *steps)], 1, -1)


def lost_in_pairs(taken: Array, weights: Array) -> tuple[npt.NDArray[np.int32], int]:
    """What saturation to 16 bits takes off sums of products whose pairs are added first.

    `taken` are 0 to 255, [rows, values]; `weights` are int8 [values, outputs]. Returns what is to
    be added to `taken @ weights`, int32 [rows, outputs], and the number of pairs that overflow.
    """
    odd = len(weights) % 2
    left = np.pad(taken, ((0, 0), (0, odd))).astype(np.int32).reshape(len(taken), -1, 2)
    right = np.pad(weights, ((0, odd), (0, 0))).astype(np.int32).reshape(-1, 2, weights.shape[1])
    most = LARGEST_BYTE * np.maximum(right, 0).sum(axis=1)
    least = LARGEST_BYTE * np.minimum(right, 0).sum(axis=1)
    possible = (most > HIGHEST) | (least < LOWEST)
    lost, count = np.zeros((len(left), weights.shape[1]), np.int32), 0
    for pair in np.flatnonzero(possible.any(axis=1)):
        outputs = np.flatnonzero(possible[pair])
        sums = left[:, pair] @ right[pair][:, outputs]
        over = np.clip(sums, LOWEST, HIGHEST) - sums
        lost[:, outputs] += over
        count += int(np.count_nonzero(over))
    return lost, count


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    found = [helper.get_attribute_value(one) for one in node.attribute if one.name == name]
    return found[0] if found else default
