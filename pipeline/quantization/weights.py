"""Keep the weights alone in whole numbers, in 8 or in 4 bits.

It suits what static quantization knows no kernel for: recurrent layers, transposed convolutions and
tables of embeddings, and matrices of which the weights are all that takes time to read.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from pipeline.exporting import onnxmodel
from pipeline.quantization.prepare import constants, copied, replace_constant

Array = npt.NDArray[Any]
SMALLEST = 256
"""Weights of fewer values stay as they are: the scales and nodes would cost more."""
BLOCK = 32
"""Weights of a matrix that share a scale."""
INT8_KERNEL = 4
"""Round activations to int8 within the operator, row by row: in float, 8 bits are 14 times slower
than a plain matrix."""
# The inputs that are weights, and the axis along which each gets a scale of its own.
WEIGHTS = {"Conv": {1: 0}, "ConvTranspose": {1: 1}, "LSTM": {1: 1, 2: 1}, "GRU": {1: 1, 2: 1}}
HIGHEST = 127


def weight_only(model: onnx.ModelProto, bits: int) -> onnx.ModelProto:
    """Quantize the constant weights of a prepared model, matrices to `bits`, all others to 8.

    Matrices become `MatMulNBits` of the domain com.microsoft, in blocks of 32 weights; the others
    stand behind a `DequantizeLinear`, and tables are looked up before it.
    """
    changed = _as_products(model)
    for node in list(changed.graph.node):
        if node.op_type == "Gather":
            _quantize_table(changed, node)
        for index, axis in WEIGHTS.get(node.op_type, {}).items():
            _quantize_weight(changed, node, index, axis)
    _drop_unused(changed)
    known = constants(changed)
    small = [
        node.name
        for node in changed.graph.node
        if node.op_type == "MatMul" and known.get(node.input[1], np.empty(0)).size < SMALLEST
    ]
    with onnxmodel.quiet():
        quantizer = MatMulNBitsQuantizer(
            changed,
            bits,
            BLOCK,
            is_symmetric=True,
            accuracy_level=INT8_KERNEL,
            nodes_to_exclude=small,
        )
        quantizer.process()
    made: onnx.ModelProto = quantizer.model.model
    return made


def _as_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with each `Gemm` of a constant matrix as `MatMul` and `Add`, where it is the same."""
    changed = copied(model)
    known = constants(changed)
    nodes = list(changed.graph.node)
    del changed.graph.node[:]
    for node in nodes:
        if not _is_product(node, known):
            changed.graph.node.append(node)
            continue
        matrix = known[node.input[1]]
        transposed = any(one.name == "transB" and one.i for one in node.attribute)
        name = f"{node.input[1]}.matrix"
        replace_constant(changed, name, matrix.T if transposed else matrix)
        has_bias = len(node.input) > 2
        product = f"{node.output[0]}.product" if has_bias else node.output[0]
        changed.graph.node.append(
            helper.make_node("MatMul", [node.input[0], name], [product], name=node.name)
        )
        if has_bias:
            changed.graph.node.append(
                helper.make_node(
                    "Add", [product, node.input[2]], [node.output[0]], name=f"{node.name}.bias"
                )
            )
    _drop_unused(changed)
    return changed


def _is_product(node: onnx.NodeProto, known: dict[str, Array]) -> bool:
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    return (
        node.op_type == "Gemm"
        and node.input[1] in known
        and known[node.input[1]].size >= SMALLEST
        and all(attributes.get(name, value) == value for name, value in plain.items())
    )


def _quantize_weight(model: onnx.ModelProto, node: onnx.NodeProto, index: int, axis: int) -> None:
    """Put a `DequantizeLinear` before a weight, with a scale for each place along `axis`."""
    weight = constants(model).get(node.input[index])
    if weight is None or weight.dtype != np.float32 or weight.size < SMALLEST:
        return
    others = tuple(number for number in range(weight.ndim) if number != axis)
    whole, scale = _rounded(weight, np.abs(weight).max(axis=others, keepdims=True))
    dequantize = _stored(model, node.input[index], whole, scale.ravel(), node.input[index])
    dequantize.attribute.append(helper.make_attribute("axis", axis))
    node.input[index] = dequantize.output[0]
    model.graph.node.insert(0, dequantize)


def _quantize_table(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Look up rows of whole numbers, and turn into floats those alone that were looked up."""
    table = constants(model).get(node.input[0])
    if table is None or table.dtype != np.float32 or table.size < SMALLEST:
        return
    whole, scale = _rounded(table, np.abs(table).max())
    found = f"{node.output[0]}.whole"
    dequantize = _stored(model, node.input[0], whole, scale, found)
    dequantize.output[0] = node.output[0]
    dequantize.input[0] = found
    node.input[0] = f"{node.input[0]}.whole"
    node.output[0] = found
    place = [one.output[0] for one in model.graph.node].index(found)
    model.graph.node.insert(place + 1, dequantize)


def _stored(
    model: onnx.ModelProto, name: str, whole: Array, scale: Array, made: str
) -> onnx.NodeProto:
    """Add a weight and its scale to the model; the node that makes floats of it, not yet in it."""
    replace_constant(model, f"{name}.whole", whole)
    replace_constant(model, f"{name}.scale", scale)
    return helper.make_node(
        "DequantizeLinear",
        [f"{name}.whole", f"{name}.scale"],
        [f"{made}.float"],
        name=f"{made}/DequantizeLinear",
    )


def _rounded(weight: Array, largest: Array) -> tuple[Array, Array]:
    """Whole numbers from -127 to 127 and the scales that make the weights of them again."""
    scale = np.maximum(largest, np.finfo(np.float32).tiny) / HIGHEST
    whole = np.clip(np.rint(weight / scale), -HIGHEST, HIGHEST).astype(np.int8)
    return whole, scale.astype(np.float32)


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    used |= {value.name for value in model.graph.output}
    for tensor in [one for one in model.graph.initializer if one.name not in used]:
        model.graph.initializer.remove(tensor)
