"""Images as rows: files, folders with the folders in them sorted by name, and lists of paths.

Every file of a folder is a row, or is named with the reason why it is none: only hidden files are
left out unseen. What it is, its content tells. A list, a `.lst` file or stdin, has a path on each
line, as `find` prints them: relative to the working folder; blank lines are skipped.
"""

import functools
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from serving.errors import DamagedError, InputError
from serving.files import sha256_of_bytes
from serving.inputs.decoding import ImageDecoder, image_decoder
from serving.inputs.names import IMAGE_SUFFIXES, files_of, may_be_image
from serving.inputs.sources import (
    Batch,
    Chunk,
    FileRows,
    ReadTarget,
    display_name,
    fingerprint_of_files,
)
from serving.inputs.streams import Stream, chunks_of, open_stream, take

MOST_LINE_BYTES = 1 << 16
"""Longer than any path; a stream without ends of lines is not read into memory."""
MOST_KEPT = 200_000
"""Paths, some 20 MB, that are kept of the first walk through the folders."""
READ_BYTES = 1 << 13


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Images of files and folders, in the order in which these were given."""

    roots: tuple[str, ...]
    count: int
    decoder: ImageDecoder
    kept: tuple[str, ...] | None
    """Their paths; None of more than MOST_KEPT, whose folders are walked again."""
    slow: bool = True

    def fingerprint(self) -> str:
        """The sha256 of the path, size and time of change of every image."""
        return fingerprint_of_files(self._paths())

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """Paths, `size` at a time, from the image `start` on."""
        paths = itertools.islice(self._paths(), start, None)
        while content := tuple(itertools.islice(paths, size)):
            yield Chunk(start=start, count=len(content), content=content)
            start += len(content)

    def decode(self, chunk: Chunk) -> Batch:
        """The images of a chunk; an image's id is its path."""
        return self.decoder.decode_files(chunk.content)

    def _paths(self) -> Iterator[str]:
        if self.kept is not None:
            return iter(self.kept)
        return itertools.chain.from_iterable(map(files_of, self.roots))


def open_images(paths: Sequence[Path], target: ReadTarget) -> Images:
    """The images of files and folders; InputError where there are none or the model takes none."""
    count = 0
    kept: list[str] = []
    for path in paths:
        found, fits, first = 0, not path.is_dir(), ""
        for one in files_of(str(path)):
            found += 1
            first, fits = first or one, fits or may_be_image(one)
            if len(kept) < MOST_KEPT:
                kept.append(one)
        if not fits:
            raise no_images(str(path), others=found, first=first)
        count += found
    decoder = image_decoder(str(paths[0]), target)
    return Images(
        roots=tuple(map(str, paths)),
        count=count,
        decoder=decoder,
        kept=tuple(kept) if len(kept) == count else None,
    )


def no_images(name: str, *, others: int = 0, first: str = "") -> InputError:
    """The error for a folder or an archive without any, which may hold `others`."""
    there = f"; of the {others} files there, the first is {first}" if others else ""
    tables = ", and no tables" if Path(name).is_dir() else ""
    return InputError(f"{name} holds no images ({', '.join(IMAGE_SUFFIXES)}){tables}{there}")


# Lists of images


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedImages(FileRows):
    """The images of a list."""

    decoder: ImageDecoder
    null: bool
    """Whether a NUL ends each path, and no line does."""
    count: None = None
    slow: bool = True

    def fingerprint(self) -> str | None:
        """The sha256 of the path, size and time of change of the list and of every image on it."""
        if self.path is None:
            return None
        with open_stream(self.path) as stream:
            return fingerprint_of_files(itertools.chain([self.path], self._paths(stream)))

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """Paths, `size` at a time; InputError for no line, or one far too long for a path.

        The digest of a chunk of stdin is also of the images, as a fingerprint is.
        """
        with open_stream(self.path) as stream:
            paths, images = self._paths(stream), hashlib.sha256()
            if self.path is None:
                paths = _noted(paths, images)
            lines = functools.partial(take, paths)
            for chunk in chunks_of(stream, lines, size, start, what="images"):
                whole = chunk.digest and sha256_of_bytes(images.digest() + chunk.digest.encode())
                yield replace(chunk, digest=whole)

    def _paths(self, stream: Stream) -> Iterator[str]:
        return map(os.fsdecode, _null_ended(stream) if self.null else _lines(stream))

    def decode(self, chunk: Chunk) -> Batch:
        """The images of a chunk; an image's id is its path."""
        return self.decoder.decode_files(chunk.content)


def open_image_list(path: Path | None, target: ReadTarget) -> ListedImages:
    """The images that a file, or stdin for None, lists; InputError for none, or none that fits."""
    decoder = image_decoder(display_name(path), target)
    images = ListedImages(path=path, decoder=decoder, null=target.options.null)
    if path is not None:
        next(images.chunks(1))
    return images


def _noted(paths: Iterator[str], images: "hashlib._Hash") -> Iterator[str]:
    """The same paths, with the state of each image added to a sum."""
    for path in paths:
        images.update(fingerprint_of_files([path]).encode())
        yield path


def _lines(stream: Stream) -> Iterator[bytes]:
    """The lines that are not blank, without their ends."""
    for number, line in enumerate(stream.lines(MOST_LINE_BYTES), 1):
        if len(line) == MOST_LINE_BYTES and not line.endswith(b"\n"):
            raise DamagedError(
                stream.name,
                f"has more than {MOST_LINE_BYTES} bytes in line {number}; give the path of one "
                f"image a line",
            )
        path = line.removesuffix(b"\n").removesuffix(b"\r")
        if path.count(b"\0") > 1:
            raise InputError(f"{stream.name}: a NUL ends each of its paths; --null reads them")
        if path.strip():
            yield path


def _null_ended(stream: Stream) -> Iterator[bytes]:
    """The paths that a NUL ends, and the last one without it."""
    rest = b""
    while content := stream.read(READ_BYTES):
        *paths, rest = (rest + content).split(b"\0")
        yield from filter(None, paths)
        if len(rest) >= MOST_LINE_BYTES:
            raise InputError(
                f"{stream.name}: a path has more than {MOST_LINE_BYTES} bytes; --null is for paths "
                f"that each end in a NUL, as `find -print0` writes them"
            )
    if rest:
        yield rest
