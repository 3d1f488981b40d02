"""Where buffers lie: never over one that is still needed, and in no more memory than it takes."""

from collections.abc import Iterator

import numpy as np
from c_cases import residual, steps
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.targets.c99.kernels import (
    ALIGNMENT,
    Buffer,
    Elementwise,
    Kernel,
    Life,
    Linear,
    Source,
    fused,
    overwritable,
    place,
    plan,
)
from pipeline.targets.c99.operators import read_graph

SIZES = st.integers(1, 5000)
LENIENT = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no fault of the plan."""


@st.composite
def lives(draw: st.DrawFn) -> list[Life]:
    """Memory that is needed from one moment to another."""
    made = []
    for _ in range(draw(st.integers(1, 25))):
        first = draw(st.integers(0, 12))
        made.append(Life(first, draw(st.integers(first, 14)), draw(SIZES)))
    return made


@LENIENT
@given(lives())
def test_what_lives_at_one_time_never_overlaps(needed: list[Life]) -> None:
    offsets = place(needed)
    for at, life in enumerate(needed):
        assert offsets[at] % ALIGNMENT == 0
        for other in range(at):
            if life.meets(needed[other]):
                end, begin = offsets[at] + life.num_bytes, offsets[other]
                assert end <= begin or begin + needed[other].num_bytes <= offsets[at]


@LENIENT
@given(lives())
def test_the_arena_is_no_larger_than_all_and_holds_the_busiest_moment(needed: list[Life]) -> None:
    offsets = place(needed)
    end = max(offset + life.num_bytes for offset, life in zip(offsets, needed, strict=True))
    rounded = [life.num_bytes + -life.num_bytes % ALIGNMENT for life in needed]
    assert end <= sum(rounded)
    busiest = max(
        sum(life.num_bytes for life in needed if life.first <= now <= life.last)
        for now in range(15)
    )
    assert end >= busiest


@st.composite
def programs(draw: st.DrawFn) -> list[Kernel]:
    """Steps on buffers of two dtypes that read any earlier ones, in place where that can be."""
    buffers = [Buffer("x", "uint8", draw(SIZES), "input")]
    kernels: list[Kernel] = []
    for at in range(draw(st.integers(1, 15))):
        source = draw(st.sampled_from(buffers))
        dtype = draw(st.sampled_from(["float", "uint8"]))
        target = Buffer(f"t{at}", dtype, source.size)
        kernels.append(Elementwise(title=str(at), source=Source(source), target=target, channels=1))
        buffers.append(target)
    return kernels


def clobbered(kernels: list[Kernel]) -> Iterator[tuple[Kernel, Buffer]]:
    """What a step reads although something else has been written there, byte by byte."""
    offsets, size = plan(kernels)
    owners = np.full(size, -1)
    numbers = {buffer: at for at, buffer in enumerate(offsets)}
    for kernel in kernels:
        for source in kernel.read:
            if source.buffer in offsets:
                start = offsets[source.buffer]
                held = owners[start : start + source.buffer.num_bytes]
                if not (held == numbers[source.buffer]).all():
                    yield kernel, source.buffer
        if kernel.target in offsets:
            start = offsets[kernel.target]
            assert start + kernel.target.num_bytes <= size
            owners[start : start + kernel.target.num_bytes] = numbers[kernel.target]


@LENIENT
@given(programs())
def test_a_step_finds_what_it_reads_as_it_was_written(kernels: list[Kernel]) -> None:
    assert not list(clobbered(kernels))


def test_a_branch_is_kept_until_it_is_added() -> None:
    kernels = fused(read_graph(residual()).kernels)
    assert not list(clobbered(kernels))
    # A projection and what it is added to, and what both come from; the rest lies over them.
    assert plan(kernels)[1] == 4 * (8 * 8 * 6 + 2 * 4 * 4 * 8)


def test_a_convolution_does_all_that_follows_in_one_pass() -> None:
    kernels = fused(read_graph(residual()).kernels)
    assert [type(kernel) for kernel in kernels].count(Linear) == 6
    # Preprocessing, six products and a mean: what is added, cut and turned takes no step.
    assert len(kernels) == 8


def test_a_sum_is_written_over_its_branch_and_never_over_its_planes() -> None:
    kernels = {one.title: one for one in fused(read_graph(residual()).kernels)}
    apart = kernels["Conv/c4, Add/a, Relu/r3"]
    branch = [source.buffer for source in apart.read][1]
    assert overwritable(apart) == [branch]
    # Here the branch is the planes themselves.
    assert overwritable(kernels["Conv/c5, Add/a2, Relu/r4"]) == []


def test_values_are_changed_in_place() -> None:
    program = read_graph(steps("Softmax x s; Tanh s t; Softmax t y", (16,)))
    assert plan(fused(program.kernels))[1] == 16 * 4
