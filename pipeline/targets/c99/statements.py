"""Each kernel as one C function of its own: literal sizes, plain loops, the tail on each value."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from pipeline.targets.c99.ctext import Block, ctype, number, total
from pipeline.targets.c99.kernels import (
    RANGES,
    Arithmetic,
    Elementwise,
    Kernel,
    Linear,
    Pooling,
    Reorder,
    Softmax,
    Window,
)
from pipeline.targets.c99.sums import Sum, start_of, write_linear
from pipeline.targets.c99.tails import LETTERS, KernelNames, Tail, value_of

INDICES = "defghjklmn"
"""The variables of nested loops over a reordered tensor."""


@dataclass(frozen=True, slots=True)
class Function:
    """The C of one kernel."""

    arguments: str
    """Of its declaration."""
    names: KernelNames
    lines: list[str]
    helper: Sum | None


def function_of(kernel: Kernel, prefix: str) -> Function:
    """Write a kernel; `prefix` begins the names of its constants."""
    names, block, helper = KernelNames(prefix), Block(), None
    match kernel:
        case Linear():
            helper = write_linear(kernel, names, block)
        case Pooling():
            _pooling(kernel, names, block)
        case Elementwise():
            _elementwise(kernel, names, block)
        case Softmax():
            _softmax(kernel, block)
        case Reorder():
            _reorder(kernel, block)
    read = zip(("x", *LETTERS), (kernel.source.buffer, *names.operands), strict=False)
    arguments = [f"const {ctype(buffer.dtype)} *{name}" for name, buffer in read]
    arguments.append(f"{ctype(kernel.target.dtype)} *y")
    return Function(", ".join(arguments), names, block.lines, helper)


def _pooling(kernel: Pooling, names: KernelNames, block: Block) -> None:
    """The largest value, or the mean, of each window, and the tail."""
    window, whole = kernel.window, kernel.source.buffer.dtype != "float"
    counted = kernel.mean and not kernel.counts_padding
    counted = counted and not (window.inside(0) and window.inside(1))
    block.add("int32_t i = 0;")
    with ExitStack() as loops:
        at = (
            loops.enter_context(block.loop("oy", window.after[0])),
            loops.enter_context(block.loop("ox", window.after[1])),
        )
        c = loops.enter_context(block.loop("c", kernel.channels))
        block.add(f"{'int32_t' if whole else 'float'} found = {_first(kernel)};")
        if counted:
            block.add("int32_t count = 0;")
        with _pixels(block, window, at) as (iy, ix):
            row = window.before[1] * kernel.channels
            place = total((iy, row), (ix, kernel.channels), (c, 1))
            if kernel.mean:
                block.add(f"found += {_centred(kernel, place)};")
            else:
                block.add(f"found = x[{place}] > found ? x[{place}] : found;")
            if counted:
                block.add("count++;")
        tail = Tail(block, names, (c, kernel.channels))
        if kernel.mean:
            size = number(window.kernel[0] * window.kernel[1])
            tail.value(f"{_sum(kernel)} / {'(float)count' if counted else size}")
        elif whole:
            tail.number("found")
        else:
            tail.value("found")
        tail.write(kernel.tail)
        tail.store(kernel.target)
        block.add("i++;")


def _first(kernel: Pooling) -> str:
    """What a search or a sum begins with."""
    dtype = kernel.source.buffer.dtype
    if dtype == "float":
        return "0.0f" if kernel.mean else "-INFINITY"
    return "0" if kernel.mean else str(RANGES[dtype][0])


def _centred(kernel: Pooling, place: str) -> str:
    """What a sum adds: of whole numbers their distance from the zero point."""
    grid = kernel.source.grid
    if grid is None:
        return f"x[{place}]"
    return total((f"x[{place}]", 1), start=-grid.zero)


def _sum(kernel: Pooling) -> str:
    """The sum as a value."""
    grid = kernel.source.grid
    if grid is None:
        return "found"
    return "(float)found" if grid.scale == 1 else f"(float)found * {number(grid.scale)}"


@contextmanager
def _pixels(block: Block, window: Window, at: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """Every pixel of a window that is within the planes."""
    with ExitStack() as stack:
        found = []
        for axis, name in enumerate("yx"):
            k = stack.enter_context(block.loop(f"k{name}", window.kernel[axis]))
            line = start_of(at[axis], window, axis, k)
            if not window.inside(axis):
                block.add(f"const int32_t i{name} = {line};")
                within = f"if (i{name} >= 0 && i{name} < {window.before[axis]})"
                stack.enter_context(block.braces(within))
                line = f"i{name}"
            found.append(line)
        yield found[0], found[1]


def _elementwise(kernel: Elementwise, names: KernelNames, block: Block) -> None:
    """The tail on each value; in lines of channels where it has a constant for each."""
    size, source = kernel.target.size, kernel.source
    operands = [step.operand for step in kernel.tail if isinstance(step, Arithmetic)]
    sizes = {one.size for one in operands if isinstance(one, np.ndarray)}
    by_channel = kernel.channels in sizes and size > kernel.channels > 1
    with ExitStack() as loops:
        if by_channel:
            block.add("int32_t i = 0;")
            loops.enter_context(block.braces(f"while (i < {size})"))
            loops.enter_context(block.loop("c", kernel.channels))
        else:
            loops.enter_context(block.braces(f"for (int32_t i = 0; i < {size}; i++)"))
        tail = Tail(block, names, ("c", kernel.channels) if by_channel else ("i", size))
        if source.buffer.dtype == "float":
            tail.value("x[i]")
        elif source.grid is None:
            tail.number("x[i]")
        else:
            tail.value(value_of("x[i]", source.grid))
        tail.write(kernel.tail)
        tail.store(kernel.target)
        if by_channel:
            block.add("i++;")


def _softmax(kernel: Softmax, block: Block) -> None:
    """Exponentials over their sum, of differences from the largest, so that none overflows."""
    width = kernel.width
    rows = kernel.target.size // width
    each = f"for (int32_t i = 0; i < {width}; i++)"
    with block.loop("row", rows):
        block.add("float largest = x[0];", "float sum = 0.0f;")
        with block.braces(each):
            block.add("largest = x[i] > largest ? x[i] : largest;")
        with block.braces(each):
            block.add("y[i] = exponential(x[i] - largest);", "sum += y[i];")
        with block.braces(each):
            block.add("y[i] /= sum;")
        if rows > 1:
            block.add(f"x += {width};", f"y += {width};")


def _reorder(kernel: Reorder, block: Block) -> None:
    """The values in their new order, one after the other."""
    block.add("int32_t i = 0;")
    with ExitStack() as loops:
        terms = [
            (loops.enter_context(block.loop(name, count)), distance)
            for name, (count, distance) in zip(INDICES, kernel.loops, strict=False)
        ]
        block.add(f"y[i] = x[{total(*terms, start=kernel.start)}];", "i++;")
