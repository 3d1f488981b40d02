"""What the C program does, step by step: each kernel reads buffers and writes one.

A buffer holds one row of the batch. Planes lie with the channels last, [height, width, channels]:
a convolution then reads what belongs to one line of its kernel in one go. Behind its own work a
kernel has a tail of simple steps on each value, so that what a graph does to a tensor in several
nodes needs one pass and one buffer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

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
    """A function of one value, as a C expression of `v`."""

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
