"""One line more in `registry/NAME.jsonl`, whole and on the disk, one process at a time."""

import datetime as dt
import os
from collections.abc import Callable
from pathlib import Path

from serving.batch.lock import lock_output
from serving.bundles.registry import (
    COPIES,
    Promoted,
    Registered,
    Registry,
    RegistryEntry,
    RolledBack,
    entry_of,
    registry_at,
)
from serving.files import sync_folder, write_text
from serving.machine.environment import git_revision, output_of, this_machine

Event = Registered | Promoted | RolledBack
LOCK_SECONDS = 10.0
"""That one process waits for another one."""
GIT_SECONDS = 10
IGNORED = f"/{COPIES}/\n.*.lock\n"
"""What git does not keep: the copies of bundles, which DVC has, and locks."""


def append(path: Path, decide: Callable[[Registry], Event | None]) -> RegistryEntry | None:
    """Add what `decide` makes of the registry `path` as it is under the lock; nothing for None.

    What a killed process left of a last line is cut off first. Raises OutputError where another
    process holds the lock for long, and what `decide` raises.
    """
    signature = _signature()  # asks git, which nobody needs to wait for
    _make_folder(path.parent)
    with lock_output(path, LOCK_SECONDS):
        registry = registry_at(path)
        event = decide(registry)
        if event is None:
            return None
        entry = RegistryEntry(
            number=len(registry.entries) + 1,
            **signature,
            event=event,
            previous=registry.head,
            sha256="",
        ).sealed()
        # What could not be read again would end the registry.
        entry_of(entry.line.rstrip(), entry.number, entry.previous, path)
        _write(registry, entry.line)
        return entry


def _write(registry: Registry, line: bytes) -> None:
    with registry.path.open("ab") as file:
        if os.fstat(file.fileno()).st_size > registry.size:
            file.truncate(registry.size)
        begun = registry.size and registry.path.read_bytes()[-1:] != b"\n"
        file.write(b"\n" + line if begun else line)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(registry.path.parent)


def _make_folder(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    if not (folder / ".gitignore").exists():
        write_text(folder / ".gitignore", IGNORED)


def _signature() -> dict[str, str]:
    """When, by whom, where and at which revision something is done."""
    name = (
        output_of(("git", "config", "user.name"), seconds=GIT_SECONDS)
        .decode(errors="replace")
        .strip()
    )
    machine = this_machine("cpu")
    return {
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "who": name or os.environ.get("USER") or f"user {os.getuid()}",
        "machine": f"{os.uname().nodename}, {machine.allowed_cores} × {machine.processor}",
        "revision": git_revision(),
    }
