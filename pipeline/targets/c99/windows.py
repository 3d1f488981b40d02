"""Planes with the channels last, and the windows that slide over them."""

import numpy as np

from pipeline.targets.c99.graph import Node, Program, View
from pipeline.targets.c99.kernels import Window
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
