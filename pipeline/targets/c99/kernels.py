"""What the C program does, step by step, in as few steps and as little memory as can be.

A kernel reads buffers and writes one. Planes lie with the channels last, [height, width, channels]:
a convolution then reads what belongs to one line of its window in one go. Behind its own work a
kernel has a tail of simple steps on each value (an "epilogue" elsewhere), so that what a graph does
to a tensor in several nodes needs one pass and one buffer.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from serving.runtime.tensors import Array

Dtype = Literal["float", "uint8", "int8"]
BYTES: dict[Dtype, int] = {"float": 4, "uint8": 1, "int8": 1}
RANGES: dict[Dtype, tuple[int, int]] = {"uint8": (0, 255), "int8": (-128, 127)}


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory for one row of a tensor."""

    name: str
    """Unique in the program; of inputs and outputs, the C name of the argument."""
    dtype: Dtype
    size: int
    """In values."""
    place: Literal["input", "output", "arena"] = "arena"
    shape: tuple[int, ...] = ()
    """Of one row, for a reader; of inputs and outputs alone."""

    @property
    def num_bytes(self) -> int:
        """Of the whole buffer."""
        return self.size * BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Grid:
    """The steps that whole numbers count: a value is `(whole - zero) * scale`, in float32."""

    scale: np.float32
    zero: int


@dataclass(frozen=True, slots=True)
class Source:
    """A buffer as a kernel reads it: whole numbers stand for values on a grid."""

    buffer: Buffer
    grid: Grid | None = None
    """None where the values are read as they are."""


@dataclass(frozen=True, slots=True)
class Clamp:
    """Relu and Clip: no value below `low`, none above `high`."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """One of + - * / with another operand; `swapped` puts the operand first."""

    sign: Literal["+", "-", "*", "/"]
    operand: float | Array | Source
    """One value for all, float32 [channels] or [values], or a buffer of as many values."""
    swapped: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """A function of one value, as a C expression with `{v}` for it."""

    expression: str
    rising: bool


@dataclass(frozen=True, slots=True)
class Quantize:
    """Round to the nearest whole number of the grid, ties to the even one, within the dtype."""

    grid: Grid
    dtype: Dtype


@dataclass(frozen=True, slots=True)
class Dequantize:
    """What a whole number of the grid stands for."""

    grid: Grid


TailStep = Clamp | Arithmetic | Curve | Quantize | Dequantize


@dataclass(frozen=True, slots=True)
class Window:
    """A window that slides over planes of [height, width]: of a convolution or of a pooling."""

    before: tuple[int, int]
    after: tuple[int, int]
    """Height and width of the planes, and of the answer."""
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int] = (1, 1)
    starts: tuple[int, int] = (0, 0)
    """Padding above and to the left; below and to the right it follows from the sizes."""

    def inside(self, axis: int) -> bool:
        """Whether the window never leaves the planes along an axis."""
        last = (self.after[axis] - 1) * self.strides[axis] - self.starts[axis]
        reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1
        return self.starts[axis] == 0 and last + reach <= self.before[axis]

    def misses(self, axis: int) -> bool:
        """Whether some window along an axis lies in the padding alone."""
        last = (self.after[axis] - 1) * self.strides[axis] - self.starts[axis]
        reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1
        return self.starts[axis] >= reach or last >= self.before[axis]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What all steps of the program have."""

    title: str
    """The nodes of the graph that it stands for."""
    source: Source
    target: Buffer
    tail: tuple[TailStep, ...] = ()

    @property
    def read(self) -> Iterator[Source]:
        """Everything that it reads."""
        yield self.source
        for step in self.tail:
            if isinstance(step, Arithmetic) and isinstance(step.operand, Source):
                yield step.operand


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(Kernel):
    """Convolution, and a matrix as one of a single pixel: sums of products, and their scales.

    A sum is an int32 where planes and weights are whole numbers, else a float. Its value is
    `sum * scale + shift`.
    """

    window: Window
    channels: tuple[int, int]
    """Of the planes, and of the answer."""
    groups: int
    weights: Array
    """[out, kernel height, kernel width, in / groups], int8, uint8 or float32."""
    zeros: Array | None
    """int32 [out]: what is subtracted from the weights, if anything."""
    bias: Array | None
    """What the sums begin with, [out], int32 or float32 as they are."""
    scale: Array | None
    """float64 [out]; None for 1."""
    shift: Array | None = None
    """float32 [out]; what a bias is that is no whole number of the sums."""
    pool: Window | None = None
    """A maximum over the answer, whose windows do not overlap: no sum is computed twice."""

    @property
    def whole(self) -> bool:
        """Whether the sums are integers."""
        return self.source.buffer.dtype != "float" and self.weights.dtype != np.float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling(Kernel):
    """The largest value, or the mean, of each window; of whole numbers without making floats."""

    window: Window
    channels: int
    mean: bool
    counts_padding: bool = False
    """Whether the mean divides by the size of the window where it leaves the planes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Elementwise(Kernel):
    """The tail alone, on each value of the source."""

    channels: int
    """What the last axis has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax(Kernel):
    """Of rows of `width` values."""

    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reorder(Kernel):
    """The same values in another order."""

    start: int
    """The place of the first value in the source."""
    loops: tuple[tuple[int, int], ...]
    """Outermost first: how often, and by how much the place in the source moves each time."""


K = TypeVar("K", bound=Kernel)


def fused(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The same program with as few kernels as can be."""
    made = _without_copies(list(kernels))
    while (pair := _next_pair(made)) is not None:
        first, second, both = pair
        # At the place of the second: all that its tail reads is there by then.
        made[second] = both
        del made[first]
    return made


def _without_copies(kernels: list[Kernel]) -> list[Kernel]:
    """Let what makes an answer write it where the caller wants it."""
    for copy in [one for one in kernels if _is_copy(one)]:
        if copy.source.buffer.place != "arena" or copy not in kernels:
            continue
        old, new = copy.source.buffer, copy.target
        kernels.remove(copy)
        kernels = [_renamed(one, old, new) for one in kernels]
    return kernels


def _is_copy(kernel: Kernel) -> bool:
    return (
        isinstance(kernel, Elementwise)
        and not kernel.tail
        and kernel.source.grid is None
        and kernel.target.place == "output"
    )


def _renamed(kernel: Kernel, old: Buffer, new: Buffer) -> Kernel:
    def other(source: Source) -> Source:
        return replace(source, buffer=new) if source.buffer == old else source

    tail = [
        replace(step, operand=other(step.operand))
        if isinstance(step, Arithmetic) and isinstance(step.operand, Source)
        else step
        for step in kernel.tail
    ]
    target = new if kernel.target == old else kernel.target
    return replace(kernel, source=other(kernel.source), target=target, tail=tuple(tail))


def _next_pair(kernels: Sequence[Kernel]) -> tuple[int, int, Kernel] | None:
    """The numbers of two kernels that one can do, and that one."""
    uses = Counter(source.buffer for one in kernels for source in one.read)
    makers = {one.target: at for at, one in enumerate(kernels)}
    for second, kernel in enumerate(kernels):
        buffer = kernel.source.buffer
        if uses[buffer] != 1 or buffer.place != "arena":
            continue
        first = makers[buffer]
        both = _joined(kernels[first], kernel)
        if both is not None:
            return first, second, both
    return None


def _joined(first: Kernel, second: Kernel) -> Kernel | None:
    """One kernel that does both; None where there is none."""
    if isinstance(second, Elementwise) and isinstance(first, Linear | Pooling | Elementwise):
        grid = second.source.grid
        between = [Dequantize(grid)] if grid else []
        return _taken_over(first, second, (*first.tail, *between, *second.tail))
    if isinstance(second, Pooling) and isinstance(first, Linear) and _pools(first, second):
        both = _taken_over(first, second, (*first.tail, *second.tail))
        return replace(both, pool=second.window)
    return None


def _taken_over(first: K, second: Kernel, tail: tuple[TailStep, ...]) -> K:
    title = ", ".join(one.title for one in (first, second) if one.title)
    return replace(first, title=title, tail=_shorter(tail), target=second.target)


def _shorter(tail: tuple[TailStep, ...]) -> tuple[TailStep, ...]:
    """Without a Relu behind a Relu, and the like: two clamps are one."""
    made: list[TailStep] = []
    for step in tail:
        before = made[-1] if made else None
        if isinstance(step, Clamp) and isinstance(before, Clamp):
            low, high = (min(max(x, step.low), step.high) for x in (before.low, before.high))
            made[-1] = Clamp(low, high)
        else:
            made.append(step)
    return tuple(made)


def _pools(first: Linear, second: Pooling) -> bool:
    """Whether a convolution can look for the largest sum at once: it comes to the same, then."""
    window = second.window
    apart = all(a <= b for a, b in zip(window.kernel, window.strides, strict=True))
    return (
        not second.mean
        and first.pool is None
        and apart
        and window.dilations == (1, 1)
        and all(itertools.starmap(window.inside, ((0,), (1,))))
        and all(_never_falls(step) for step in first.tail)
    )


def _never_falls(step: TailStep) -> bool:
    """Whether a larger value stays at least as large: then the maximum may be taken before.

    A constant for each place moves the values of a window differently, one for all does not.
    """
    match step:
        case Clamp() | Quantize() | Dequantize():
            return True
        case Curve():
            return step.rising
        case Arithmetic(sign="+" | "-", operand=operand, swapped=False):
            return not isinstance(operand, Source) and getattr(operand, "ndim", 0) == 0
        case _:
            return False


ALIGNMENT = 4
"""Bytes, of a float."""


@dataclass(frozen=True, slots=True)
class Life:
    """How long some memory is needed: from one kernel to another, both included."""

    first: int
    last: int
    num_bytes: int

    def meets(self, other: "Life") -> bool:
        """Whether both are needed at the same time."""
        return self.first <= other.last and other.first <= self.last


def plan(kernels: Sequence[Kernel]) -> tuple[dict[Buffer, int], int]:
    """The offset of each buffer of the arena in bytes, and the bytes of all."""
    shared = _shared(kernels)
    lives: dict[Buffer, Life] = {}
    for buffer, (first, last) in _uses(kernels).items():
        owner = shared.get(buffer, buffer)
        life = lives.get(owner, Life(first, last, 0))
        lives[owner] = Life(
            min(life.first, first), max(life.last, last), max(life.num_bytes, buffer.num_bytes)
        )
    owners = list(lives)
    offsets = dict(zip(owners, place([lives[owner] for owner in owners]), strict=True))
    places = {buffer: offsets[shared.get(buffer, buffer)] for buffer in _uses(kernels)}
    ends = [offsets[owner] + _aligned(lives[owner].num_bytes) for owner in owners]
    return places, max(ends, default=0)


def place(lives: Sequence[Life]) -> list[int]:
    """An offset in bytes for each, so that none that live at the same time overlap."""
    order = sorted(range(len(lives)), key=lambda at: (-lives[at].num_bytes, lives[at].first))
    offsets: dict[int, int] = {}
    for at in order:
        taken = sorted(
            (offsets[other], offsets[other] + _aligned(lives[other].num_bytes))
            for other in offsets
            if lives[other].meets(lives[at])
        )
        offset = 0
        for start, end in taken:
            if start - offset >= _aligned(lives[at].num_bytes):
                break
            offset = max(offset, end)
        offsets[at] = offset
    return [offsets[at] for at in range(len(lives))]


def _uses(kernels: Sequence[Kernel]) -> dict[Buffer, tuple[int, int]]:
    """The first and the last kernel that touches each buffer of the arena."""
    uses: dict[Buffer, tuple[int, int]] = {}
    for at, kernel in enumerate(kernels):
        for buffer in (kernel.target, *(source.buffer for source in kernel.read)):
            if buffer.place == "arena":
                uses[buffer] = (uses.get(buffer, (at, at))[0], at)
    return uses


def _shared(kernels: Sequence[Kernel]) -> Mapping[Buffer, Buffer]:
    """Buffers that are written over what their kernel reads for the last time: what they lie on."""
    uses = _uses(kernels)
    shared: dict[Buffer, Buffer] = {}
    for at, kernel in enumerate(kernels):
        if kernel.target.place != "arena":
            continue
        for buffer in overwritable(kernel):
            dies = buffer.place == "arena" and uses[buffer][1] == at
            if dies and kernel.target.num_bytes <= buffer.num_bytes:
                shared[kernel.target] = shared.get(buffer, buffer)
                break
    return shared


def overwritable(kernel: Kernel) -> list[Buffer]:
    """The buffers that a kernel has read at a place, and before, when it writes that place."""
    sources = [source.buffer for source in kernel.read]
    ahead = []
    match kernel:
        case Elementwise():
            ahead = sources
        case Linear():
            ahead = sources[1:]
        case Pooling() if kernel.window.starts == (0, 0):
            ahead = sources
    size = BYTES[kernel.target.dtype]
    # The planes of a convolution are read again for the pixels around.
    again = sources[:1] if isinstance(kernel, Linear) else []
    return [one for one in ahead if size <= BYTES[one.dtype] and one not in again]


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
