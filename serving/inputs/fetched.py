"""Inputs that lie at addresses: images that are fetched one by one, and files as a whole.

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
from typing import Any

import numpy.typing as npt

from serving.errors import InputError
from serving.inputs.decoding import ImageDecoder, image_decoder, tried
from serving.inputs.items import Batch, Chunk, NumberedIds, Source, printable
from serving.inputs.packed import MappedRows
from serving.inputs.remote import FETCHES, There, content_of, fetched, images_at, look
from serving.inputs.tars import MOST_PACKED_BYTES, Member, Tars
from serving.runtime.tensors import TensorInfo

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteImages:
    """Images at addresses, in the order in which these were given."""

    images: tuple[There, ...]
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
        images: tuple[There, ...] = chunk.content
        with ThreadPoolExecutor(FETCHES) as pool:
            values = list(pool.map(lambda image: tried(self._image, image), images))
        return self.decoder.batch([image.address for image in images], values)

    def _image(self, image: There) -> Array:
        return self.decoder.decode(content_of(image.address, image.size))


@dataclass(frozen=True, slots=True)
class Part:
    """What a chunk of a fetched file holds."""

    path: str
    """Where the file was; names in the ids begin with it."""
    source: Source
    chunk: Chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """The rows of a file at an address."""

    file: There
    open: Callable[[Path], Source]
    """What opens the file when it lies on this machine; it can be sent to other processes."""
    slow: bool
    count: None = None

    def fingerprint(self) -> str:
        """The sha256 of the address and state of the file."""
        return _fingerprint([self.file])

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """The chunks of the file, which is fetched now.

        Raises InputError for a file that cannot be had, has changed, or does not fit the model.
        """
        with tempfile.TemporaryDirectory(prefix="ferry-") as folder:
            path = fetched(self.file, Path(folder))
            with self._named(str(path)):
                source = self.open(path)
                for chunk in source.chunks(size, start):
                    yield replace(chunk, content=self._held(source, chunk, str(path)))

    def decode(self, chunk: Chunk) -> Batch:
        """The rows of a chunk; their ids begin with the address."""
        if isinstance(chunk.content, Batch):
            return chunk.content
        part: Part = chunk.content
        with self._named(part.path):
            return self._addressed(part.source.decode(part.chunk), part.path)

    def _held(self, source: Source, chunk: Chunk, path: str) -> Part | Batch:
        """A chunk that does without the file."""
        if isinstance(source, MappedRows):
            # What is mapped stays, although the file has no name any more.
            return self._addressed(source.decode(chunk), path)
        if isinstance(source, Tars):
            chunk = replace(chunk, content=_with_bytes(chunk.content, path))
        return Part(path, source, chunk)

    def _addressed(self, batch: Batch, path: str) -> Batch:
        ids: Sequence[str] = batch.ids
        if isinstance(ids, NumberedIds):
            return replace(batch, ids=replace(ids, name=self.file.address))
        name = printable(Path(path))
        return replace(batch, ids=[self.file.address + one.removeprefix(name) for one in ids])

    @contextmanager
    def _named(self, path: str) -> Iterator[None]:
        """Tell the address in place of the path."""
        try:
            yield
        except InputError as error:
            raise InputError(str(error).replace(path, self.file.address)) from error


def open_remote_images(
    roots: Sequence[str], info: TensorInfo, model: Path, *, resize: bool
) -> RemoteImages:
    """The images at addresses, below folders and of patterns, for the input `info` of `model`.

    Raises MissingInputError for what is not there, InputError for what holds no images or cannot
    be had, and for a model that takes none.
    """
    decoder = image_decoder(roots[0], info, model, resize=resize)
    # One after the other, a shell's thousand addresses would take minutes.
    with ThreadPoolExecutor(FETCHES) as pool:
        found = [image for some in pool.map(images_at, roots) for image in some]
    return RemoteImages(images=tuple(found), decoder=decoder)


def open_fetched(address: str, open_local: Callable[[Path], Source], *, slow: bool) -> Fetched:
    """The rows of a file at an address, which `open_local` opens when it was fetched.

    Raises MissingInputError for one that is not there, and InputError for one that cannot be had.
    """
    return Fetched(file=look(address), open=open_local, slow=slow)


def _fingerprint(files: Sequence[There]) -> str:
    digest = hashlib.sha256()
    for there in files:
        digest.update(f"{there.address}\0{there.state}\0".encode())
    return digest.hexdigest()


def _with_bytes(members: Sequence[Member], path: str) -> tuple[Member, ...]:
    """The images of a shard with their bytes."""
    with Path(path).open("rb") as file:
        return tuple(_with_content(member, file) for member in members)


def _with_content(member: Member, file: Any) -> Member:
    if member.fault is not None or member.content is not None:
        return member
    if member.size > MOST_PACKED_BYTES:
        message = f"it has {member.size} bytes, the limit in a shard that is fetched is"
        return replace(
            member, fault=f"{message} {MOST_PACKED_BYTES}; download the shard, and give its path"
        )
    file.seek(member.offset)
    return replace(member, content=file.read(member.size))
