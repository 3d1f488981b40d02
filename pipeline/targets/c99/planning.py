"""Where each buffer lies in one static arena: buffers that live at different times share memory.

The largest buffers get their places first, each the lowest that is free as long as it lives
(Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020, greedy by
size).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.targets.c99.kernels import (
    BYTES,
    Buffer,
    Elementwise,
    Kernel,
    Linear,
    Pooling,
)

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
