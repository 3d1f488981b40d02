"""Keep the memory that one step frees for the next one, where the C library is glibc.

glibc gives a large block back to the kernel as soon as it is freed, and asks for it again in the
next step: on two cores a tenth of a training went into fresh pages that the kernel had to clear.
"""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# Of mallopt(3), by their numbers in malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK = 2**30
LARGEST_KEPT = 2**31 - 1
"""Bytes, the largest `int`."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; whether its C library can be told so.

    What it takes at its peak does not grow, for that is what it keeps.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    told = mallopt(MMAP_THRESHOLD, LARGEST_BLOCK), mallopt(TRIM_THRESHOLD, LARGEST_KEPT)
    return told == (1, 1)
