"""The folder of a device in which versions of a model lie, one of them served.

    current                         a link to the version that is served, replaced by a rename
    versions/0123456789ab           a bundle by its digest, whole and tested on this device
    versions/0123456789ab.json      what its tests gave
    versions/.history.json          the versions in the order they were served, the present one last
    versions/.lock                  held, by flock, while a deployment lasts
    versions/.0123456789ab.X.tmp    an upload

The link alone says what is served; the history follows it. This file is a part of what
`serving.edge.on_device` is on the device: Python 3.8 or newer and the standard library, alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

KEPT = 3
LONGEST = 50
"""Of the history."""
DIGITS = 12
"""Of a digest, in the name of a version."""
LOCK_SECONDS = 5.0
"""To wait for a lock: as long as one whose client is gone may take to end."""
VERSION = re.compile(r"[0-9a-f]{12}(\.\d+)?")
LEFTOVER = re.compile(r"\.[0-9a-f]{12}(\.\d+)?\.\w+\.(tmp|old)|\.\w+\.json\.tmp")
RECORD = {"selftest", "bench", "machine", "provider", "by"}
"""What is known of a version that was tested."""
MANIFEST, SIGNATURE = "manifest.json", "model.sig"


class Refused(Exception):  # noqa: N818 - as it reads where it is raised
    """Why nothing was changed, in one line for a person."""


class Installed:
    """The folder of a target, and what is in it."""

    def __init__(self, path: str) -> None:
        """Of a path as a person wrote it: absolute, or from the home folder."""
        try:
            asked = Path(path).expanduser().absolute()
        except RuntimeError as error:
            raise Refused(f"{path}: there is no such user, whose home folder it is in") from error
        if asked.is_symlink() and not asked.exists():
            raise Refused(f"{asked} is a link to {asked.resolve()}, which is not there")
        self.path = asked.resolve()
        self.versions, self.link = self.path / "versions", self.path / "current"
        self.lock, self.history_file = self.versions / ".lock", self.versions / ".history.json"
        self.made: list[Path] = []

    def check(self) -> None:
        """Refuse a path that is no folder, or a folder that holds anything but a deployment."""
        if self.path.exists() and not self.path.is_dir():
            raise Refused(f"{self.path} is a file; a deployment is a folder")
        if self.link.exists() and not self.link.is_symlink():
            raise Refused(f"{self.link} is no link that ferry made: take it away first")
        if not self.lock.exists() and self.path.is_dir():
            others = sorted(one.name for one in self.path.iterdir() if one.name != "versions")
            if self.versions.is_dir():
                others += sorted(f"versions/{one.name}" for one in self.versions.iterdir())
            if others:
                raise Refused(
                    f"{self.path} holds {', '.join(others[:3])} and no deployment: name an empty "
                    f"folder, or one that is to be made"
                )

    def make(self) -> None:
        """Make the folder, remembering what was not there."""
        missing = [one for one in (self.versions, *self.versions.parents) if not one.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            self.made.append(folder)

    def unmake(self) -> None:
        """Take away what was made, if nothing has come into it."""
        with contextlib.suppress(OSError):  # another deployment has begun
            if self.made and list(self.versions.iterdir()) == [self.lock]:
                self.lock.unlink()
                for folder in reversed(self.made):
                    folder.rmdir()

    def present(self) -> str | None:
        """The name of the version that is served, whether it is there or not."""
        target = self.target()
        return target.name if target else None

    def target(self) -> Path | None:
        """Where the link leads to, whether that is there or not."""
        with contextlib.suppress(OSError):
            return self.path / os.readlink(self.link)  # noqa: PTH115 - for Python 3.8
        return None

    def digest_of(self, name: str | None) -> str | None:
        """What the manifest of a version says."""
        manifest = json_of(self.versions / (name or ".") / MANIFEST)
        return manifest.get("digest") if isinstance(manifest, dict) else None

    def history(self) -> list[str]:
        """The versions that were served and are there, in order; the present one is the last.

        The link is switched first and the history written after, so the link may be ahead.
        """
        told = json_of(self.history_file)
        names = [name for name in told if isinstance(name, str)] if isinstance(told, list) else []
        present = self.present()
        if present in names[-2:-1]:  # a way back
            del names[-1]
        elif present and present not in names[-1:]:
            names.append(present)
        kept = [name for name in names if (self.versions / name).is_dir()]
        return [one for at, one in enumerate(kept) if kept[at - 1 : at] != [one]][-LONGEST:]

    def record(self, name: str) -> dict[str, Any] | None:
        """What was written when a version was tested."""
        found = json_of(self.versions / f"{name}.json")
        return found if isinstance(found, dict) and set(found) >= RECORD else None

    def leftovers(self) -> list[Path]:
        """What a deployment that was cut short has left: uploads first, then links."""
        found = [one for one in _entries(self.versions) if LEFTOVER.fullmatch(one.name)]
        links = [one for one in _entries(self.path) if re.fullmatch(r"\.current\.\w+", one.name)]
        return [*found, *links]

    def names(self) -> list[str]:
        """The versions that are there."""
        return [one.name for one in _entries(self.versions) if VERSION.fullmatch(one.name)]

    def switch(self, name: str) -> None:
        """Serve a version: the link is the old one or the new one at any moment."""
        temporary = self.path / f".current.{token()}"
        temporary.symlink_to(Path("versions") / name)
        try:
            temporary.replace(self.link)
        finally:
            remove(temporary)
        with contextlib.suppress(OSError):  # it is switched, if perhaps not for good
            sync(self.path)

    def keep(self, history: list[str], before: str | None) -> None:
        """Remove all but the present version, the one before and a third, and write the history.

        `before` was served until now: it stays, as it may be read still, even if there is no way
        back to it.
        """
        last_first = history[::-1]

        def age(name: str) -> int:
            return last_first.index(name) if name in last_first else LONGEST

        for name in sorted(self.names(), key=age)[KEPT:]:
            if name != before:
                self.remove(name)
        write(self.history_file, json.dumps(history))

    def remove(self, name: str) -> None:
        """Remove a version: it is renamed first, so that what has such a name is whole."""
        old = self.versions / f".{name}.{token()}.old"
        (self.versions / name).rename(old)
        with contextlib.suppress(FileNotFoundError):
            (self.versions / f"{name}.json").unlink()
        remove(old)

    def tidy(self) -> None:
        """Remove what deployments have left that were cut short; only with the lock."""
        for one in self.leftovers():
            remove(one)
        for one in _entries(self.versions):
            about = VERSION.fullmatch(one.stem) and one.suffix == ".json"
            if about and not one.with_suffix("").exists():
                one.unlink()

    @contextlib.contextmanager
    def locked(self, by: str, check: Callable[[], None]) -> Iterator[None]:
        """Hold the lock, which ends with this process however it ends."""
        handle = self._take(check)
        try:
            with contextlib.suppress(OSError):  # a full disk: it is only for who meets the lock
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps({"by": by, "since": now()}).encode(), 0)
            self.tidy()
            yield
        finally:
            self.unmake()
            os.close(handle)

    def _take(self, check: Callable[[], None]) -> int:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            with contextlib.suppress(FileNotFoundError):  # taken away meanwhile, by `unmake`
                self.make()
                handle = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o666)
                if self._holds(handle):
                    return handle
                os.close(handle)
            if time.monotonic() > deadline:
                raise Refused(f"another deployment is going on there, {self.holder()}: try later")
            check()
            time.sleep(0.1)

    def _holds(self, handle: int) -> bool:
        """Whether the lock could be taken, of the file that has its name."""
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.fstat(handle).st_ino == self.lock.stat().st_ino
        return False

    def holder(self) -> str:
        """Who holds the lock, or held it last."""
        owner = json_of(self.lock)
        if not isinstance(owner, dict):
            return "by somebody"
        return f"of {owner.get('by')}, since {owner.get('since')}"

    def is_locked(self) -> bool:
        """Whether a deployment is going on."""
        with contextlib.suppress(FileNotFoundError), self.lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def why_not_whole(folder: Path, files: dict[str, Any] | None = None) -> str:
    """How a folder differs from `files`, or from what its own manifest says; "" if it does not."""
    if not folder.is_dir():
        return "it is not there"
    if files is None:
        files = listed(folder)
        if files is None:
            return f"{MANIFEST} was altered"
    found = {
        str((Path(where) / name).relative_to(folder)): Path(where) / name
        for where, folders, names in os.walk(folder)
        for name in [*names, *(one for one in folders if (Path(where) / one).is_symlink())]
    }
    for name in sorted({*found, *files}):
        if name not in files and name not in (MANIFEST, SIGNATURE):
            return f"{name} is added"
        if name not in found:
            return f"{name} is missing"
        if difference := _difference(found[name], files.get(name)):
            return f"{name} {difference}"
    return ""


def _difference(path: Path, info: dict[str, Any] | None) -> str:
    if path.is_symlink() or not path.is_file():
        return "is a link or a device, not a plain file"
    return "was altered" if info and _sha256(path) != info["sha256"] else ""


def listed(folder: Path) -> dict[str, Any] | None:
    """The files that an intact manifest lists; None for one that was altered."""
    manifest = json_of(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not all(
        isinstance(one, dict) and isinstance(one.get("sha256"), str) for one in files.values()
    ):
        return None
    content = {name: value for name, value in manifest.items() if name != "digest"}
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # What is no UTF-8 was never written so, and has another sha256 than any digest.
    intact = sha256(text.encode(errors="replace")).hexdigest() == manifest.get("digest")
    return files if intact else None


def seen(installed: Installed, *, ours: bool = False) -> dict[str, Any]:
    """All that can be told of a folder, every byte of the present version looked at.

    `ours` is whether the deployment that goes on there is the one that asks.
    """
    name, problems, since = installed.present(), [], None
    manifest: Any = {}
    if name is None:
        problems.append("nothing is deployed")
    else:
        since = now(installed.link.lstat().st_mtime)
        folder = installed.target() or installed.link
        reason = why_not_whole(folder)
        if not folder.exists():
            problems.append(f"the link leads to versions/{name}, which is missing")
        elif reason:
            problems.append(f"versions/{name} is not whole: {reason}")
        manifest = json_of(folder / MANIFEST)
    manifest = manifest if isinstance(manifest, dict) else {}
    busy, half = not ours and installed.is_locked(), len(installed.leftovers())
    history = installed.history()
    part = {
        key: manifest[key] if isinstance(manifest.get(key), dict) else {}
        for key in ("source", "files", "golden")
    }
    listed_model = part["files"].get("model.onnx")
    model = listed_model if isinstance(listed_model, dict) else {}
    return {
        "path": str(installed.path),
        "version": name,
        "name": manifest.get("name"),
        "variant": manifest.get("variant"),
        "digest": manifest.get("digest"),
        "weights_sha256": part["source"].get("weights_sha256"),
        "model_sha256": model.get("sha256"),
        "model_bytes": model.get("size"),
        "golden_rows": part["golden"].get("rows"),
        "since": since,
        "record": installed.record(name) if name else None,
        "before": installed.digest_of(history[-2]) if len(history) > 1 else None,
        "busy": installed.holder() if busy else None,
        "half": 0 if busy or ours else half,
        "problems": problems,
    }


def _sha256(path: Path) -> str:
    found = sha256()
    with path.open("rb") as file:
        for content in iter(lambda: file.read(1 << 20), b""):
            found.update(content)
    return found.hexdigest()


def json_of(path: Path) -> Any:
    """What a file holds; None where there is none, or it is broken."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return json.loads(path.read_bytes())
    return None


def write(target: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    temporary = target.with_name(f".{token()}.json.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    sync(target.parent)


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, last through a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can
            raise
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a folder or a link; into a folder an upload may still write, whose client is gone."""
    for _ in range(50):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        if not os.path.lexists(path):
            return
        time.sleep(0.1)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def token() -> str:
    """What makes a name that nothing has."""
    return os.urandom(4).hex()


def now(at: float | None = None) -> str:
    """A time in words, in UTC by the clock of the device."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
