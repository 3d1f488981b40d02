"""Take known members out of a tar archive, by exact name, exact size and type.

Nothing is ever extracted by the path that an archive names: a member's bytes are streamed to the
place that the data set's record gives it, and everything else in the archive is passed over.
"""

import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.datasets import RawFile
from pipeline.download import CHUNK, UnavailableError, store

__all__ = ["unpack"]

REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)


def unpack(archive: Path, members: Iterable[RawFile], folder: Path) -> None:
    """Stream the `members` of a tar archive, plain or compressed, to `folder / member.name`.

    Raises UnavailableError for an archive that cannot be read, or that lacks a regular member of
    the recorded name, size and sha256.
    """
    wanted = {member.name: member for member in members}
    try:
        # Read as a stream: one pass, and no seeking to places that the archive names.
        with tarfile.open(archive, "r|*") as tar:
            for info in tar:
                member = wanted.get(info.name)
                if member and info.type in REGULAR and info.size == member.size:
                    store(member, folder / member.name, _chunks(tar, info))
                    del wanted[member.name]
                if not wanted:
                    break
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UnavailableError(
            f"{archive.name} cannot be read as a tar archive: {error}"
        ) from error
    for member in wanted.values():
        raise UnavailableError(f"no regular member {member.name} of {member.size} bytes in it")


def _chunks(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    source = tar.extractfile(info)  # opens a regular member for reading; writes nothing
    while source and (chunk := source.read(CHUNK)):
        yield chunk
