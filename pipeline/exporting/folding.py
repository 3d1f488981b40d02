"""The standardisation of raw rows folded into the first layer, which then takes them as they are.

`layer((values - mean) * scale)` is the same layer with other weights and another bias. They are
computed once, in float64, where nodes would run at each call.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper

from pipeline.exporting.onnxmodel import (
    Names,
    constants,
    drop_unused_constants,
    replace_constant,
)
from pipeline.proof.tracing.values import makers, users
from serving.runtime.tensors import Array

MOST_SPREAD = 4.0
"""How many times as far as another one a feature may vary: a quantizer rounds all of them alike."""
FARTHEST = 8.0
"""Deviations of a mean from zero: raw values are so much larger, and what rounds them with them."""


def fold_standardisation(model: onnx.ModelProto) -> None:
    """Let the first layer of a graph that ferry exported do the standardisation before it.

    A linear layer takes the pixels of an image in the order in which they come, without the
    Transpose. Of a convolution the scale is folded, and the mean too where it pads nothing: the
    zeros of its padding stand for the mean. Features of very different size and those far from zero
    stay standardised, for with raw ones rounding would show.
    """
    way = next(ways_from_inputs(model), [])
    match [node.op_type for node in way]:
        case ["Transpose", "Cast", "Sub", "Mul", "Reshape", "Gemm"]:
            fold = _fold_flattened
        case ["Transpose", "Cast", "Sub", "Mul", "Conv"] | ["Sub", "Mul", "Gemm"]:
            fold = _fold_plain
        case _:
            return
    known = constants(model)
    mean, scale = (
        known[node.input[1]].astype(np.float64) for node in way if node.op_type in ("Sub", "Mul")
    )
    if scale.max() <= MOST_SPREAD * scale.min() and np.abs(mean * scale).max() <= FARTHEST:
        fold(model, way, mean, scale)
        drop_unused_constants(model)
        made = makers(model.graph)
        for value in [one for one in model.graph.value_info if one.name not in made]:
            model.graph.value_info.remove(value)


def ways_from_inputs(model: onnx.ModelProto) -> Iterator[list[onnx.NodeProto]]:
    """The nodes from an input to a plain convolution or linear layer, each read by the next alone.

    Plain is a layer whose weights are constants of its own, [outputs, inputs, ...].
    """
    known, made, readers = constants(model), makers(model.graph), users(model.graph)
    inputs = {value.name for value in model.graph.input}
    outputs = {value.name for value in model.graph.output}
    for layer in model.graph.node:
        own = all(name in known and len(readers[name]) == 1 for name in layer.input[1:])
        if not own or not _is_plain(layer):
            continue
        way = [layer]
        while (
            (name := (*way[0].input, "")[0]) in made
            and name not in outputs
            and len(readers[name]) == 1
        ):
            way.insert(0, made[name])
        if name in inputs:
            yield way


def absorb(model: onnx.ModelProto, layer: onnx.NodeProto, mean: Array, scale: Array) -> None:
    """Give a plain layer of `(values - mean) * scale` the weights with which it takes `values`.

    `mean` and `scale` are float64 [inputs] or [1]. Where a convolution pads, only a mean of 0 is
    the same.
    """
    known = constants(model)
    weight = known[layer.input[1]]
    axes = (slice(None), *(None,) * (weight.ndim - 2))
    scaled = (weight * scale[axes]).astype(weight.dtype)
    replace_constant(model, layer.input[1], scaled)
    # Of the weights as they were rounded, so that their rounding does nothing at the mean.
    shift = (scaled * mean[axes]).sum(axis=tuple(range(1, weight.ndim)))
    if not shift.any():
        return
    if len(layer.input) < 3:
        layer.input.append(Names(model).new(f"{layer.input[1].removesuffix('.weight')}.bias"))
    bias = known.get(layer.input[2], np.zeros(len(weight)))
    replace_constant(model, layer.input[2], (bias - shift).astype(weight.dtype))


def _is_plain(layer: onnx.NodeProto) -> bool:
    found = _attributes(layer)
    if layer.op_type == "Conv":
        return bool(found.get("group", 1) == 1)
    product = found.get("alpha", 1) == found.get("beta", 1) == 1 and not found.get("transA")
    return layer.op_type == "Gemm" and product and found.get("transB") == 1


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _fold_plain(
    model: onnx.ModelProto, way: list[onnx.NodeProto], mean: Array, scale: Array
) -> None:
    """What is standardised is what the layer reads."""
    *_, subtract, multiply, layer = way
    if mean.any() and _pads(layer):
        gone, mean = [multiply], np.zeros(1)
    else:
        gone = [subtract, multiply]
    absorb(model, layer, mean.ravel(), scale.ravel())
    layer.input[0] = gone[0].input[0]
    for node in gone:
        model.graph.node.remove(node)


def _pads(layer: onnx.NodeProto) -> bool:
    found = _attributes(layer)
    return any(found.get("pads", ())) or found.get("auto_pad", b"VALID").startswith(b"SAME")


def _fold_flattened(
    model: onnx.ModelProto, way: list[onnx.NodeProto], mean: Array, scale: Array
) -> None:
    """The layer reads rows that were turned and flattened: its columns are turned back instead."""
    turn, cast, subtract, multiply, flatten, layer = way
    source = turn.input[0]
    (shape,) = [one.type.tensor_type.shape for one in model.graph.input if one.name == source]
    (order,) = [list(one.ints) for one in turn.attribute]
    row = [shape.dim[axis].dim_value for axis in order[1:]]
    weight = constants(model)[layer.input[1]]
    if weight.shape[1] != np.prod(row):
        return  # something else than whole rows is flattened

    def in_order(values: Array, count: int) -> Array:
        planes = np.broadcast_to(values, (count, *row))
        return planes.transpose(np.argsort(order)).reshape(count, -1)

    columns = in_order(weight.reshape(-1, *row), len(weight))
    replace_constant(model, layer.input[1], columns)
    absorb(model, layer, in_order(mean, 1)[0], in_order(scale, 1)[0])
    # Their values are none of PyTorch's, so neither are their names.
    turn.CopyFrom(flatten)
    turn.input[0], turn.output[0] = source, f"{source}.rows"
    cast.input[0], cast.output[0] = turn.output[0], f"{source}.values"
    layer.input[0] = cast.output[0]
    for node in (subtract, multiply, flatten):
        model.graph.node.remove(node)
