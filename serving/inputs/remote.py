"""Inputs at addresses, `https://`, `s3://`, `gs://`: images fetched one by one, files as a whole.

A file is fetched when its turn comes, into a temporary folder that is gone with its last chunk.
Its chunks hold all that their rows are made of, so that they may be decoded later, and elsewhere.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from serving.errors import DamagedError, InputError
from serving.files import printable
from serving.inputs.arrays import PlainRows
from serving.inputs.decoding import ImageDecoder, image_decoder
from serving.inputs.fetching import RemoteFile, content_of, fetched, is_web, listed, look
from serving.inputs.images import no_images
from serving.inputs.names import (
    file_name,
    is_image,
    is_pattern,
    may_be_image,
)
from serving.inputs.sources import (
    Batch,
    Chunk,
    NumberedIds,
    ReadTarget,
    RowSource,
    value_or_reason,
)
from serving.inputs.tars import TarImages
from serving.runtime.tensors import Array

Opener = Callable[[Sequence[str]], RowSource]
"""What opens a file when it lies on this machine; it can be sent to other processes."""

FETCHES = 16
"""Files that are asked for at a time: most of an answer is waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteImages:
    """Images at addresses, in the order in which these were given."""

    images: tuple[RemoteFile, ...]
    decoder: ImageDecoder
    slow: bool = True

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.images)

    def fingerprint(self) -> str:
        """The sha256 of the address and state of every image."""
        return _fingerprint(self.images)

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """Addresses, `size` at a time, from the image `start` on."""
        for first in range(start, self.count, size):
            content = self.images[first : first + size]
            yield Chunk(start=first, count=len(content), content=content)

    def decode(self, chunk: Chunk) -> Batch:
        """The images of a chunk, many of which are fetched at a time; the id is the address."""
        images: tuple[RemoteFile, ...] = chunk.content
        with ThreadPoolExecutor(FETCHES) as pool:
            values = list(pool.map(lambda image: value_or_reason(self._image, image), images))
        return self.decoder.batch([image.name for image in images], values)

    def _image(self, image: RemoteFile) -> Array:
        if not _may_be_image(image):  # and it may be large
            raise ValueError("it is not named as an image")
        return self.decoder.decode(content_of(image))


@dataclass(frozen=True, slots=True)
class FetchedChunk:
    """A chunk of a fetched file, with what decodes it."""

    path: str
    """Where the file was; names in the ids begin with it."""
    source: RowSource
    chunk: Chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedRows:
    """The rows of a file at an address."""

    file: RemoteFile
    open: Opener
    slow: bool
    count: None = None

    def fingerprint(self) -> str:
        """The sha256 of the address and state of the file."""
        return _fingerprint([self.file])

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """The chunks of the file, which is fetched now; InputError if it has changed."""
        with tempfile.TemporaryDirectory(prefix="ferry-") as folder:
            path = fetched(self.file, Path(folder))
            with self._named(str(path)):
                source = self.open([str(path)])
                if isinstance(source, TarImages):
                    source = replace(source, fetched=True)
                for chunk in source.chunks(size, start):
                    content: FetchedChunk | Batch = FetchedChunk(str(path), source, chunk)
                    if isinstance(source, PlainRows):
                        # The file is gone when the chunk is decoded.
                        content = self._addressed(source.decode(chunk), str(path))
                    yield replace(chunk, content=content)

    def decode(self, chunk: Chunk) -> Batch:
        """The rows of a chunk; their ids begin with the address."""
        if isinstance(chunk.content, Batch):
            return chunk.content
        part: FetchedChunk = chunk.content
        with self._named(part.path):
            return self._addressed(part.source.decode(part.chunk), part.path)

    def _addressed(self, batch: Batch, path: str) -> Batch:
        ids: Sequence[str] = batch.ids
        if isinstance(ids, NumberedIds):
            return replace(batch, ids=replace(ids, name=self.file.name))
        name = printable(path)
        return replace(batch, ids=[self.file.name + one.removeprefix(name) for one in ids])

    @contextmanager
    def _named(self, path: str) -> Iterator[None]:
        """Tell the address in place of the path."""
        try:
            yield
        except DamagedError as error:
            raise DamagedError(self.file.address, error.reason) from error
        except InputError as error:
            raise InputError(str(error).replace(path, self.file.address)) from error


def open_remote_images(roots: Sequence[str], target: ReadTarget) -> RemoteImages:
    """The images at addresses, below folders and of patterns.

    Raises MissingInputError for what is not there, and InputError for what gives no images.
    """
    decoder = image_decoder(roots[0], target)
    # One after the other, a shell's thousand addresses would take minutes.
    with ThreadPoolExecutor(FETCHES) as pool:
        found = [image for some in pool.map(_images_at, roots) for image in some]
    return RemoteImages(images=tuple(found), decoder=decoder)


def open_fetched(address: str, open_local: Opener, *, slow: bool) -> FetchedRows:
    """The rows of a file at an address, to be opened by `open_local`; MissingInputError if gone."""
    return FetchedRows(file=look(address), open=open_local, slow=slow)


def matching(pattern: str) -> list[str]:
    """The files that a pattern stands for, sorted; InputError when there are none."""
    return [file.address for file in listed(pattern)]


def _fingerprint(files: Sequence[RemoteFile]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.state}\0".encode())
    return digest.hexdigest()


# What is there


def _look_again(listed: RemoteFile) -> RemoteFile:
    """More of an image that was listed; what is wrong with it, its row tells."""
    if not _may_be_image(listed):
        return listed
    try:
        return look(listed.address)
    except InputError:
        return listed


def _images_at(root: str) -> list[RemoteFile]:
    """The image itself, or those below a folder or of a pattern, sorted by name."""
    if not is_pattern(root) and is_image(file_name(root)):
        return [look(root)]
    # What has no name is a view of the folder: `photos/?sort=size`.
    found = [file for file in listed(root) if file_name(file.address)]
    if not any(map(_may_be_image, found)):
        others = found[0].address if found else ""
        raise no_images(root, others=len(found), first=others)
    if not is_web(root):
        return found
    # A page of links tells neither sizes nor times.
    with ThreadPoolExecutor(FETCHES) as pool:
        return list(pool.map(_look_again, found))


def _may_be_image(file: RemoteFile) -> bool:
    return may_be_image(file_name(file.address))
