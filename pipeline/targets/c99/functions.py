"""Each kernel as one C function of its own: literal sizes, plain loops, the tail on each value."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from pipeline.targets.c99.ctext import (
    Block,
    KernelNames,
    Tail,
    ctype,
    number,
    rounded,
    times,
    total,
    value_of,
)
from pipeline.targets.c99.kernels import (
    RANGES,
    Arithmetic,
    Buffer,
    Clamp,
    Elementwise,
    Grid,
    Kernel,
    Linear,
    Pooling,
    Quantize,
    Reorder,
    Softmax,
    TailStep,
    Window,
)
from serving.runtime.tensors import Array

INDICES = "defghjklmn"
"""The variables of nested loops over a reordered tensor."""


@dataclass(frozen=True, slots=True)
class Function:
    """The C of one kernel."""

    arguments: str
    """Of its declaration."""
    operands: Sequence[Buffer]
    """What it is given between its source and its target."""
    tables: Sequence[tuple[str, Array, str]]
    """Its constants: name, values, comment."""
    lines: Sequence[str]
    helper: str
    """The C function that adds up its products; "" without products."""


def function_of(kernel: Kernel, prefix: str) -> Function:
    """Write a kernel; `prefix` begins the names of its constants."""
    names, block, helper = KernelNames(prefix), Block(), ""
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
    arguments = [f"const {ctype(kernel.source.buffer.dtype)} *x"]
    arguments += [f"const {ctype(one.dtype)} *x{at}" for at, one in enumerate(names.operands, 2)]
    arguments.append(f"{ctype(kernel.target.dtype)} *y")
    return Function(", ".join(arguments), names.operands, names.tables, block.lines, helper)


def _pooling(kernel: Pooling, names: KernelNames, block: Block) -> None:
    """The largest value, or the mean, of each window, and the tail."""
    window, dtype, grid = kernel.window, kernel.source.buffer.dtype, kernel.source.grid
    whole = dtype != "float"
    counted = kernel.mean and not kernel.counts_padding
    counted = counted and not (window.inside(0) and window.inside(1))
    block.add("int32_t i = 0;")
    sizes = ("oy", window.after[0]), ("ox", window.after[1]), ("c", kernel.channels)
    with block.loops(*sizes) as (*at, c):
        lowest = str(RANGES[dtype][0]) if whole else "-INFINITY"
        nothing = "0" if whole else "0.0f"
        kind = "int32_t" if whole else "float"
        block.add(f"{kind} found = {nothing if kernel.mean else lowest};")
        if counted:
            block.add("int32_t count = 0;")
        with (
            block.loop("ky", window.kernel[0]) as ky,
            _inside(block, window, 0, at[0], ky) as iy,
            block.loop("kx", window.kernel[1]) as kx,
            _inside(block, window, 1, at[1], kx) as ix,
        ):
            row = window.before[1] * kernel.channels
            place = total((iy, row), (ix, kernel.channels), (c, 1))
            if kernel.mean:
                block.add(f"found += {total((f'x[{place}]', 1), start=-grid.zero if grid else 0)};")
            else:
                block.add(f"found = x[{place}] > found ? x[{place}] : found;")
            if counted:
                block.add("count++;")
        tail = Tail(block, names, (c, kernel.channels))
        if kernel.mean:
            size = number(window.kernel[0] * window.kernel[1])
            value = value_of("found", Grid(grid.scale, 0)) if grid else "found"
            tail.value(f"{value} / {'(float)count' if counted else size}")
        elif whole:
            tail.number("found")
        else:
            tail.value("found")
        tail.write(kernel.tail)
        tail.store(kernel.target)


@contextmanager
def _inside(block: Block, window: Window, axis: int, at: str, inner: str) -> Iterator[str]:
    """The row or column of the planes at a place of the window, where there is one."""
    line = start_of(at, window, axis, inner)
    if window.inside(axis):
        yield line
        return
    name = f"i{'yx'[axis]}"
    block.add(f"const int32_t {name} = {line};")
    with block.braces(f"if ({name} >= 0 && {name} < {window.before[axis]})"):
        yield name


def _elementwise(kernel: Elementwise, names: KernelNames, block: Block) -> None:
    """The tail on each value; in lines of channels where it has a constant for each."""
    size, source = kernel.target.size, kernel.source
    operands = [step.operand for step in kernel.tail if isinstance(step, Arithmetic)]
    sizes = {one.size for one in operands if isinstance(one, np.ndarray)}
    by_channel = kernel.channels in sizes and size > kernel.channels > 1
    block.add("int32_t i = 0;")
    with ExitStack() as loops:
        loops.enter_context(block.braces(f"while (i < {size})"))
        if by_channel:
            loops.enter_context(block.loop("c", kernel.channels))
        tail = Tail(block, names, ("c", kernel.channels) if by_channel else ("i", size))
        if source.buffer.dtype == "float":
            tail.value("x[i]")
        elif source.grid is None:
            tail.number("x[i]")
        else:
            tail.value(value_of("x[i]", source.grid))
        tail.write(kernel.tail)
        tail.store(kernel.target)


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
    counts, distances = zip(*kernel.loops, strict=True) if kernel.loops else ((), ())
    with block.loops(*zip(INDICES, counts, strict=False)) as names:
        place = total(*zip(names, distances, strict=True), start=kernel.start)
        block.add(f"y[i] = x[{place}];", "i++;")


SHORT = {"uint8": "u8", "int8": "s8", "float": "f", "float32": "f"}


def write_linear(kernel: Linear, names: KernelNames, block: Block) -> str:
    """The loops over the answer, with the largest sum of a window where pooled, and the tail.

    Returns the C function that adds up the products.
    """
    sums = _Sums(kernel, names, block)
    pool, channels = kernel.pool, kernel.channels[1]
    height, width = pool.after if pool else kernel.window.after
    block.add("int32_t i = 0;")
    with block.loops(("oy", height), ("ox", width)) as (row, column):
        if not pool:
            sums.bounds(column)
        with block.loop("o", channels) as o:
            if pool:
                sums.largest(pool, (row, column), o)
            else:
                sums.one((row, column), o)
            tail = Tail(block, names, (o, channels))
            tail.write(_scaled(kernel, tail, o, "best" if pool else "sum"))
            tail.store(kernel.target)
    return sums.helper


def _scaled(kernel: Linear, tail: Tail, o: str, found: str) -> tuple[TailStep, ...]:
    """Make a value of the sum `found`; returns the steps of the tail that are left to do.

    A sum that is rounded at once is multiplied once, by M = S1 S2 / S3, its scale over that of the
    answer (Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-
    Arithmetic-Only Inference", 2018, equation 5; here M is a float32, no fixed point). That is the
    same rounding as in the graph, of a value with a smaller error than a sum of floats has.
    """
    steps, names = kernel.tail, tail.names
    expression = f"(float){found}" if kernel.whole else found
    clamp = steps[0] if steps and isinstance(steps[0], Clamp) else None
    rest = steps[1:] if clamp else steps
    if kernel.whole and kernel.shift is None and rest and isinstance(rest[0], Quantize):
        scale = np.ones(1) if kernel.scale is None else kernel.scale
        factors = (scale / float(rest[0].grid.scale)).astype(np.float32)
        factor = names.each("scale", factors, o, "What a sum of 1 is in steps of the answer.")
        tail.number(rounded(times_factor(expression, factor), rest[0], clamp))
        return rest[1:]
    if kernel.scale is not None:
        factor = names.each(
            "scale", kernel.scale.astype(np.float32), o, "What a sum of 1 stands for."
        )
        expression = times_factor(expression, factor)
    if kernel.shift is not None:
        expression += f" + {names.each('bias', kernel.shift, o, 'Bias.')}"
    tail.value(expression)
    return steps


def times_factor(expression: str, factor: str) -> str:
    """A product of floats."""
    return expression if factor == "1.0f" else f"{expression} * {factor}"


class _Sums:
    """The sum of products of one place of the answer."""

    def __init__(self, kernel: Linear, names: KernelNames, block: Block) -> None:
        self.kernel = kernel
        self.window = kernel.window
        self.names = names
        self.block = block
        self.kind = "int32_t" if kernel.whole else "float"
        self.name, self.helper = _adding(kernel, self.kind)
        note = "".join(f"[{size}]" for size in kernel.weights.shape)
        note = f"Weights {note}: by output, row and column of the window, input."
        self.weights = names.table("weights", kernel.weights, note)
        self.joined = kernel.groups == 1 and self.window.dilations[1] == 1
        """Whether a line of the window is one piece of the planes."""

    def largest(self, pool: Window, at: tuple[str, str], o: str) -> None:
        """The largest sum of a window of the pooling."""
        block = self.block
        block.add(f"{self.kind} best = {'INT32_MIN' if self.kernel.whole else '-INFINITY'};")
        with block.loop("py", pool.kernel[0]) as py, block.loop("px", pool.kernel[1]) as px:
            row, column = (
                total((at[0], pool.strides[0]), (py, 1)),
                total((at[1], pool.strides[1]), (px, 1)),
            )
            self.bounds(column)
            self.one((row, column), o)
            block.add("best = sum > best ? sum : best;")

    def bounds(self, column: str) -> None:
        """The columns of the window that are within the planes."""
        window = self.window
        if self.joined and not window.inside(1):
            width, size = window.before[1], window.kernel[1]
            self.block.add(
                f"const int32_t left = {start_of(column, window, 1)};",
                "const int32_t from = left < 0 ? -left : 0;",
                f"const int32_t to = left + {size} > {width} ? {width} - left : {size};",
            )

    def one(self, at: tuple[str, str], o: str) -> None:
        """The sum itself."""
        kernel, window, block = self.kernel, self.window, self.block
        start = "0" if kernel.whole else "0.0f"
        if kernel.bias is not None:
            start = self.names.each("bias", kernel.bias, o, "Bias, what the sums begin with.")
        block.add(f"{self.kind} sum = {start};")
        if self._one_piece:
            channels = kernel.channels[0]
            row, column = window.strides[0] * window.before[1], window.strides[1]
            place = total((at[0], row * channels), (at[1], column * channels))
            self._add(place, o, ("0", "0"), kernel.weights[0].size)
            return
        with (
            block.loop("ky", window.kernel[0]) as ky,
            _inside(block, window, 0, at[0], ky) as iy,
        ):
            if self.joined:
                self._line(at[1], iy, ky, o)
                return
            with (
                block.loop("kx", window.kernel[1]) as kx,
                _inside(block, window, 1, at[1], kx) as ix,
            ):
                self._pixel((iy, ix), (ky, kx), o)

    @property
    def _one_piece(self) -> bool:
        """Whether the whole window is one piece of the planes."""
        window = self.window
        full = window.kernel[1] == window.before[1] and window.dilations[0] == 1
        inside = window.inside(0) and window.inside(1)
        return self.joined and inside and (window.kernel[0] == 1 or full)

    def _line(self, column: str, iy: str, ky: str, o: str) -> None:
        """The products of one line of the window."""
        window, channels, width = self.window, self.kernel.channels[0], self.window.before[1]
        if window.inside(1):
            place = times(total((iy, width), (start_of(column, window, 1), 1)), channels)
            self._add(place, o, (ky, "0"), window.kernel[1] * channels)
            return
        place = times(total((iy, width), ("left", 1), ("from", 1)), channels)
        with ExitStack() as guard:
            if window.misses(1):
                guard.enter_context(self.block.braces("if (from < to)"))
            self._add(place, o, (ky, "from"), times("to - from", channels))

    def _pixel(self, pixel: tuple[str, str], at: tuple[str, str], o: str) -> None:
        """The products of one pixel of the window, within the group of the output."""
        kernel, width = self.kernel, self.window.before[1]
        part, each = kernel.weights.shape[3], kernel.channels[1] // kernel.groups
        group = "0" if kernel.groups == 1 else o if each == 1 else f"{o} / {each}"
        place = times(total((pixel[0], width), (pixel[1], 1)), kernel.channels[0])
        self._add(total((place, 1), (group, part)), o, at, part)

    def _add(self, place: str, o: str, at: tuple[str, str], count: int | str) -> None:
        """One call of the helper; `place` is in the planes, `at` in the window."""
        kernel = self.kernel
        _, rows, columns, part = kernel.weights.shape
        size = rows * columns * part
        weight = total((o, size), (at[0], columns * part), (at[1], part))
        arguments = [plus("x", place), plus(self.weights, weight), str(count)]
        if kernel.source.buffer.dtype != "float":
            arguments.append(str(kernel.source.grid.zero if kernel.source.grid else 0))
        if kernel.zeros is not None:
            arguments.append(
                self.names.each("zeros", kernel.zeros, o, "Zero points of the weights.")
            )
        self.block.call(f"sum = {self.name}(", [*arguments, "sum"])


def _adding(kernel: Linear, kind: str) -> tuple[str, str]:
    """The C function that adds up products, by the types that it multiplies: its name and text."""
    values, weights = kernel.source.buffer.dtype, str(kernel.weights.dtype)
    name, arguments = f"sum_{SHORT[values]}_{SHORT[weights]}", "int32_t n, "
    left, right = "x[k]", "w[k]"
    if values != "float":
        arguments += "int32_t x_zero, "
        left = f"{'' if kernel.whole else '(float)'}((int32_t)x[k] - x_zero)"
    if kernel.zeros is not None:
        name, arguments = f"{name}_zero", f"{arguments}int32_t w_zero, "
        right = "((int32_t)w[k] - w_zero)"
    if not kernel.whole and weights != "float32":
        right = f"(float){right}"
    text = f"""static {kind} {name}(const {ctype(values)} *x, const {ctype(weights)} *w,
{" " * (9 + len(kind) + len(name))}{arguments}{kind} sum)
{{
    for (int32_t k = 0; k < n; k++) {{
        sum += {left} * {right};
    }}
    return sum;
}}
"""
    return name, text


def start_of(at: str, window: Window, axis: int, inner: str = "0") -> str:
    """The first row or column of a window, or that of the place `inner` in it."""
    steps = (at, window.strides[axis]), (inner, window.dilations[axis])
    return total(*steps, start=-window.starts[axis])


def plus(pointer: str, place: str) -> str:
    """A pointer moved on."""
    return pointer if place == "0" else f"{pointer} + {place}"
