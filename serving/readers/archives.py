"""The members of a tar that nobody vouches for, one after the other, from front to back.

tarfile does the reading. What it takes for granted is checked: that a header's claims are small,
that what is no header is the end, and that few enough members come to be remembered.
"""

import struct
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, cast

__all__ = ["READING_ERRORS", "members_of"]

MOST_HEADER_BYTES = 1 << 20
TAIL_BYTES = 1 << 20
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


def members_of(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Every member of an archive.

    Raises ReadError where tarfile alone would take a broken header for the end.
    """
    reader = HeaderReader(file)
    # It asks for no more of a file than HeaderReader has.
    archive = Forgetful(fileobj=cast("IO[bytes]", reader), mode="r")
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


class Forgetful(tarfile.TarFile):
    """An archive that is read once, and so keeps neither its members nor the notes to all."""

    members: list[tarfile.TarInfo]

    def next(self) -> tarfile.TarInfo | None:
        """The next member."""
        member = super().next()
        self.members.clear()
        self.pax_headers = {}
        return member
