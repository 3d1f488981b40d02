"""Where a bundle is to go: `user@host:/opt/model` as scp and rsync write it, or a folder here.

A file of hosts has one of these a line; a `#` at its begin or after a space begins a comment.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from serving.errors import InputError, MissingInputError, UsageError

USER = r"[\w.$+\\][\w.$+\\-]*"
HOST = r"[\w.][\w.-]*|\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]"
REMOTE = re.compile(rf"(?:(?P<user>{USER})@)?(?P<host>{HOST}):(?P<path>.*)", re.DOTALL)
HOW = "user@host:/opt/model, [::1]:/opt/model or a folder of this machine, /opt/model"
COMMENT = re.compile(r"(?:^|\s)#.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTarget:
    """A folder of a device."""

    name: str
    """As it was typed."""
    login: str | None
    """What ssh is asked for, `user@host`, without brackets; None for this machine."""
    path: str
    """Absolute, or from the home folder there."""

    @property
    def host(self) -> str:
        """The device: what was typed before the path."""
        return self.login.rpartition("@")[2] if self.login else "localhost"


def parse_target(text: str) -> DeviceTarget:
    """Read a target as a person types it; UsageError says how one is written."""
    if text.startswith("-"):
        raise UsageError(f"{text!r} is no target: a host does not begin with a dash")
    if "\0" in text or "\n" in text or not text.strip():
        raise UsageError(f"{text!r} is no target; write {HOW}")
    if re.match(r"\w+://", text):
        raise UsageError(f"{text!r} is no target; write {HOW}, and a port into ~/.ssh/config")
    # As rsync: what has a colon before its first slash is of a host.
    if ":" not in text.partition("/")[0]:
        return _folder_here(text)
    found = REMOTE.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no target; write {HOW}")
    if not found["path"].strip():
        raise UsageError(f"{text!r} has no path; write {text}/opt/model")
    host = found["host"].strip("[]")
    login = f"{found['user']}@{host}" if found["user"] else host
    return DeviceTarget(name=text, login=login, path=found["path"])


def _folder_here(text: str) -> DeviceTarget:
    """A folder of this machine; a bare word is a host whose path was forgotten."""
    if "/" not in text and not text.startswith(("~", ".")):
        raise UsageError(
            f"{text!r} has no path; write {text}:/opt/model, or ./{text} for a folder of this "
            f"machine"
        )
    try:
        path = os.path.normpath(Path(text).expanduser().absolute())
    except RuntimeError as error:
        raise UsageError(f"{text!r} is in the home folder of a user who is not here") from error
    return DeviceTarget(name=path, login=None, path=path)


def read_hosts(path: Path) -> tuple[DeviceTarget, ...]:
    """The targets of a file; InputError names the line that is none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise MissingInputError(f"{path} is not there; it has one target a line: {HOW}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8: {error.reason}") from error
    found = []
    for number, line in enumerate(lines, 1):
        text = COMMENT.sub("", line).strip()
        if text:
            try:
                found.append(parse_target(text))
            except UsageError as error:
                raise InputError(f"{path}, line {number}: {error}") from error
    if not found:
        raise InputError(f"{path} names no target; it has one a line: {HOW}")
    return tuple(found)


def all_targets(words: Iterable[str], hosts: Path | None) -> tuple[DeviceTarget, ...]:
    """The targets that were typed and those of a file of hosts; UsageError for one named twice."""
    targets = [parse_target(word) for word in words]
    targets += read_hosts(hosts) if hosts else ()
    for one in targets:
        if [(other.login, other.path) for other in targets].count((one.login, one.path)) > 1:
            raise UsageError(f"{one.name} is named twice")
    return tuple(targets)


def short_names(devices: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What a table calls each (target, host): the host, or all of it where two share the host."""
    hosts = dict(devices)
    counts = Counter(hosts.values())
    return {name: host if counts[host] == 1 else name for name, host in hosts.items()}
