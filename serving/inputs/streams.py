"""The bytes of a file, or of stdin, read once and from front to back, and items of them.

A compressed file is unpacked on the way. Of stdin a sum is kept, by which a run that goes on knows
that it is the same.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import sys
from collections.abc import Callable, Iterator, Sized
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from serving.errors import DamagedError, InputError
from serving.inputs.names import PACKED_SUFFIXES
from serving.inputs.sources import Chunk, display_name, refuse_broken

Item = TypeVar("Item")
Take = Callable[[int], tuple[Sized, InputError | None]]
PACKED_BUFFER_BYTES = 1 << 14
"""What is lost at most before the place where a file is damaged."""


class Stream:
    """The bytes of a file, or of stdin with those that were read of it before."""

    closed = False  # pyarrow asks

    def __init__(
        self, path: Path | None, file: IO[bytes], head: bytes = b"", *, keep: bool = False
    ) -> None:
        """Go on after the `head` that was read before; `keep` what is read of stdin now."""
        self.name = display_name(path)
        self._head = io.BytesIO(head)
        self._file = file
        self._sum = hashlib.sha256() if path is None else None
        self._kept: list[bytes] | None = [] if keep else None

    @property
    def digest(self) -> str | None:
        """The sha256 of all that was read of stdin; None for a file."""
        return None if self._sum is None else self._sum.hexdigest()

    def kept(self) -> bytes:
        """All that was read of stdin, to be the head of the next stream; nothing of a file."""
        return b"".join(self._kept or ())

    def lines(self, most: int = -1) -> Iterator[bytes]:
        """The lines with their ends; a line of more than `most` bytes comes in parts."""
        parts = self._file if most < 0 else iter(functools.partial(self._file.readline, most), b"")
        lines: Iterator[bytes] = itertools.chain(self._head, parts)
        if self.name.lower().endswith(PACKED_SUFFIXES):
            lines = self._whole(lines)
        return lines if self._sum is None else map(self._noted, lines)

    def read(self, size: int) -> bytes:
        """The next bytes, fewer than `size` only at the end."""
        content = self._head.read(size)
        if len(content) < size:
            content += self._file.read(size - len(content))
        return self._noted(content)

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read again."""
        return False

    def _whole(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        """The same lines; DamagedError where a compressed file is damaged."""
        import zlib

        errors = (OSError, EOFError, ValueError, MemoryError, zlib.error)
        with refuse_broken(self.name, "is damaged", errors):
            yield from lines

    def _noted(self, content: bytes) -> bytes:
        if self._sum is not None:
            self._sum.update(content)
            if self._kept is not None:
                self._kept.append(content)
        return content


@contextlib.contextmanager
def open_stream(path: Path | None, head: bytes = b"", *, keep: bool = False) -> Iterator[Stream]:
    """A file from its beginning, or stdin for None, with the `head` that was read of it before."""
    if path is None:
        yield Stream(None, sys.stdin.buffer, head, keep=keep)  # not ours to close
        return
    with _opened(path) as file:
        yield Stream(path, file)


def _opened(path: Path) -> IO[bytes]:
    """A file for reading, unpacked on the way where its suffix says that it is compressed."""
    suffix = path.suffix.lower()
    if suffix not in PACKED_SUFFIXES:
        return path.open("rb")
    if suffix == ".gz":
        import gzip

        return cast("IO[bytes]", gzip.open(path))
    import pyarrow as pa

    raw: Any = pa.input_stream(str(path), compression="zstd")
    return io.BufferedReader(raw, PACKED_BUFFER_BYTES)


def chunks_of(
    stream: Stream, next_items: Take, size: int, start: int, *, what: str = "rows"
) -> Iterator[Chunk]:
    """Chunks of `size` items each, from the item `start` on; `next_items` gives at most so many.

    Raises InputError for no item or fewer than `start`, and a fault after the items before it.
    """
    passed = 0
    while True:
        content, error = next_items(min(size, start - passed) if passed < start else size)
        if len(content) and passed >= start:
            yield Chunk(start=passed, count=len(content), content=content, digest=stream.digest)
        passed += len(content)
        if error is not None:
            raise error
        if not len(content):
            break
    if passed < start:
        raise InputError(f"{stream.name} holds {passed} {what}, and {start} were read of it before")
    if not passed:
        raise DamagedError(stream.name, f"holds no {what}")


def take(items: Iterator[Item], size: int) -> tuple[tuple[Item, ...], InputError | None]:
    """The next `size` items, or those before the fault and the fault."""
    found: list[Item] = []
    try:
        found.extend(itertools.islice(items, size))
    except InputError as error:
        return tuple(found), error
    return tuple(found), None
