"""Files that are whole or absent: atomic writes, sha256 sums, and records as JSON.

A file is written under a temporary name beside its target, synced and renamed, so that a process
killed at any moment leaves the old file or the new one and never half of either; what it was
writing is removed by the next one that writes there. JSON is read back into frozen records as
strictly as they are typed: a missing, unknown or mistyped key is refused by its path, as the file
may have been altered.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from serving.errors import UNSEEN, InputError, IntegrityError, MissingInputError, redacted

HELD = (BlockingIOError, PermissionError)
"""What says that another process has a lock; POSIX allows both, and NFS gives the second."""


@contextlib.contextmanager
def atomic_write(target: Path, beside: Path | None = None) -> Iterator[IO[bytes]]:
    """Open a binary file that becomes `target` when the block ends well and vanishes when not.

    It is written beside the target, or beside another path of the same file system. Raises OSError,
    naming the target, when the folder cannot be made or written, or the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    place = beside or target
    with blaming(target, place), building(place) as (temporary, handle):
        with os.fdopen(os.dup(handle), "wb") as file:
            yield file
            file.flush()
            os.fsync(handle)
        mask = os.umask(0)  # which can only be read by setting it
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)


@contextlib.contextmanager
def blaming(target: Path, place: Path | None = None) -> Iterator[None]:
    """Let an OSError of the block name `target`, unless it names a file that somebody knows.

    A failed write, for instance on a full disk, does not say which file it was; and nobody knows
    the temporary ones, which lie beside `place`, or else beside the target, nor what is in them.
    """
    try:
        yield
    except OSError as error:
        written = Path(os.fsdecode(error.filename or "")).parts
        temporary = f".{(place or target).name}."
        if error.errno is None or (
            written and not any(part.startswith(temporary) for part in written)
        ):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(target)) from error


@contextlib.contextmanager
def building(target: Path, *, folder: bool = False) -> Iterator[tuple[Path, int]]:
    """A new file, or folder, beside `target`, and a handle of it; what stays there is removed.

    It is locked as long as its writer lives. So what a killed writer left there is told from what
    another one writes now, and is removed. Raises OSError.
    """
    names = (target.with_name(f".{target.name}.{number:08}.tmp") for number in itertools.count())
    path, handle = next(claim for name in names if (claim := _claimed(name, folder=folder)))
    try:
        while drop_abandoned(next(names)):
            pass
        yield path, handle
    finally:
        if is_at(path, handle):  # else it has become the target, and the name may be another's
            remove(path)
        os.close(handle)


def drop_abandoned(path: Path) -> bool:
    """Remove what a dead writer left at a path, if anything; a living one has it locked."""
    with locked(path) as ours, contextlib.suppress(OSError):
        if ours:
            remove(path)
    return ours


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock a file or folder while the block lasts.

    False where another process has it locked, where it is a link or not there, and where nobody can
    lock it.
    """
    handle = None
    ours = False
    try:
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = is_at(path, handle)
        yield ours
    finally:
        if handle is not None:
            os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if there is one."""
    if path.is_dir() and not path.is_symlink():
        import shutil  # slow to import, with every kind of compression

        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_at(path: Path, handle: int) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _claimed(path: Path, *, folder: bool) -> tuple[Path, int] | None:
    """Make a file or a folder and lock it; None where another writer has that name."""
    drop_abandoned(path)
    try:
        if folder:
            path.mkdir()
        kind = os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL
        handle = os.open(path, kind | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return None
    except FileNotFoundError:
        if path.parent.is_dir():  # the folder was taken for abandoned before it was opened
            return None
        raise
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except HELD:  # it was taken for abandoned before it was locked
        os.close(handle)
        return None
    except OSError:  # a file system without locks, where nothing is taken for abandoned
        pass
    if is_at(path, handle):
        return path, handle
    os.close(handle)
    return None


def printable(path: Path | str) -> str:
    """The path as text that can be written anywhere, even if it is not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def resolved(path: Path | str) -> Path:
    """Where a path leads, as far as it does; a link that leads to itself stays what it is.

    `Path.resolve` raises RuntimeError for that one up to Python 3.12.
    """
    return Path(os.path.realpath(path))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a loss of power."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(target: Path, content: bytes, beside: Path | None = None) -> None:
    """Write `content` to `target`, whole or not at all; `beside` as `atomic_write` takes it."""
    with atomic_write(target, beside) as file:
        file.write(content)


def write_text(target: Path, content: str) -> None:
    """Write `content` to `target` as UTF-8, whole or not at all."""
    write_bytes(target, content.encode("utf-8"))


def write_json(target: Path, record: object) -> None:
    """Write a record, or anything JSON can hold, to `target`, whole or not at all."""
    write_text(target, dump_json(record))


def dump_json(record: object) -> str:
    """Canonical JSON text of a record: keys in order of definition, two spaces, a final newline.

    Without the secrets of addresses, and with escapes for what a terminal would obey, as
    `json_line`.
    Raises ValueError for NaN and infinities, which JSON cannot hold.
    """
    text = json.dumps(record, default=_plain, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{_seen(redacted(text))}\n"


def json_line(record: object) -> str:
    """JSON text of a record on one line, for files of JSON Lines."""
    text = json.dumps(record, default=_plain, ensure_ascii=False, allow_nan=False)
    return f"{_seen(redacted(text))}\n"


def _seen(text: str) -> str:
    """JSON text in which what a terminal would obey, or UTF-8 cannot hold, is an escape."""
    if text.isprintable():
        return text
    return UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def csv_text(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """The text of a CSV file, a line per row; a value that is None is left empty."""
    import csv

    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    return file.getvalue()


def read_json(path: Path) -> Any:
    """Parse a JSON file; IntegrityError when it is not JSON."""
    refuse_special(path)
    return parse_json(path.read_bytes(), str(path))


def parse_json(content: bytes, where: str) -> Any:
    """Parse the bytes of a JSON file, which `where` names; IntegrityError for no JSON in UTF-8."""
    try:
        return json.loads(content.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{where} is not a JSON file: {error}") from error


def is_text(*values: object) -> bool:
    """Whether values of JSON hold no half of a character, which UTF-8 cannot hold."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def sha256_of_file(path: Path) -> str:
    """The hexadecimal sha256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_bytes(content: bytes) -> str:
    """The hexadecimal sha256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def here_or_above(path: Path) -> Path:
    """`path` in the nearest folder that has it, from this one upwards as git looks; else as it is.

    Relative to the working folder, as `path` is.
    """
    here = Path.cwd()
    found = next((one for one in (here, *here.parents) if (one / path).exists()), here)
    return Path(os.path.relpath(found / path))


def require(path: Path, command: str) -> Path:
    """Return `path` if it exists, else raise MissingInputError naming the command that makes it."""
    if not path.exists():
        raise MissingInputError(f"{path} is not there; `{command}` makes it")
    refuse_special(path)
    return path


def refuse_special(path: Path) -> None:
    """InputError for a pipe or a device: it may take for ever to open or to read."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{path} is a pipe or a device, not a file")


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return printable(value)
    if hasattr(value, "item"):  # a numpy scalar
        return value.item()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


Record = TypeVar("Record")


def read_record(record: type[Record], raw: object, where: str) -> Record:
    """Make a `record`, a dataclass, of what `json.loads` gave; `where` names it in messages.

    Fields may be str, int, float, bool, None, unions of these, literal texts, records,
    `tuple[X, ...]` and `Mapping[str, X]`. Raises IntegrityError for the first key that is missing,
    unknown or mistyped.
    """
    if not isinstance(raw, dict):
        raise IntegrityError(f"{where} must be a JSON object, got {_short(raw)}")
    hints = _fields(record)
    for name in raw:
        if name not in hints:
            raise IntegrityError(f"{where} has an unknown key {name!r}")
    for name in hints:
        if name not in raw:
            raise IntegrityError(f"{where} lacks the key {name!r}")
    return record(**{name: _value(hints[name], raw[name], f"{where}.{name}") for name in hints})


def _fields(record: Any) -> dict[str, Any]:
    """The type of each field; a class variable is none."""
    hints = get_type_hints(record)
    return {field.name: hints[field.name] for field in dataclasses.fields(record)}


def _value(hint: Any, raw: object, where: str) -> Any:
    if isinstance(raw, dict):
        # Of several records that could stand here, the one whose fields these are.
        records = [one for one in (hint, *get_args(hint)) if dataclasses.is_dataclass(one)]
        hint = next((one for one in records if set(_fields(one)) == set(raw)), hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return read_record(hint, raw, where)
    origin = get_origin(hint)
    if origin is tuple:
        return _tuple(get_args(hint)[0], raw, where)
    if origin is Mapping:
        return _mapping(get_args(hint)[1], raw, where)
    allowed = get_args(hint) or (hint,)
    if origin is Literal and type(raw) is str and raw in allowed:
        return raw
    # A whole number stands for a float as well: JSON does not tell them apart. bool is no int.
    if type(raw) in allowed and type(raw) is not float:
        return raw
    if type(raw) in (int, float) and float in allowed and _is_finite(raw):
        return raw
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
    raise IntegrityError(f"{where} must be {names}, got {_short(raw)}")


def _tuple(hint: Any, raw: object, where: str) -> tuple[Any, ...]:
    if not isinstance(raw, list):
        raise IntegrityError(f"{where} must be a list, got {_short(raw)}")
    return tuple(_value(hint, item, f"{where}[{index}]") for index, item in enumerate(raw))


def _mapping(hint: Any, raw: object, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise IntegrityError(f"{where} must be a JSON object, got {_short(raw)}")
    return {key: _value(hint, item, f"{where}.{key}") for key, item in raw.items()}


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number that no float holds
        return False


def _short(raw: object) -> str:
    try:
        text = repr(raw)
    except (RecursionError, ValueError):  # nested too deep, or a number of too many digits
        return f"a {type(raw).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
