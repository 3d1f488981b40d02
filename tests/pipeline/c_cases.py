"""Small graphs for the C emitter, one for each operator, shape, stride, padding and group."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from small_models import rows_for
from small_onnx import FLOAT, model, node

from pipeline.quantization.apply import Quantizer
from pipeline.quantization.recipes import parse

UINT8, INT8 = TensorProto.UINT8, TensorProto.INT8
Array = np.ndarray[Any, Any]
Case = Callable[[], onnx.ModelProto]


def draw(*shape: int, seed: int = 0, scale: float = 0.3) -> Array:
    """Normal float32."""
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def one(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    weights: Mapping[str, Any] | None = None,
    kind: int = FLOAT,
    made: int = FLOAT,
) -> onnx.ModelProto:
    """A graph from `x` to `y`."""
    return model(nodes, {"x": (kind, ["n", *shape])}, {"y": (made, None)}, weights)


def conv(
    shape: Sequence[int],
    weights: Sequence[int],
    *,
    behind: Sequence[onnx.NodeProto] = (),
    bias: bool = True,
    **attributes: Any,
) -> onnx.ModelProto:
    """A convolution of `shape`; `behind` takes `c` to `y`."""
    known = {"w": draw(*weights)} | ({"b": draw(weights[0], seed=1)} if bias else {})
    last = "c" if behind else "y"
    first = node("Conv", f"x w{' b' * bias}", last, name="first/Conv", **attributes)
    return one([first, *behind], shape, known)


def pool(operator: str, shape: Sequence[int], **attributes: Any) -> onnx.ModelProto:
    """A pooling."""
    return one([node(operator, "x", "y", **attributes)], shape)


def steps(
    text: str, shape: Sequence[int], weights: Mapping[str, Any] | None = None, **attributes: Any
) -> onnx.ModelProto:
    """Nodes written as "Relu x a; Sub a k y"; the attributes are those of the last."""
    nodes = []
    for part in text.split(";"):
        operator, *read, made = part.split()
        nodes.append(node(operator, " ".join(read), made))
    nodes[-1].attribute.extend(node("Any", "x", "y", **attributes).attribute)
    return one(nodes, shape, weights)


RELU = [node("Relu", "c", "y")]
HALVED = [node("Relu", "c", "r"), node("MaxPool", "r", "y", kernel_shape=[2, 2], strides=[2, 2])]
THIRDS = [node("MaxPool", "c", "p", kernel_shape=[2, 2], strides=[3, 3]), node("Relu", "p", "y")]
LAPPED = [node("MaxPool", "c", "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])]
FELL = [node("Neg", "c", "m"), node("MaxPool", "m", "y", kernel_shape=[2, 2], strides=[2, 2])]
ADDED = [node("Add", "c x", "a"), node("Relu", "a", "y")]
TAKEN = [node("Sub", "x c", "a"), node("Clip", "a low high", "y")]
CLIP = {"low": np.float32(-0.5), "high": np.float32(1)}
K3, S2, P1 = {"kernel_shape": [3, 3]}, {"strides": [2, 2]}, {"pads": [1, 1, 1, 1]}


def convolutions() -> Iterator[tuple[str, Case]]:
    """By what differs."""
    c = functools.partial
    yield "conv-1x1", c(conv, (3, 5, 6), (4, 3, 1, 1))
    yield "conv-3x3", c(conv, (3, 5, 6), (4, 3, 3, 3))
    yield "conv-padded-relu", c(conv, (3, 5, 6), (4, 3, 3, 3), pads=[1, 1, 1, 1], behind=RELU)
    yield "conv-uneven-pads", c(conv, (2, 6, 5), (3, 2, 3, 2), pads=[0, 1, 2, 1])
    yield "conv-strided", c(conv, (2, 7, 8), (3, 2, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2])
    yield "conv-strides-differ", c(conv, (2, 7, 8), (3, 2, 3, 3), strides=[1, 3])
    yield "conv-1x1-strided", c(conv, (4, 6, 6), (8, 4, 1, 1), strides=[2, 2])
    yield "conv-dilated", c(conv, (2, 9, 9), (3, 2, 3, 3), dilations=[2, 2], pads=[2, 2, 2, 2])
    yield "conv-dilated-down", c(conv, (2, 9, 6), (3, 2, 3, 3), dilations=[3, 1])
    yield "conv-groups", c(conv, (4, 6, 6), (6, 2, 3, 3), group=2, pads=[1, 1, 1, 1])
    yield "conv-depthwise", c(conv, (5, 6, 6), (5, 1, 3, 3), group=5, pads=[1, 1, 1, 1])
    yield "conv-depthwise-twice", c(conv, (3, 6, 6), (6, 1, 3, 3), group=3, strides=[2, 2])
    yield "conv-without-bias", c(conv, (2, 4, 4), (3, 2, 3, 3), bias=False)
    yield "conv-all-of-the-plane", c(conv, (3, 4, 5), (7, 3, 4, 5))
    yield "conv-full-width", c(conv, (2, 6, 4), (3, 2, 3, 4))
    yield "conv-padding-alone", c(conv, (2, 3, 3), (3, 2, 2, 2), pads=[3, 3, 3, 3], strides=[2, 2])
    yield "conv-same-upper", c(conv, (2, 6, 7), (3, 2, 3, 4), auto_pad="SAME_UPPER", strides=[2, 2])
    yield "conv-same-lower", c(conv, (2, 6, 7), (3, 2, 3, 4), auto_pad="SAME_LOWER", strides=[2, 2])
    yield "conv-of-one-axis", c(conv, (3, 9), (4, 3, 3), pads=[1, 1], strides=[2])
    yield "conv-halved", c(conv, (2, 8, 8), (4, 2, 3, 3), pads=[1, 1, 1, 1], behind=HALVED)
    yield "conv-thirds", c(conv, (2, 9, 9), (4, 2, 3, 3), pads=[1, 1, 1, 1], behind=THIRDS)
    yield "conv-lapped", c(conv, (2, 8, 8), (4, 2, 3, 3), behind=LAPPED)
    yield "conv-negated-pooled", c(conv, (2, 8, 8), (4, 2, 3, 3), behind=FELL)
    yield "conv-added", c(conv, (3, 5, 5), (3, 3, 3, 3), pads=[1, 1, 1, 1], behind=ADDED)


def poolings() -> Iterator[tuple[str, Case]]:
    """By what differs."""
    shape = (3, 7, 8)
    for operator in ("MaxPool", "AveragePool"):
        c, short = functools.partial(pool, operator, shape), operator.lower()
        yield f"{short}-halved", functools.partial(c, kernel_shape=[2, 2], strides=[2, 2])
        yield f"{short}-lapped", functools.partial(c, kernel_shape=[3, 2])
        padded = functools.partial(c, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        yield f"{short}-padded", padded
        yield (
            f"{short}-rounded-up",
            functools.partial(c, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        )
        yield (
            f"{short}-one-axis",
            functools.partial(pool, operator, (3, 9), kernel_shape=[3], strides=[2], pads=[1, 1]),
        )
    dilated = functools.partial(pool, "MaxPool", shape, kernel_shape=[2, 2], dilations=[2, 3])
    yield "maxpool-dilated", dilated
    yield (
        "averagepool-counting",
        functools.partial(
            pool, "AveragePool", shape, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
        ),
    )
    yield "global-mean", functools.partial(pool, "GlobalAveragePool", shape)
    yield "global-largest", functools.partial(pool, "GlobalMaxPool", shape)
    axes = {"axes": np.array([-1, 2])}
    yield "mean", lambda: steps("ReduceMean x axes y", shape, axes, keepdims=1)
    yield "mean-flat", lambda: steps("ReduceMean x axes m; Relu m y", shape, axes)


def products() -> Iterator[tuple[str, Case]]:
    """Matrices."""
    w, b = draw(5, 12), draw(5, seed=1)
    g = functools.partial(steps, "Gemm x w b y", (12,))
    yield "gemm-turned", lambda: g({"w": w, "b": b}, transB=1)
    yield "gemm", lambda: g({"w": w.T.copy(), "b": b})
    yield "gemm-alpha-beta", lambda: g({"w": w, "b": b}, transB=1, alpha=0.5, beta=2.0)
    yield "gemm-one-bias", lambda: g({"w": w, "b": b[:1]}, transB=1)
    yield "matmul-added", lambda: steps("MatMul x w m; Add m b y", (12,), {"w": w.T.copy(), "b": b})
    yield "matmul-of-rows", lambda: steps("MatMul x w m; Relu m y", (4, 12), {"w": w.T.copy()})
    behind = [node("Flatten", "c", "f"), node("Gemm", "f v", "y")]
    planes = functools.partial(conv, (2, 4, 6), (3, 2, 3, 3), behind=behind)
    yield "gemm-of-planes", lambda: with_weights(planes(), {"v": draw(24, 5)})


def with_weights(made: onnx.ModelProto, weights: Mapping[str, Any]) -> onnx.ModelProto:
    """The graph with more constants."""
    for name, value in weights.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return made


def each() -> Iterator[tuple[str, Case]]:
    """Values one by one, and their places."""
    shape = (3, 4, 5)
    channel = {"k": draw(3, 1, 1) + 2}
    for operator in ("Add", "Sub", "Mul", "Div"):
        yield f"{operator}-channels", functools.partial(steps, f"{operator} x k y", shape, channel)
        yield (
            f"{operator}-turned",
            functools.partial(steps, f"{operator} k x y", shape, {"k": np.float32(0.7)}),
        )
        yield f"{operator}-both", functools.partial(steps, f"Tanh x t; {operator} x t y", shape)
    yield "mul-values", lambda: steps("Mul x k y", shape, {"k": draw(*shape)})
    for operator in ("Relu", "Neg", "Sigmoid", "Tanh", "Identity", "LeakyRelu"):
        yield operator.lower(), functools.partial(steps, f"{operator} x y", shape)
    yield "leakyrelu-slope", lambda: steps("LeakyRelu x y", shape, alpha=0.3)
    yield "clip", lambda: steps("Clip x low high y", shape, CLIP)
    yield "clips", lambda: steps("Relu x r; Clip r low high y", shape, CLIP)
    yield "softmax", lambda: steps("Softmax x y", (6,))
    branches = "; ".join(f"Mul x x m{at}; Add a{at} m{at} a{at + 1}" for at in range(10))
    yield "ten-branches", lambda: steps(f"Relu x a0; {branches}; Relu a10 y", (6,))
    yield "softmax-of-channels", lambda: steps("Softmax x y", shape, axis=1)
    yield "softmax-of-rows", lambda: steps("Softmax x s; Mul s s y", (3, 4))
    yield "turned", lambda: steps("Transpose x y", shape, perm=[0, 2, 3, 1])
    yield "turned-twice", lambda: steps("Relu x r; Transpose r y", shape, perm=[0, 3, 1, 2])
    yield "reshaped", lambda: steps("Reshape x s y", shape, {"s": np.array([0, 4, -1])})
    yield "unsqueezed", lambda: steps("Unsqueeze x a u; Squeeze u a y", shape, {"a": np.array([1])})
    yield (
        "sliced",
        lambda: steps(
            "Slice x s e a t y",
            shape,
            {
                "s": np.array([1, 4]),
                "e": np.array([3, -99]),
                "a": np.array([1, 3]),
                "t": np.array([1, -2]),
            },
        ),
    )
    yield "gathered", lambda: steps("Gather x k y", shape, {"k": np.array([2, 0])}, axis=1)
    yield "by-itself", lambda: steps("Add x x a; Mul a a y", shape)
    yield "sizes", lambda: steps("Shape x s; Relu x r; Reshape r s y", shape)


FLOATS: Mapping[str, Case] = dict([*convolutions(), *poolings(), *products(), *each()])


def residual() -> onnx.ModelProto:
    """Pixels, a block with a projection beside it, a mean, and classes."""
    nodes = [
        node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        node("Cast", "t", "v", to=FLOAT),
        node("Sub", "v mean", "d"),
        node("Mul", "d scale", "e"),
        node("Conv", "e w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2 b2", "c2", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", "c2", "r2"),
        node("Conv", "r2 w3 b3", "c3", pads=[1, 1, 1, 1]),
        node("Conv", "r1 w4 b4", "c4", strides=[2, 2]),
        node("Add", "c3 c4", "a"),
        node("Relu", "a", "r3"),
        node("Conv", "r3 w5 b5", "c5", pads=[1, 1, 1, 1]),
        node("Add", "c5 r3", "a2"),
        node("Relu", "a2", "r4"),
        node("ReduceMean", "r4 axes", "m"),
        node("Flatten", "m", "f"),
        node("Gemm", "f w6 b6", "y", transB=1),
    ]
    shapes = {"w1": (6, 3, 3, 3), "w2": (8, 6, 3, 3), "w3": (8, 8, 3, 3)}
    shapes |= {"w4": (8, 6, 1, 1), "w5": (8, 8, 3, 3), "w6": (5, 8)}
    weights: dict[str, Array] = {
        name: draw(*shape, seed=at) for at, (name, shape) in enumerate(shapes.items())
    }
    weights |= {f"b{name[1]}": draw(shape[0], seed=9) for name, shape in shapes.items()}
    weights |= {"mean": draw(3, 1, 1) + 120, "scale": draw(3, 1, 1, scale=0.002) + 0.01}
    return one(nodes, (8, 8, 3), weights | {"axes": np.array([2, 3])}, UINT8)


def rounded(make: Case, recipe: str) -> onnx.ModelProto:
    """A graph as ferry quantizes it."""
    made = make()
    rows = rows_for(made, 32, seed=3)
    return Quantizer(made, rows).apply(parse(recipe))


def raw_bytes() -> onnx.ModelProto:
    """Pooling of bytes that are no values, whose answer are bytes."""
    nodes = [
        node("MaxPool", "x", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("DequantizeLinear", "p s z", "d"),
        node("QuantizeLinear", "d s2 z2", "y"),
    ]
    scales = {"s": np.float32(0.5), "z": np.uint8(128), "s2": np.float32(0.37), "z2": np.int8(-5)}
    return one(nodes, (2, 6, 6), scales, UINT8, INT8)


def ties() -> onnx.ModelProto:
    """Values in the middle of two steps, of which the even one counts."""
    nodes = [
        node("Cast", "x", "v", to=FLOAT),
        node("QuantizeLinear", "v s z", "q"),
        node("DequantizeLinear", "q s z", "y"),
    ]
    return one(nodes, (64,), {"s": np.float32(2), "z": np.uint8(3)}, UINT8)


def zero_points() -> onnx.ModelProto:
    """Weights of uint8 with zero points that leave int8, and a bias in float."""
    rng = np.random.default_rng(5)
    nodes = [
        node("DequantizeLinear", "x s z", "d"),
        node("DequantizeLinear", "wq ws wz", "w", axis=0),
        node("Conv", "d w b", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("QuantizeLinear", "r s2 z2", "q"),
        node("DequantizeLinear", "q s2 z2", "y"),
    ]
    weights = {"s": np.float32(0.02), "z": np.uint8(7), "s2": np.float32(0.05), "z2": np.uint8(9)}
    weights |= {"wq": rng.integers(0, 256, (4, 2, 3, 3), np.uint8), "b": draw(4)}
    weights |= {"ws": np.full(4, 0.01, np.float32), "wz": np.array([0, 3, 128, 250], np.uint8)}
    return one(nodes, (2, 5, 5), weights, UINT8)


def float_weights() -> onnx.ModelProto:
    """Whole numbers through a layer that stayed in float, and floats through one of int8."""
    nodes = [
        node("DequantizeLinear", "x s z", "d"),
        node("Conv", "d w b", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("DequantizeLinear", "vq vs", "v", axis=0),
        node("Conv", "r v b", "y"),
    ]
    rng = np.random.default_rng(5)
    weights = {"s": np.float32(0.02), "z": np.uint8(7), "w": draw(3, 2, 3, 3), "b": draw(3)}
    weights |= {"vq": rng.integers(-127, 128, (3, 3, 3, 3), np.int8), "vs": draw(3) ** 2 + 0.01}
    return one(nodes, (2, 5, 5), weights, UINT8)


QUANTIZED = ("conv-padded-relu", "conv-strided", "conv-groups", "conv-depthwise", "conv-halved")
QUANTIZED += ("conv-added", "conv-dilated", "averagepool-padded", "gemm-turned", "gemm-of-planes")
WHOLE: Mapping[str, Case] = {
    **{
        f"{name}-{types}": functools.partial(rounded, FLOATS[name], f"static-{types}")
        for name, types in zip(QUANTIZED, ("u8s8", "s8s8") * 5, strict=True)
    },
    **{
        f"residual-{recipe}": functools.partial(rounded, residual, f"static-{recipe}")
        for recipe in ("u8s8-reduced", "u8s8-raw", "s8s8", "u8u8", "u8s8-tensor", "u8s8-float1")
    },
    "raw-bytes": raw_bytes,
    "ties": ties,
    "zero-points": zero_points,
    "float-weights": float_weights,
}
