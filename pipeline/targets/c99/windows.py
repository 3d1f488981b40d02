"""Convolutions, matrices and poolings as kernels: what slides a window over planes."""

import math
from collections.abc import Callable

import numpy as np

from pipeline.targets.c99.graph import Constant, Node, Program, QuantizedConstant, View, clipped
from pipeline.targets.c99.kernels import RANGES, Dtype, Linear, Pooling, Source, Window
from serving.runtime.tensors import Array


def planes_of(height: int, width: int, channels: int) -> Array:
    """The places of [1, channels, height, width] where the channels lie last."""
    flat = np.arange(height * width * channels).reshape(1, height, width, channels)
    return flat.transpose(0, 3, 1, 2)


def whole_planes(program: Program, node: Node, view: View) -> View:
    """A tensor [1, C, H, W] or [1, C, L], the latter as [1, C, 1, L], with the channels last."""
    if view.index.ndim not in (3, 4):
        node.refuse(f"C has planes of one or two axes, this tensor is {list(view.index.shape)}")
    index = view.index[:, :, None, :] if view.index.ndim == 3 else view.index
    channels, height, width = index.shape[1:]
    order = planes_of(height, width, channels)
    return program.arranged(View(view.source, index), order, node.name)


def as_planes(view: View, rank: int) -> View:
    """[1, C, H, W] with the rank that its nodes know: [1, C, L] for 3."""
    return View(view.source, view.index[:, :, 0, :]) if rank == 3 else view


def window_of(node: Node, planes: View, kernel: tuple[int, ...]) -> Window:
    """The window that a node's attributes tell, over [1, C, H, W]; of one axis along the width."""
    height, width = planes.index.shape[2:]
    if not kernel or len(kernel) > 2:
        node.refuse(f"C has windows of one or two axes, this one is {list(kernel)}")

    def both(name: str, default: int) -> tuple[int, int]:
        found = [*node.get(name, [default] * len(kernel))]
        first, second = found if len(found) == 2 else (default, found[0])
        return first, second

    sizes = (1, kernel[0]) if len(kernel) == 1 else (kernel[0], kernel[1])
    pads = [*node.get("pads", [0] * 2 * len(kernel))]
    pads = pads if len(kernel) == 2 else [0, pads[0], 0, pads[1]]
    strides, dilations = both("strides", 1), both("dilations", 1)
    axes = [
        _axis(node, before, size, stride, dilation, (pads[at], pads[at + 2]))
        for at, (before, size, stride, dilation) in enumerate(
            zip((height, width), sizes, strides, dilations, strict=True)
        )
    ]
    (top, tall), (left, wide) = axes
    if min(tall, wide) < 1:
        node.refuse(f"a window of {list(sizes)} is larger than its planes {[height, width]}")
    return Window((height, width), (tall, wide), sizes, strides, dilations, (top, left))


def _axis(
    node: Node, before: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int]
) -> tuple[int, int]:
    """The padding at the start of an axis, and the size of the answer (ONNX, operator `Conv`)."""
    reach = (kernel - 1) * dilation + 1
    kind = node.get("auto_pad", b"NOTSET").decode()
    if kind.startswith("SAME"):
        after = -(-before // stride)
        total = max((after - 1) * stride + reach - before, 0)
        return (total // 2 if kind == "SAME_UPPER" else total - total // 2), after
    start, end = (0, 0) if kind == "VALID" else pads
    if min(start, end) < 0:
        node.refuse(f"its padding is {min(start, end)}, which cuts the planes")
    room = before + start + end - reach
    after = room // stride + 1
    if node.get("ceil_mode", 0):
        after = -(-room // stride) + 1
        # A window that would begin behind the planes is none.
        after -= (after - 1) * stride >= before + start
    return start, after


LARGEST_SUM = 2**31 - 1
SAME_SCALE = 1e-6
"""How far two scales may differ, of themselves: a few roundings of float32."""


def convolution(program: Program, node: Node) -> View:
    """Conv of one or two axes, in groups or not."""
    view = program.view(node)
    planes = whole_planes(program, node, view)
    weights = _weights(program, node, axis=0)
    if _shape(weights)[2:] and len(_shape(weights)) != view.index.ndim:
        node.refuse(f"weights of {list(_shape(weights))} for {list(view.index.shape)}")
    window = window_of(node, planes, tuple(_shape(weights)[2:]))
    groups, channels = node.get("group", 1), planes.index.shape[1]
    outputs, part = _shape(weights)[:2]
    if part * groups != channels or outputs % groups:
        node.refuse(f"weights of {list(_shape(weights))} in {groups} groups for {channels} planes")
    kernel = _linear(
        program,
        node,
        planes.source,
        _by_output(weights, window.kernel),
        program.constant(node, 2, "bias"),
        window=window,
        groups=groups,
    )
    made = program.add(kernel, planes_of(*window.after, outputs))
    return as_planes(made, view.index.ndim)


def matrix(program: Program, node: Node) -> View:
    """Gemm and MatMul by a constant matrix, as a convolution of pixels that each hold one row."""
    transposed = bool(node.get("transB", 0))
    if node.get("transA", 0):
        node.refuse("its first matrix is turned")
    weights = _weights(program, node, axis=0 if transposed else -1)
    view = program.view(node)
    if len(_shape(weights)) != 2 or view.index.ndim < 2:
        node.refuse(f"C multiplies by a matrix, this one is {list(_shape(weights))}")
    weights = weights if transposed else _changed(weights, np.transpose)
    outputs, features = _shape(weights)
    view = program.whole_buffer(view, node.name)
    rows = view.index.reshape(-1, features)
    order = rows - np.arange(len(rows))[:, None] * features
    if not (order == order[0]).all() or order.min() < 0 or order.max() >= features:
        view = program.arranged(
            view, np.arange(view.index.size).reshape(view.index.shape), node.name
        )
        order = np.arange(features)[None]
    places = np.argsort(order[0])  # what lies at each place of a row
    if (np.diff(places) != 1).any():
        weights = _changed(weights, lambda values: values[:, places])
    size = (1, len(rows))
    kernel = _linear(
        program,
        node,
        view.source,
        _by_output(weights, (1, 1)),
        program.constant(node, 2, "bias"),
        window=Window(size, size, (1, 1), (1, 1)),
        groups=1,
    )
    shape = (*view.index.shape[:-1], outputs)
    return program.add(kernel, np.arange(kernel.target.size).reshape(shape))


def pooling(program: Program, node: Node) -> View:
    """MaxPool, also of whole numbers as they are, and AveragePool, of one or two axes."""
    found = program.values[node.proto.input[0]]
    if not isinstance(found, View) or node.operator != "MaxPool":
        found = program.view(node)
    planes = whole_planes(program, node, found)
    window = window_of(node, planes, node.get("kernel_shape", ()))
    return _pooled(program, node, planes, window)


def global_pooling(program: Program, node: Node) -> View:
    """GlobalMaxPool and GlobalAveragePool."""
    view = program.view(node)
    planes = whole_planes(program, node, view)
    made = _pooled(program, node, planes, _everything(planes))
    return View(
        made.source, made.index.reshape(*view.index.shape[:2], *[1] * (view.index.ndim - 2))
    )


def reduce_mean(program: Program, node: Node) -> View:
    """ReduceMean over whole planes."""
    view, found = program.view(node), program.array(node, 1, "axes")
    rank = view.index.ndim
    axes = [*node.get("axes", ())] if found is None else [int(axis) for axis in found.ravel()]
    if sorted(axis % rank for axis in axes) != list(range(2, rank)) or rank < 3:
        node.refuse(
            f"a mean is of whole planes, the axes {list(range(2, rank))} of a tensor of rank "
            f"{rank}, these are {axes}"
        )
    planes = whole_planes(program, node, view)
    made = _pooled(program, node, planes, _everything(planes))
    kept = [1] * (rank - 2) if node.get("keepdims", 1) else []
    return View(made.source, made.index.reshape(*view.index.shape[:2], *kept))


def _everything(planes: View) -> Window:
    size = planes.index.shape[2], planes.index.shape[3]
    return Window(before=size, after=(1, 1), kernel=size, strides=(1, 1))


def _pooled(program: Program, node: Node, planes: View, window: Window) -> View:
    """A pooling; the largest of whole numbers is on their grid."""
    mean = "Max" not in node.operator
    channels = planes.index.shape[1]
    dtype: Dtype = "float" if mean else planes.source.buffer.dtype
    counts = mean and bool(node.get("count_include_pad", 0))
    if counts and node.get("ceil_mode", 0):
        node.refuse("it counts padding and rounds sizes up, which runtimes understand differently")
    source = planes.source if mean else Source(planes.source.buffer)
    kernel = Pooling(
        title=node.name,
        source=source,
        target=program.buffer(dtype, math.prod(window.after) * channels),
        window=window,
        channels=channels,
        mean=mean,
        counts_padding=counts,
    )
    made = program.add(kernel, planes_of(*window.after, channels))
    source = Source(made.source.buffer, None if mean else planes.source.grid)
    rank = program.values[node.proto.input[0]]
    return as_planes(View(source, made.index), rank.index.ndim if isinstance(rank, View) else 4)


def _weights(program: Program, node: Node, axis: int) -> Constant:
    """The constant weights; whole numbers alone if each output has one scale."""
    found = program.constant(node, 1, "weights")
    if found is None:
        node.refuse("it has no weights")
    if isinstance(found, QuantizedConstant):
        along = axis % found.whole.ndim
        if found.scale.size > 1 and found.axis != along:
            return found.values
        if found.whole.dtype not in (np.int8, np.uint8):
            return found.values
        return QuantizedConstant(found.whole, found.scale, found.zero, along)
    if found.dtype != np.float32:
        node.refuse(f"its weights are {found.dtype}, C has float and int8")
    return found


def _changed(weights: Constant, change: Callable[[Array], Array]) -> Constant:
    """Weights in another shape or order, whose outputs are the first axis then."""
    if isinstance(weights, QuantizedConstant):
        return QuantizedConstant(change(weights.whole), weights.scale, weights.zero, 0)
    return change(weights)


def _by_output(weights: Constant, kernel: tuple[int, int]) -> Constant:
    """[out, in, ...] as [out, height, width, in]."""
    outputs, part = _shape(weights)[:2]
    shape = outputs, part, *kernel
    return _changed(weights, lambda values: values.reshape(shape).transpose(0, 2, 3, 1))


def _shape(weights: Constant) -> tuple[int, ...]:
    return weights.whole.shape if isinstance(weights, QuantizedConstant) else weights.shape


def _linear(
    program: Program,
    node: Node,
    source: Source,
    weights: Constant,
    bias: Constant | None,
    *,
    window: Window,
    groups: int,
) -> Linear:
    """The kernel of products, with scales, bias and zero points where its inputs put them."""
    numbers = weights.whole if isinstance(weights, QuantizedConstant) else weights
    outputs = len(numbers)
    alpha = float(node.get("alpha", 1.0))
    scale = np.full(outputs, alpha * (float(source.grid.scale) if source.grid else 1.0))
    zeros = None
    if isinstance(weights, QuantizedConstant):
        scale = scale * weights.scale.astype(np.float64).ravel()
        numbers, zeros = _narrow(numbers, np.broadcast_to(weights.zero.ravel(), outputs))
    if not (np.isfinite(scale) & (scale > 0)).all():
        wrong = scale[~(np.isfinite(scale) & (scale > 0))][0]
        node.refuse(f"its scales must be finite and above 0, one is {wrong}")
    whole = isinstance(weights, QuantizedConstant) and source.buffer.dtype != "float"
    start, shift = _bias(node, bias, scale, whole=whole)
    plain = not whole and bool((scale == 1).all())
    if whole:
        _check_sums(node, source, numbers, zeros, start)
    elif start is None and plain:
        start, shift = shift, None
    size = window.after[0] * window.after[1] * outputs
    return Linear(
        title=node.name,
        source=source,
        target=program.buffer("float", size),
        window=window,
        channels=(numbers.shape[3] * groups, outputs),
        groups=groups,
        weights=numbers,
        zeros=zeros,
        bias=start,
        scale=None if plain else scale,
        shift=shift,
    )


def _narrow(numbers: Array, zeros: Array) -> tuple[Array, Array | None]:
    """Weights without zero points where the differences are bytes, which saves subtractions."""
    centred = numbers.astype(np.int32) - zeros.reshape(-1, 1, 1, 1)
    if clipped(centred, "int8"):
        return centred.astype(np.int8), None
    return numbers, zeros.astype(np.int32)


def _bias(
    node: Node, bias: Constant | None, scale: Array, *, whole: bool
) -> tuple[Array | None, Array | None]:
    """What the sums begin with, and what is added behind their scale."""
    if bias is None:
        return None, None
    beta = float(node.get("beta", 1.0))
    values = bias.values if isinstance(bias, QuantizedConstant) else bias
    if values.ndim > 2 or (values.ndim == 2 and values.shape[0] != 1):
        node.refuse(f"its bias must be one value for each output, it is {list(values.shape)}")
    if whole and isinstance(bias, QuantizedConstant) and not bias.zero.any():
        steps = beta * bias.scale.astype(np.float64).ravel()
        if (np.abs(steps / scale - 1) <= SAME_SCALE).all():
            numbers = np.broadcast_to(bias.whole.ravel().astype(np.int32), scale.shape)
            return numbers, None
    spread = np.broadcast_to(values.ravel().astype(np.float32) * np.float32(beta), scale.shape)
    return None, spread


def _check_sums(
    node: Node, source: Source, numbers: Array, zeros: Array | None, start: Array | None
) -> None:
    """Refuse sums of which one could leave int32."""
    low, high = RANGES[source.buffer.dtype]
    zero = source.grid.zero if source.grid else 0
    centred = numbers.astype(np.int64) - (0 if zeros is None else zeros.reshape(-1, 1, 1, 1))
    largest = np.abs(centred).sum(axis=(1, 2, 3)) * max(high - zero, zero - low)
    largest += 0 if start is None else np.abs(start.astype(np.int64))
    if largest.max() > LARGEST_SUM:
        node.refuse(f"a sum of its products may reach {largest.max()}, int32 holds {LARGEST_SUM}")
