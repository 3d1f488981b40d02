"""Files that are whole or absent: atomic writes, sha256 sums and JSON of records.

A file is written under a temporary name beside its target, synced and renamed, so that a process
killed at any moment leaves the old file or the new one and never half of either.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from serving.errors import IntegrityError, MissingInputError

__all__ = [
    "atomic_write",
    "dump_json",
    "json_line",
    "read_json",
    "require",
    "sha256_of_bytes",
    "sha256_of_file",
    "sync_folder",
    "write_bytes",
    "write_json",
    "write_text",
]


@contextlib.contextmanager
def atomic_write(target: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that becomes `target` when the block ends well and vanishes when not.

    Raises OSError when the folder cannot be made or written, or the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        # A write that fails, on a full disk say, does not tell which file it was.
        raise OSError(error.errno, error.strerror, os.fspath(target)) from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a loss of power."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(target: Path, content: bytes) -> None:
    """Write `content` to `target`, whole or not at all."""
    with atomic_write(target) as file:
        file.write(content)


def write_text(target: Path, content: str) -> None:
    """Write `content` to `target` as UTF-8, whole or not at all."""
    write_bytes(target, content.encode("utf-8"))


def write_json(target: Path, record: object) -> None:
    """Write a record, or anything JSON can hold, to `target`, whole or not at all."""
    write_text(target, dump_json(record))


def dump_json(record: object) -> str:
    """Canonical JSON text of a record: keys in order of definition, two spaces, a final newline.

    Raises ValueError for NaN and infinities, which JSON cannot hold.
    """
    return json.dumps(record, default=_plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def json_line(record: object) -> str:
    """The same on one line, for files of JSON Lines."""
    return json.dumps(record, default=_plain, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Parse a JSON file; IntegrityError when it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is not a JSON file: {error}") from error


def sha256_of_file(path: Path) -> str:
    """The hexadecimal sha256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_bytes(content: bytes) -> str:
    """The hexadecimal sha256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def require(path: Path, command: str) -> Path:
    """Return `path` if it exists, else raise MissingInputError naming the command that makes it."""
    if not path.exists():
        raise MissingInputError(f"{path} is not there; `{command}` makes it")
    return path


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return value.as_posix()
    if hasattr(value, "item"):  # a numpy scalar
        return value.item()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
