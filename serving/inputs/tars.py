"""Images in tar shards of the WebDataset layout: `.tar`, `.tar.gz` and `.tgz`.

A shard is read once, from front to back, and nothing is ever extracted. A chunk of a `.tar` holds
only where its images lie, and whoever decodes it reads them; a chunk of a shard that is compressed,
or was fetched and goes away, holds their bytes. tarfile reads the headers; what it takes for
granted is checked: that a header's claims are small, that what is no header is the end, and that
few enough members come to be remembered.
"""

import gzip
import itertools
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from serving.errors import DamagedError, InputError, redacted
from serving.files import printable
from serving.inputs.decoding import MOST_BYTES, ImageDecoder, image_decoder
from serving.inputs.images import no_images
from serving.inputs.names import NO_DATA, OTHER_IMAGE_SUFFIXES, may_be_image
from serving.inputs.sources import (
    REST,
    Batch,
    Chunk,
    ReadTarget,
    fingerprint_of_files,
    is_of_system,
    reason_of,
    value_or_reason,
)
from serving.inputs.streams import take
from serving.runtime.tensors import Array

MOST_HEADER_BYTES = 1 << 20
TAIL_BYTES = 1 << 20
MOST_PACKED_BYTES = 16 << 20
"""Of an image whose bytes are in its chunk, which holds many."""
MOST_BESIDE = 1000
"""Members that a sample may have beside its images."""
MOST_SHOWN = 80
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# What tarfile and gzip raise on broken archives, beside the TarError they should.
READING_ERRORS = (
    tarfile.TarError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    RecursionError,
    MemoryError,
    LookupError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TarMember:
    """An image in a shard, or what is named as one and is none."""

    shard: str
    name: str
    offset: int
    size: int
    content: bytes | None = None
    """Of one in a shard that is compressed or fetched."""
    fault: str | None = None
    """Why it cannot be read."""

    @property
    def id(self) -> str:
        """`shard.tar:folder/name.jpg`, as text that can be written anywhere."""
        if not self.name:
            return redacted(printable(self.shard))
        name = self.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        shown = CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", name)
        return redacted(f"{printable(self.shard)}:{shown}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TarImages:
    """The images of tar shards, in the order in which these were given."""

    shards: tuple[str, ...]
    decoder: ImageDecoder
    fetched: bool = False
    """Whether the shards go away before their chunks are decoded, which then hold the bytes."""
    count: None = None
    slow: bool = True

    def fingerprint(self) -> str:
        """The sha256 of the path, size and time of change of every shard."""
        return fingerprint_of_files(self.shards)

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """The images, `size` at a time; InputError where a shard cannot be had any more."""
        members = self._members(start)
        while True:
            content, error = take(members, size)
            if content:
                yield Chunk(start=start, count=len(content), content=content)
                start += len(content)
            if error is not None:
                raise error
            if not content:
                return

    def decode(self, chunk: Chunk) -> Batch:
        """The images of a chunk; an image's id is its shard and its name in that."""
        members: tuple[TarMember, ...] = chunk.content
        values = [value_or_reason(self._image, member) for member in members]
        return self.decoder.batch([member.id for member in members], values)

    def _image(self, member: TarMember) -> Array:
        if member.fault is not None:
            raise ValueError(member.fault)
        if member.content is not None:
            return self.decoder.decode(member.content)
        try:
            with Path(member.shard).open("rb", buffering=0) as file:
                content = os.pread(file.fileno(), member.size, member.offset)
        except OSError as error:
            raise ValueError(reason_of(error)) from error
        return self.decoder.decode(content)

    def _members(self, start: int) -> Iterator[TarMember]:
        """The images from the one at `start` on."""
        members = map(self._of_shard, self.shards)
        return itertools.islice(itertools.chain.from_iterable(members), start, None)

    def _of_shard(self, shard: str) -> Iterator[TarMember]:
        """The images of a shard, and a last one without a name for what is damaged."""
        try:
            yield from _images_of(shard, fetched=self.fetched)
        except DamagedError as error:
            yield TarMember(shard=shard, name="", offset=0, size=0, fault=error.reason + REST)


def open_tars(paths: Sequence[Path], target: ReadTarget) -> TarImages:
    """The images of tar shards; InputError where one has none or the model takes none.

    One that is damaged from its beginning is refused where it is the only one.
    """
    decoder = image_decoder(str(paths[0]), target)
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} is not a file")
        try:
            found = any(may_be_image(member.name) for member in _images_of(str(path)))
        except DamagedError:
            if len(paths) == 1:
                raise
            continue
        if not found:
            raise no_images(str(path))
    return TarImages(shards=tuple(map(str, paths)), decoder=decoder)


def _images_of(shard: str, *, fetched: bool = False) -> Iterator[TarMember]:
    """The images of a shard, and the members that are neither one nor belong to one.

    To an image belong its label and its caption, as WebDataset keeps them: the files beside it that
    have its name up to the first dot, `0001.cls` of `0001.jpg`.
    """
    key, pictured, others = "", False, list[TarMember]()
    for member in _members_of(shard, fetched=fetched):
        if _key(member.name) != key or len(others) == MOST_BESIDE:
            yield from () if pictured else others
            key, pictured, others = _key(member.name), False, []
        if may_be_image(member.name):
            pictured = True
            yield member
        elif member.name.lower().endswith(OTHER_IMAGE_SUFFIXES):
            yield member
        else:
            others.append(member)
    yield from () if pictured else others


def _key(name: str) -> str:
    """What the members of a sample have in common: the name up to its first dot."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _members_of(shard: str, *, fetched: bool) -> Iterator[TarMember]:
    """The files of a shard, with the bytes of images if it is compressed or fetched."""
    images = place = 0
    packed = not shard.lower().endswith(".tar")
    try:
        with _opened(shard, packed=packed) as file:
            for member in members_of(file):
                place = member.offset
                if member.isdir() or NO_DATA.match(member.name.rpartition("/")[2]):
                    continue
                content, fault = None, _fault(member, packed=packed, fetched=fetched)
                if fault is None:
                    content = _checked(file, member, keep=packed or fetched)
                images += may_be_image(member.name)
                yield TarMember(
                    shard=shard,
                    name=member.name,
                    offset=member.offset_data,
                    size=member.size,
                    content=content,
                    fault=fault,
                )
    except READING_ERRORS as error:
        if is_of_system(error):
            raise InputError(f"{shard} cannot be read: {reason_of(error)}") from error
        reason = (
            f"is damaged after {images} images, in or after the member at byte {place}: "
            f"{reason_of(error)}"
        )
        raise DamagedError(shard, reason) from error


def _opened(shard: str, *, packed: bool) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(shard, "rb")) if packed else Path(shard).open("rb")


def _fault(member: tarfile.TarInfo, *, packed: bool, fetched: bool) -> str | None:
    """Why a member is not read, or None."""
    if not may_be_image(member.name):
        return "it is not named as an image"
    if member.issym() or member.islnk():
        return f"it is a link, to {member.linkname[:MOST_SHOWN]!r}; links are not followed"
    if not member.isreg():
        return "it is a device or a pipe, not a file"
    if member.issparse():
        return "it is a sparse file; store it whole"
    most = MOST_PACKED_BYTES if packed or fetched else MOST_BYTES
    where, hint = "", ""
    if packed:
        where, hint = " in a compressed shard", "; give the shard as a .tar"
    elif fetched:
        where, hint = " in a shard that is fetched", "; download the shard, and give its path"
    if member.size > most:
        return f"it has {member.size} bytes, the limit{where} is {most}{hint}"
    return None


def _checked(file: IO[bytes], member: tarfile.TarInfo, *, keep: bool) -> bytes | None:
    """The bytes of a member, if they are to be kept; ReadError when some are missing."""
    content = None
    if keep:
        file.seek(member.offset_data)
        content = file.read(member.size)
        there = member.offset_data + len(content)
    else:
        there = os.fstat(file.fileno()).st_size
    if there < member.offset_data + member.size:
        raise tarfile.ReadError(f"it ends within {member.name[:MOST_SHOWN]!r}")
    return content


# Members


def members_of(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Every member of an archive; ReadError where tarfile takes a broken header for the end."""
    reader = HeaderReader(file)
    # It asks for no more of a file than HeaderReader has.
    archive = ForgetfulTar(fileobj=cast("IO[bytes]", reader), mode="r")
    while (member := archive.next()) is not None:
        if member.size < 0:
            raise tarfile.ReadError("a member of a negative size")
        yield member
        reader.left = MOST_HEADER_BYTES
    if len(reader.last) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends without the mark of its end; it is cut short")
    if any(reader.last):
        raise tarfile.ReadError("what follows is no header")
    if any(file.read(TAIL_BYTES)):
        raise tarfile.ReadError("more follows the mark of its end; it is several archives in one")


class HeaderReader:
    """A shard as tarfile reads it, which takes each header's word for its size."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.left = MOST_HEADER_BYTES
        """How much may be read of the headers of one member."""
        self.last = b""
        """What was read last."""

    def read(self, size: int) -> bytes:
        """The next bytes."""
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"a header of more than {MOST_HEADER_BYTES} bytes")
        self.left -= size
        self.last = self._file.read(size)
        return self.last

    def seek(self, place: int) -> int:
        """Go on from another place."""
        return self._file.seek(place)

    def tell(self) -> int:
        """The place."""
        return self._file.tell()


class ForgetfulTar(tarfile.TarFile):
    """An archive that is read once, and so keeps neither its members nor the notes to all."""

    members: list[tarfile.TarInfo]

    def next(self) -> tarfile.TarInfo | None:
        """The next member."""
        member = super().next()
        self.members.clear()
        self.pax_headers = {}
        return member
