"""Images whose paths are told line by line, in a `.lst` file or on stdin, as `find` gives them.

Paths are taken as they stand, from the working folder; blank lines are passed over.
"""

import contextlib
import hashlib
import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from serving.errors import InputError
from serving.readers.decoding import ImageDecoder, image_decoder
from serving.readers.items import Batch, Chunk, printable
from serving.tensors import TensorInfo

__all__ = ["ListedImages", "open_image_list"]

MOST_LINE_BYTES = 1 << 16
"""Longer than any path; a stream without ends of lines is not read into memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedImages:
    """The images of a list. That on stdin can be read once."""

    path: str | None
    """The list; None for stdin."""
    decoder: ImageDecoder
    count: None = None
    slow: bool = True

    def fingerprint(self) -> None:
        """None: the chunks carry the digest of the lines up to them."""

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """Paths, `size` at a time, from the image `start` on, with the digest of all so far.

        Raises InputError for a list without a line, with fewer than `start`, or with one that is
        far too long for a path.
        """
        digest = hashlib.sha256()
        with self._opened() as file:
            lines = _lines(file, self._name)
            passed = 0
            for line in itertools.islice(lines, start):
                digest.update(line + b"\n")
                passed += 1
            while taken := list(itertools.islice(lines, size)):
                digest.update(b"\n".join((*taken, b"")))
                yield Chunk(
                    start=passed,
                    count=len(taken),
                    content=tuple(os.fsdecode(line) for line in taken),
                    digest=digest.hexdigest(),
                )
                passed += len(taken)
        if passed < max(start, 1):
            short = f"{passed} images, and {start} were read of it before"
            raise InputError(f"{self._name} holds {short if start else 'no images'}")

    def decode(self, chunk: Chunk) -> Batch:
        """The images of a chunk; an image's id is its path."""
        return self.decoder.decode_files(chunk.content)

    @property
    def _name(self) -> str:
        return "stdin" if self.path is None else printable(Path(self.path))

    def _opened(self) -> contextlib.AbstractContextManager[IO[bytes]]:
        if self.path is not None:
            return Path(self.path).open("rb")
        return contextlib.nullcontext(sys.stdin.buffer)  # not ours to close


def open_image_list(
    path: Path | None, info: TensorInfo, model: Path, *, resize: bool
) -> ListedImages:
    """The images that `path` lists, or stdin for None, as rows for the input `info` of `model`.

    Raises InputError for a model that takes no images. Nothing is read yet.
    """
    decoder = image_decoder(path or "stdin", info, model, resize=resize)
    return ListedImages(path=None if path is None else str(path), decoder=decoder)


def _lines(file: IO[bytes], name: str) -> Iterator[bytes]:
    """The lines that are not blank, without their ends."""
    for number in itertools.count(1):
        line = file.readline(MOST_LINE_BYTES)
        if not line:
            return
        if len(line) == MOST_LINE_BYTES and not line.endswith(b"\n"):
            raise InputError(
                f"{name}: line {number} has more than {MOST_LINE_BYTES} bytes; "
                f"give the path of one image a line"
            )
        path = line.removesuffix(b"\n").removesuffix(b"\r")
        if path.strip():
            yield path
