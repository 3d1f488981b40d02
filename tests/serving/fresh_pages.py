"""Memory that is new to the process: an allocation may reuse what an earlier test has freed."""

import mmap

__all__ = ["fresh_pages"]


def fresh_pages(size: int) -> mmap.mmap:
    """Anonymous pages of `size` bytes that the system has just given, all of them touched."""
    pages = mmap.mmap(-1, size)
    pages.write(b"x" * size)
    return pages
