"""Each operator of ONNX as kernels of the C program; what is not here is refused by its name.

A tensor of whole numbers behind a `DequantizeLinear` is never made floats of where a kernel can
compute with the numbers themselves: sums of a convolution stay integers until the next
`QuantizeLinear`, and the largest of whole numbers is a whole number.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from pipeline.targets.c99.ctext import number, plain
from pipeline.targets.c99.graph import (
    CURES,
    DTYPES,
    STATIC,
    Constant,
    Node,
    Program,
    QuantizedConstant,
    View,
    every_node,
    fold,
)
from pipeline.targets.c99.kernels import (
    Arithmetic,
    Clamp,
    Curve,
    Dtype,
    Elementwise,
    Grid,
    Quantize,
    Softmax,
    Source,
    TailStep,
)
from pipeline.targets.c99.windows import (
    convolution,
    global_pooling,
    matrix,
    pooling,
    reduce_mean,
)
from serving.runtime.tensors import Array

Lowering = Callable[[Program, Node], View | Constant]
"""Appends what an operator does, and gives its answer."""
WHOLE_TYPES: Mapping[np.dtype, Dtype] = {np.dtype(np.uint8): "uint8", np.dtype(np.int8): "int8"}


def read_graph(model: onnx.ModelProto) -> Program:
    """The kernels of a model, in the order of its nodes, none of them fused yet.

    Raises ModelError for what C cannot do, which names the operator and the node.
    """
    program = Program()
    weights = {tensor.name for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        program.values[tensor.name] = numpy_helper.to_array(tensor)
    for value in model.graph.input:
        if value.name not in weights:
            program.take_input(value)
    for node in every_node(model):
        _lower(program, node)
    for output in model.graph.output:
        program.give_output(output.name)
    return program


def _lower(program: Program, node: Node) -> None:
    if node.operator not in OPERATORS and node.operator in CURES:
        node.refuse("C has none", CURES[node.operator])
    if unknown := [name for name in node.proto.input if name and name not in program.values]:
        node.refuse(f"nothing makes {plain(unknown[0])!r}, which it reads", "check the model")
    read = [program.values[name] for name in node.proto.input if name]
    if all(isinstance(one, np.ndarray) for one in read) and node.operator != "DequantizeLinear":
        made = fold(node.proto, [one for one in read if isinstance(one, np.ndarray)], node.opset)
        names = [name for name in node.proto.output if name]
        program.values.update(zip(names, map(np.asarray, made), strict=True))
        return
    if node.operator not in OPERATORS:
        known = ", ".join(sorted(OPERATORS))
        node.refuse(f"C has {known}")
    if len([name for name in node.proto.output if name]) > 1 and node.operator != "Dropout":
        node.refuse("it makes a second answer")
    program.values[node.proto.output[0]] = OPERATORS[node.operator](program, node)


def _same(program: Program, node: Node) -> View | Constant:
    return program.values[node.proto.input[0]]


def _moved(program: Program, node: Node) -> View | Constant:
    """What gives values another place: the node itself, computed on their places."""
    found = program.values[node.proto.input[0]]
    if isinstance(found, QuantizedConstant):
        found = found.values
    places = found.index if isinstance(found, View) else found
    others = [program.array(node, at, "second input") for at in range(1, len(node.proto.input))]
    plain = [other for other in others if other is not None]
    (made,) = fold(node.proto, [places, *plain], node.opset)
    if not made.size:
        node.refuse("it leaves no values")
    return View(found.source, made) if isinstance(found, View) else made


def _shape(program: Program, node: Node) -> View | Constant:
    found = program.values[node.proto.input[0]]
    shape = found.index.shape if isinstance(found, View) else np.shape(_plain(found))
    return np.array(shape[node.get("start", 0) : node.get("end", None)], np.int64)


def _plain(known: Constant) -> Array:
    return known.values if isinstance(known, QuantizedConstant) else known


def _cast(program: Program, node: Node) -> View | Constant:
    found, to = program.values[node.proto.input[0]], node.get("to", 0)
    if not isinstance(found, View):
        return _plain(found).astype(onnx.helper.tensor_dtype_to_np_dtype(to))
    dtype = found.source.buffer.dtype
    if found.raw and to == TensorProto.FLOAT:
        return View(Source(found.source.buffer, Grid(np.float32(1), 0)), found.index)
    if DTYPES.get(to) != (dtype if found.raw else "float"):
        kind = TensorProto.DataType.Name(to).lower()
        node.refuse(f"C computes in float and in int8, not in {kind}", STATIC)
    return found


def _dequantize(program: Program, node: Node) -> View | Constant:
    found = program.values[node.proto.input[0]]
    scale, zero = program.array(node, 1, "scale"), program.array(node, 2, "zero point")
    if scale is None or scale.dtype != np.float32 or node.get("block_size", 0):
        node.refuse("its scale must be float32, of the tensor or of each channel", STATIC)
    if isinstance(found, View):
        if not found.raw:
            node.refuse("it reads no uint8 or int8")
        grid = _grid(node, scale, zero)
        return View(Source(found.source.buffer, grid), found.index)
    whole = _plain(found)
    zero = np.zeros((), whole.dtype) if zero is None else zero
    axis = node.get("axis", 1) % max(whole.ndim, 1)
    return QuantizedConstant(whole, scale, zero.astype(np.int64), axis)


def _quantize(program: Program, node: Node) -> View | Constant:
    scale, zero = program.array(node, 1, "scale"), program.array(node, 2, "zero point")
    dtype = WHOLE_TYPES.get(np.dtype(np.uint8) if zero is None else zero.dtype)
    if scale is None or scale.dtype != np.float32 or dtype is None:
        node.refuse("C rounds to uint8 and int8, by a scale of float32", STATIC)
    view, grid = program.view(node), _grid(node, scale, zero)
    if view.source.grid == grid and view.source.buffer.dtype == dtype:
        return View(Source(view.source.buffer), view.index)
    return _each(program, node, view, [Quantize(grid, dtype)], dtype)


def _grid(node: Node, scale: Array, zero: Array | None) -> Grid:
    if scale.size != 1:
        node.refuse("a computed tensor has one scale, this has one for each channel", STATIC)
    step = np.float32(scale.ravel()[0])
    if not (np.isfinite(step) and step > 0):
        node.refuse(f"a scale must be above 0, this is {step}")
    return Grid(step, 0 if zero is None else int(zero.ravel()[0]))


def _each(
    program: Program, node: Node, view: View, tail: list[TailStep], dtype: Dtype = "float"
) -> View:
    """A tail of steps on each value of a tensor."""
    view = program.whole_buffer(view, node.name)
    target = program.buffer(dtype, view.index.size)
    kernel = Elementwise(
        title=node.name,
        source=view.source,
        target=target,
        tail=tuple(tail),
        channels=_channels(view),
    )
    return program.add(kernel, view.index)


def _channels(view: View) -> int:
    shape = view.index.shape
    return int(shape[1]) if len(shape) > 1 else 1


def _stepwise(
    make: Callable[[Program, Node], TailStep],
) -> Lowering:
    """An operator of one input."""

    def lowered(program: Program, node: Node) -> View | Constant:
        return _each(program, node, program.view(node), [make(program, node)])

    return lowered


def _clip(program: Program, node: Node) -> TailStep:
    bounds = [program.array(node, at, "bound") for at in (1, 2)]
    low, high = (None if bound is None else float(bound) for bound in bounds)
    low = node.get("min", -math.inf) if low is None else low
    return Clamp(low, node.get("max", math.inf) if high is None else high)


def _leaky(_program: Program, node: Node) -> TailStep:
    slope = np.float32(node.get("alpha", 0.01))
    return Curve(f"{{v}} < 0.0f ? {{v}} * {number(slope)} : {{v}}", rising=bool(slope >= 0))


def _arithmetic(sign: Literal["+", "-", "*", "/"]) -> Lowering:
    def lowered(program: Program, node: Node) -> View | Constant:
        names = node.proto.input
        left, right = (program.values[name] for name in names)
        swapped = not isinstance(left, View) or (
            # The tail of the later one can then do this as well.
            isinstance(right, View) and program.made_at(right) > program.made_at(left)
        )
        view = program.whole_buffer(program.view(node, int(swapped)), node.name)
        other = left if swapped else right
        step = Arithmetic(sign, _operand(program, node, view, other), swapped and sign in "-/")
        return _each(program, node, view, [step])

    return lowered


def _operand(
    program: Program, node: Node, view: View, other: View | Constant
) -> float | Array | Source:
    """The other operand in the order in which the first one lies."""
    if isinstance(other, View):
        if other.raw:
            node.refuse(f"it would compute with {other.source.buffer.dtype} as they are")
        if other.index.shape != view.index.shape:
            node.refuse(
                f"two computed tensors must have one shape, these have {list(view.index.shape)} "
                f"and {list(other.index.shape)}"
            )
        return program.arranged(other, view.index, node.name).source
    values = _plain(other)
    if np.broadcast_shapes(values.shape, view.index.shape) != view.index.shape:
        node.refuse(f"a constant of {list(values.shape)} makes the tensor larger")
    if (values == values.ravel()[:1]).all():
        return float(values.ravel()[0])
    placed = np.empty(view.index.size, np.float32)
    placed[view.index.ravel()] = np.broadcast_to(values, view.index.shape).ravel()
    period = placed.reshape(-1, _channels(view))
    return period[0] if (period == period[0]).all() else placed


def _softmax(program: Program, node: Node) -> View | Constant:
    view = program.view(node)
    if view.source.grid:
        view = _each(program, node, view, [])
    rank = view.index.ndim
    axis = node.get("axis", -1 if node.opset >= 13 else 1) % rank
    if node.opset < 13 and axis != rank - 1:
        node.refuse("before opset 13 it flattens axes; convert the model to opset 13")
    turned = np.moveaxis(view.index, axis, -1)
    order = np.moveaxis(np.arange(turned.size).reshape(turned.shape), -1, axis)
    view = program.arranged(view, order, node.name)
    kernel = Softmax(
        title=node.name,
        source=view.source,
        target=program.buffer("float", view.index.size),
        width=turned.shape[-1],
    )
    return program.add(kernel, order)


OPERATORS: Mapping[str, Lowering] = {
    "Add": _arithmetic("+"),
    "AveragePool": pooling,
    "Cast": _cast,
    "Clip": _stepwise(_clip),
    "Conv": convolution,
    "DequantizeLinear": _dequantize,
    "Div": _arithmetic("/"),
    "Dropout": _same,
    "Flatten": _moved,
    "Gather": _moved,
    "Gemm": matrix,
    "GlobalAveragePool": global_pooling,
    "GlobalMaxPool": global_pooling,
    "Identity": _same,
    "LeakyRelu": _stepwise(_leaky),
    "MatMul": matrix,
    "MaxPool": pooling,
    "Mul": _arithmetic("*"),
    "Neg": _stepwise(lambda _program, _node: Curve("-{v}", rising=False)),
    "QuantizeLinear": _quantize,
    "ReduceMean": reduce_mean,
    "Relu": _stepwise(lambda _program, _node: Clamp(0.0, math.inf)),
    "Reshape": _moved,
    "Shape": _shape,
    "Sigmoid": _stepwise(
        lambda _program, _node: Curve("1.0f / (1.0f + exponential(-{v}))", rising=True)
    ),
    "Slice": _moved,
    "Softmax": _softmax,
    "Squeeze": _moved,
    "Sub": _arithmetic("-"),
    "Tanh": _stepwise(lambda _program, _node: Curve("tanhf({v})", rising=True)),
    "Transpose": _moved,
    "Unsqueeze": _moved,
}
"""What makes the answer of a node."""
