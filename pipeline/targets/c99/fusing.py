"""Fewer passes and fewer buffers: kernels take over what is done to their answer alone.

A convolution so does its activation, its rounding, the addition of a residual branch and the
pooling behind it, all on one value at a time. What is computed stays the same, bit by bit.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from pipeline.targets.c99.kernels import (
    Arithmetic,
    Buffer,
    Clamp,
    Curve,
    Dequantize,
    Elementwise,
    Kernel,
    Linear,
    Pooling,
    Quantize,
    Source,
    TailStep,
)

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
