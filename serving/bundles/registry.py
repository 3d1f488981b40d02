"""The registry: which bundles were registered under a name, and which of them is the champion.

`registry/NAME.jsonl` is a file for git that says what happened, a line of JSON each, and is only
ever added to: see `pipeline.project.registry`. Versions and aliases are computed from it. Every
line holds its own sha256 and that of the line before, so that one that was altered, lost or moved
is named. What a killed process left of a last line counts for nothing.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serving.errors import IntegrityError, MissingInputError, UnknownNameError, UsageError
from serving.files import here_or_above, json_line, parse_json, read_record, sha256_of_bytes

REGISTRY = Path("registry")
"""Below the folder of params.yaml."""
COPIES = "bundles"
"""Below the registry: the folders of the bundles, by the beginning of their digests."""
DIGEST_CHARACTERS = 16
SCHEME = "models:/"
CHAMPION, CHALLENGER = "champion", "challenger"
NAMED = re.compile(
    rf"(?:{SCHEME})?(?P<name>[A-Za-z0-9][A-Za-z0-9_-]*)(?:@(?P<alias>\w+)|/(?P<version>\d+))?"
)
HOW = "name one as models:/NAME@champion or models:/NAME/3"
CONFLICT = (b"<<<<<<< ", b"||||||| ", b"=======", b">>>>>>> ")
"""How the lines begin that git writes between two sides of a merge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A bundle became a version, and the challenger."""

    kind: Literal["registered"] = "registered"
    version: int
    experiment: str
    variant: str
    digest: str
    """Of the bundle."""
    model_sha256: str
    weights_sha256: str
    dataset: str
    data_sha256: str
    """Of the preprocessed data set that the weights were trained on; "" where nobody knows it."""
    metrics: Mapping[str, float]
    description: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionGate:
    """One thing that a challenger had to hold."""

    name: str
    status: Literal["passed", "failed", "skipped"]
    detail: str
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """A version became the champion."""

    kind: Literal["promoted"] = "promoted"
    version: int
    over: int | None
    """The champion before; None for the first one."""
    gates: tuple[PromotionGate, ...]
    forced: str
    """The reason for which failed gates were overruled, or ""."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """The champion before became it again."""

    kind: Literal["rolled back"] = "rolled back"
    version: int
    """The champion from then on."""
    over: int
    """The one that was taken back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryEntry:
    """A line of the file."""

    number: int
    """Counted from 1."""
    time: str
    """In UTC, as ISO 8601."""
    who: str
    machine: str
    revision: str
    """Of git, as it was then."""
    event: Registered | Promoted | RolledBack
    previous: str
    """The sha256 of the line before; "" on the first."""
    sha256: str
    """Of this line as it would be with "" here."""

    @property
    def line(self) -> bytes:
        """As it stands in the file."""
        return json_line(self).encode()

    def sealed(self) -> "RegistryEntry":
        """The same with the sha256 that fits it."""
        open_ = dataclasses.replace(self, sha256="")
        return dataclasses.replace(self, sha256=sha256_of_bytes(open_.line))


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """All that happened under a name."""

    name: str
    path: Path
    entries: tuple[RegistryEntry, ...]
    size: int
    """Bytes of the file up to the end of the last whole line."""

    @property
    def head(self) -> str:
        """The sha256 of the last line, or ""."""
        return self.entries[-1].sha256 if self.entries else ""

    def copy_of(self, digest: str) -> Path:
        """Where the registry keeps a bundle."""
        return self.path.parent / COPIES / digest[:DIGEST_CHARACTERS]

    @property
    def versions(self) -> dict[int, Registered]:
        """What was registered, by its version."""
        events = (entry.event for entry in self.entries)
        return {one.version: one for one in events if isinstance(one, Registered)}

    @property
    def champions(self) -> tuple[int, ...]:
        """The champion, last, and those before that one can go back to."""
        stack: list[int] = []
        for entry in self.entries:
            if isinstance(entry.event, Promoted):
                stack.append(entry.event.version)
            elif isinstance(entry.event, RolledBack):
                stack.pop()
        return tuple(stack)

    @property
    def champion(self) -> int | None:
        """The version that is in use, if there is one."""
        return self.champions[-1] if self.champions else None

    @property
    def challenger(self) -> int | None:
        """The version that was registered last, until it is promoted."""
        found: int | None = None
        for event in (entry.event for entry in self.entries):
            if isinstance(event, Registered):
                found = event.version
            elif isinstance(event, Promoted) and event.version == found:
                found = None
        return found

    @property
    def aliases(self) -> dict[str, int | None]:
        """The version of each alias."""
        return {CHAMPION: self.champion, CHALLENGER: self.challenger}

    def alias_of(self, version: int) -> str:
        """The alias of a version, or ""."""
        return next((alias for alias, has in self.aliases.items() if has == version), "")

    def version_of(self, alias: str) -> int:
        """The version of an alias; UnknownNameError for another one, and for one of no version."""
        if alias not in self.aliases:
            raise UnknownNameError(f"alias of {self.name}", alias, self.aliases)
        found = self.aliases[alias]
        if found is None:
            others = ", ".join(
                f"{one} is version {has}" for one, has in self.aliases.items() if has
            )
            hint = "`ferry promote`" if alias == CHAMPION else "`ferry register`"
            raise MissingInputError(
                f"{self.name} has no {alias}{f': {others}' if others else ''}; {hint} makes one"
            )
        return found


def read_registry(name: str) -> Registry:
    """Read what happened under a name.

    Raises UsageError for what cannot be a name, UnknownNameError with the nearest name where there
    is none, and IntegrityError naming the line that is not as it was written.
    """
    if not is_name(name):
        raise UsageError(
            f"{name!r} is not the name of a registered model: give NAME, without alias and version"
        )
    # A folder of that name which is nearer may be anything else.
    path = here_or_above(REGISTRY / f"{name}.jsonl")
    folder = path.parent if path.is_file() else here_or_above(REGISTRY)
    known = names(folder)
    if name not in known:
        hint = "`ferry register EXPERIMENT` makes one"
        if not folder.is_dir():
            hint = f"{folder.absolute()} is not there; {hint}"
        raise UnknownNameError("registered model", name, known, hint=hint)
    return registry_at(path)


def is_name(text: str) -> bool:
    """Whether it can be the name of a registered model."""
    found = NAMED.fullmatch(text)
    return bool(found and found["name"] == text)


def names(folder: Path) -> list[str]:
    """The registered models of a folder."""
    return sorted(path.stem for path in folder.glob("*.jsonl"))


def registry_at(path: Path) -> Registry:
    """As `read_registry`, of a file that need not be there yet."""
    content = path.read_bytes() if path.exists() else b""
    whole, newline, rest = content.rpartition(b"\n")
    whole += newline
    if _is_json(rest):  # an editor took the last line break away
        whole += rest
    entries: list[RegistryEntry] = []
    for number, line in enumerate(whole.splitlines(), start=1):
        last = entries[-1].sha256 if entries else ""
        entries.append(entry_of(line, number, last, path))
    return Registry(name=path.stem, path=path, entries=tuple(entries), size=len(whole))


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def entry_of(line: bytes, number: int, previous: str, path: Path) -> RegistryEntry:
    """The entry that a line is; IntegrityError for one that was not written as this one."""
    where = f"{path}, line {number}"
    restore = f"`git log -p {path}` shows what it was"
    if line.startswith(CONFLICT):
        raise IntegrityError(
            f"{where} is git's mark of a conflict: take one side whole, and do the other's changes "
            f"anew"
        )
    try:
        entry = read_record(RegistryEntry, parse_json(line, where), where)
    except IntegrityError as error:
        raise IntegrityError(f"{error}; {restore}") from error
    if entry.number != number:
        raise IntegrityError(
            f"{where} is entry {entry.number}: lines are missing or out of order; {restore}"
        )
    if entry.sealed() != entry or entry.line != line + b"\n":
        raise IntegrityError(f"{where} was altered: its sha256 is of another text; {restore}")
    if entry.previous != previous:
        raise IntegrityError(
            f"{where} was not written after line {number - 1}, which is another one; {restore}"
        )
    return entry


def version_named(text: str, alias: str | None = None) -> tuple[Registry, int]:
    """The registry and the version that "models:/NAME@champion", "models:/NAME/3" and such mean.

    `alias` is what a name alone means, None for nothing. Raises UsageError for what is no such
    name, else what `read_registry` and `Registry.version_of` do.
    """
    found = NAMED.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no name of a registered model: {HOW}")
    registry = read_registry(found["name"])
    if found["version"]:
        number = int(found["version"])
        if number not in registry.versions:
            known = (f"{registry.name}/{one}" for one in registry.versions)
            raise UnknownNameError("version", f"{registry.name}/{found['version']}", known)
        return registry, number
    alias = found["alias"] or alias
    if alias is None:
        raise UsageError(f"{text} says neither alias nor version: {HOW}")
    return registry, registry.version_of(alias)


def is_registered(folder: Path) -> bool:
    """Whether a folder is the registry's copy of a bundle, which nobody may change."""
    return folder.resolve().parts[-3:-1] == (REGISTRY.name, COPIES)
