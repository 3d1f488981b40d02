"""Images in tar shards of the WebDataset layout: `.tar`, `.tar.gz` and `.tgz`.

A shard is read once, from front to back, and nothing is ever extracted. A chunk of a `.tar`
holds only where the images lie, and whoever decodes it reads them; one of a compressed shard holds
their bytes.
"""

import gzip
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy.typing as npt

from serving.errors import InputError
from serving.readers.archives import READING_ERRORS, members_of
from serving.readers.decoding import MOST_BYTES, ImageDecoder, image_decoder, tried
from serving.readers.fingerprints import fingerprint_of_files
from serving.readers.items import Batch, Chunk, printable, reason_of
from serving.readers.streams import taken
from serving.readers.suffixes import IMAGE_SUFFIXES
from serving.tensors import TensorInfo

__all__ = ["MOST_PACKED_BYTES", "Member", "Tars", "open_tars"]

Array = npt.NDArray[Any]

MOST_PACKED_BYTES = 16 << 20
"""Of an image whose bytes are in its chunk, which holds many: of a compressed shard."""
MOST_SHOWN = 80
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An image in a shard, or what is named as one and is none."""

    shard: str
    name: str
    offset: int
    size: int
    content: bytes | None = None
    """Of one in a compressed shard."""
    fault: str | None = None
    """Why it cannot be read."""

    @property
    def id(self) -> str:
        """`shard.tar:folder/name.jpg`, as text that can be written anywhere."""
        name = self.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        told = CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", name)
        return f"{printable(Path(self.shard))}:{told}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tars:
    """The images of tar shards, in the order in which these were given."""

    shards: tuple[str, ...]
    decoder: ImageDecoder
    count: None = None
    slow: bool = True

    def fingerprint(self) -> str:
        """The sha256 of the path, size and time of change of every shard."""
        return fingerprint_of_files(self.shards)

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """The images, `size` at a time, from the one at `start` on.

        Raises InputError where a shard is damaged, after the images before that place.
        """
        members = self._members(start)
        while True:
            content, error = taken(members, size)
            if content:
                yield Chunk(start=start, count=len(content), content=content)
                start += len(content)
            if error is not None:
                raise error
            if not content:
                return

    def decode(self, chunk: Chunk) -> Batch:
        """The images of a chunk; an image's id is its shard and its name in that."""
        members: tuple[Member, ...] = chunk.content
        values = [member.fault or tried(self._image, member) for member in members]
        return self.decoder.batch([member.id for member in members], values)

    def _image(self, member: Member) -> Array:
        content = member.content
        return self.decoder.decode(_bytes_of(member) if content is None else content)

    def _members(self, start: int) -> Iterator[Member]:
        """The images from the one at `start` on; the bytes of those before it are not kept."""
        passed = 0
        for shard in self.shards:
            for member in _images_of(shard, start - passed):
                passed += 1
                if passed > start:
                    yield member


def open_tars(paths: Sequence[Path], info: TensorInfo, model: Path, *, resize: bool) -> Tars:
    """The images of tar shards as rows for the input `info` of `model`.

    Raises InputError for what is no tar or holds no images, and for a model that takes none.
    """
    decoder = image_decoder(paths[0], info, model, resize=resize)
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} is not a file")
        if next(_images_of(str(path)), None) is None:
            raise InputError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return Tars(shards=tuple(map(str, paths)), decoder=decoder)


def _images_of(shard: str, unread: int = 0) -> Iterator[Member]:
    """The images of a shard, without the bytes of the first `unread`.

    Raises InputError with the place where it is damaged.
    """
    images = place = 0
    try:
        with _opened(shard) as file:
            for member in members_of(file):
                place = member.offset
                image = _image_of(shard, file, member, unread=images < unread)
                if image is not None:
                    images += 1
                    yield image
    except READING_ERRORS as error:
        raise InputError(
            f"{shard} is damaged after {images} images, in or after the member at byte {place}: "
            f"{reason_of(error)}"
        ) from error


def _opened(shard: str) -> IO[bytes]:
    if _is_packed(shard):
        return cast("IO[bytes]", gzip.open(shard, "rb"))
    return Path(shard).open("rb")


def _is_packed(shard: str) -> bool:
    return not shard.lower().endswith(".tar")


def _image_of(
    shard: str, file: IO[bytes], member: tarfile.TarInfo, *, unread: bool
) -> Member | None:
    """The image that a member is, or None for one that is not named as an image."""
    name = member.name.rsplit("/", 1)[-1]
    if member.isdir() or name[:1] == "." or not name.lower().endswith(IMAGE_SUFFIXES):
        return None
    fault, content = _fault(shard, member), None
    if fault is None and not unread:
        content = _checked(shard, file, member)
    return Member(
        shard=shard,
        name=member.name,
        offset=member.offset_data,
        size=member.size,
        content=content,
        fault=fault,
    )


def _fault(shard: str, member: tarfile.TarInfo) -> str | None:
    """Why a member is not read, or None."""
    if member.issym() or member.islnk():
        return f"it is a link, to {member.linkname[:MOST_SHOWN]!r}; links are not followed"
    if not member.isreg():
        return "it is a device or a pipe, not a file"
    if member.issparse():
        return "it is a sparse file; store it whole"
    if _is_packed(shard) and member.size > MOST_PACKED_BYTES:
        return (
            f"it has {member.size} bytes, the limit in a compressed shard is {MOST_PACKED_BYTES}; "
            f"give the shard as a .tar"
        )
    if member.size > MOST_BYTES:
        return f"it has {member.size} bytes, the limit is {MOST_BYTES}"
    return None


def _checked(shard: str, file: IO[bytes], member: tarfile.TarInfo) -> bytes | None:
    """The bytes of a member of a compressed shard; ReadError when some of a member are missing."""
    end = member.offset_data + member.size
    if _is_packed(shard):
        file.seek(member.offset_data)
        content = file.read(member.size)
        there = member.offset_data + len(content)
    else:
        content, there = None, os.fstat(file.fileno()).st_size
    if there < end:
        raise tarfile.ReadError(f"it ends within {member.name[:MOST_SHOWN]!r}")
    return content


def _bytes_of(member: Member) -> bytes:
    """The bytes of a member of a shard that is not compressed."""
    try:
        with Path(member.shard).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), member.size, member.offset)
    except OSError as error:
        raise ValueError(reason_of(error)) from error
