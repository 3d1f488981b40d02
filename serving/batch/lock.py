"""One run at a time writes an output: a lock beside it that ends with the process that took it.

    with lock_output(Path("labels.parquet")): ...    # .labels.parquet.lock while it lasts

The lock is the system's (`flock`), not the file: what a killed run leaves of it locks nothing. On
NFS Linux hands it to the server, so that it holds between machines. Where a file system has no
locks, or its folder takes no file, as above a volume of its own, there is a warning, and none.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.console import note
from serving.errors import IntegrityError, OutputError
from serving.files import HELD, dump_json, is_at, parse_json, read_record, resolved


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """Who writes an output."""

    pid: int
    host: str
    since: str
    """In the time of its machine."""

    def describe(self) -> str:
        """Who it is: "(pid 4711, since 2026-11-26 10:15:02)", and on which machine if not here."""
        where = "" if self.host == os.uname().nodename else f" on {self.host}"
        return f"(pid {self.pid}{where}, since {self.since})"


SECONDS_BETWEEN_TRIES = 0.05


@contextlib.contextmanager
def lock_output(output: Path, seconds: float = 0.0) -> Iterator[None]:
    """Keep other runs from an output while the block lasts.

    Raises OutputError where another one still writes it after waiting some `seconds`.
    """
    there = resolved(output)  # one file may have several names
    path = there.with_name(f".{there.name}.lock")
    handle = _locked(path, output, time.monotonic() + seconds)
    if handle is None:
        yield
        return
    try:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        writer = Writer(pid=os.getpid(), host=os.uname().nodename, since=now)
        os.ftruncate(handle, 0)
        os.pwrite(handle, dump_json(writer).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while the lock is held: it is nobody else's
        os.close(handle)


def _locked(path: Path, output: Path, deadline: float) -> int | None:
    """A handle of the lock file, which is locked; None, with a warning, where there can be none."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            _warn(output, error)
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except HELD as error:
            who = _writer(path)
            os.close(handle)
            if time.monotonic() >= deadline:
                raise OutputError(f"another ferry {who}writes {output}") from error
            time.sleep(SECONDS_BETWEEN_TRIES)
            continue
        except OSError as error:
            os.close(handle)
            _warn(output, error)
            return None
        if is_at(path, handle):
            return handle
        os.close(handle)  # of a run that has just ended, and removed it


def _warn(output: Path, error: OSError) -> None:
    reason = f"{error.strerror}; let one run at a time write there"
    note(f"Warning: {output} cannot be locked: {reason}")


def _writer(path: Path) -> str:
    try:
        text = path.read_bytes()
        return f"{read_record(Writer, parse_json(text, str(path)), str(path)).describe()} "
    except (OSError, IntegrityError):  # it has only just begun, or has just ended
        return ""
