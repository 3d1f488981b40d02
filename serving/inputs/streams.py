"""Files and stdin, read once from front to back and cut into chunks of lines or records.

Stdin cannot be read again: what was read of it to look at its columns is handed on as its `head`,
and its chunks carry the sha256 of all of it up to their ends.

What changes when files do: their names, sizes and times of change, in one sum.
"""

import contextlib
import hashlib
import io
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TypeVar

from serving.errors import InputError
from serving.inputs.items import Chunk, printable

Item = TypeVar("Item")


class Stream:
    """The bytes of a file, or of stdin with those that were read of it before."""

    closed = False  # pyarrow asks

    def __init__(self, path: str | None, file: IO[bytes], head: bytes) -> None:
        self.name = name_of(path)
        self._head = io.BytesIO(head)
        self._file = file
        self._sum = hashlib.sha256() if path is None else None
        self._kept: list[bytes] = []
        self._keeps = False

    @property
    def digest(self) -> str | None:
        """The sha256 of all that was read of stdin; None for a file."""
        return None if self._sum is None else self._sum.hexdigest()

    def kept(self) -> bytes:
        """All that was read of stdin, to be the head of the next stream; nothing of a file."""
        return b"".join(self._kept)

    def keep(self) -> None:
        """Keep what is read from now on."""
        self._keeps = self._sum is not None

    def lines(self) -> Iterator[bytes]:
        """The lines with their ends."""
        lines = itertools.chain(self._head, self._file)
        return lines if self._sum is None else map(self._noted, lines)

    def read(self, size: int) -> bytes:
        """The next bytes, fewer than `size` only at the end."""
        content = self._head.read(size)
        if len(content) < size:
            content += self._file.read(size - len(content))
        return content if self._sum is None else self._noted(content)

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read again."""
        return False

    def _noted(self, content: bytes) -> bytes:
        if self._sum is not None:
            self._sum.update(content)
        if self._keeps:
            self._kept.append(content)
        return content


@contextlib.contextmanager
def opened(path: str | None, head: bytes = b"") -> Iterator[Stream]:
    """A file from its beginning, or stdin for None, with the `head` that was read of it before."""
    if path is None:
        yield Stream(None, sys.stdin.buffer, head)  # not ours to close
        return
    with Path(path).open("rb") as file:
        yield Stream(path, file, head)


def name_of(path: str | None) -> str:
    """What ids begin with."""
    return "stdin" if path is None else printable(Path(path))


def cut(stream: Stream, items: Iterator[Item], size: int, start: int) -> Iterator[Chunk]:
    """Chunks of tuples of `size` items, from the item `start` on.

    Raises InputError where there is no item or fewer than `start`, and what the items raise, after
    those before that place.
    """
    passed = sum(1 for _ in itertools.islice(items, start))
    if passed < start:
        raise InputError(f"{stream.name} holds {passed} rows, and {start} were read of it before")
    while True:
        content, error = taken(items, size)
        if content:
            yield Chunk(start=passed, count=len(content), content=content, digest=stream.digest)
            passed += len(content)
        if error is not None:
            raise error
        if not content:
            break
    if not passed:
        raise InputError(f"{stream.name} holds no rows")


def taken(items: Iterator[Item], size: int) -> tuple[tuple[Item, ...], InputError | None]:
    """The next `size` items, or those before the fault and the fault."""
    found: list[Item] = []
    try:
        found.extend(itertools.islice(items, size))
    except InputError as error:
        return tuple(found), error
    return tuple(found), None


def fingerprint_of_files(paths: Iterable[str]) -> str:
    """The sha256 of the path, size and time of change of every file, in order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(path))
        try:
            found = os.stat(path)  # noqa: PTH116 - to make a Path takes longer than to look
        except (OSError, ValueError):  # its row tells the reason
            digest.update(b"\0-\0")
        else:
            digest.update(f"\0{found.st_size} {found.st_mtime_ns}\0".encode())
    return digest.hexdigest()
