"""Read dvc.lock, stage by stage, and hash files as DVC does.

DVC itself takes a second to start, and its file can have tens of thousands of lines: only those of
the stages that are asked for are parsed.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.yamlfile import parse_yaml, text_of
from serving.errors import IntegrityError

LOCK = Path("dvc.lock")
NAME = re.compile(r"^  ([^\s:]\S*):$", re.MULTILINE)
LARGEST_LOCK = 2**26
CONFLICT = re.compile("^<{7} ", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedStage:
    """A stage as it last ran."""

    name: str
    """For instance "train@mnist-cnn"."""
    deps: Mapping[str, str]
    """The md5 of what it read, by path; that of a folder ends in ".dir"."""
    outs: Mapping[str, str]
    """The same of what it wrote."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """The settings that it depends on, by their path in params.yaml."""


def all_stages(lock: Path) -> tuple[LockedStage, ...]:
    """All stages that have run; none without the file. Raises as `read_stages`."""
    text = _text_of(lock)
    return tuple(found for name in NAME.findall(text) if (found := _stage(text, name, lock)))


def read_stages(lock: Path, names: Sequence[str]) -> tuple[LockedStage, ...]:
    """Those of the stages that have run; none without the file.

    Raises IntegrityError for a file that DVC did not write.
    """
    text = _text_of(lock)
    return tuple(found for name in names if (found := _stage(text, name, lock)))


def _text_of(lock: Path) -> str:
    text = text_of(lock, LARGEST_LOCK) if lock.is_file() else ""
    if CONFLICT.search(text):  # which would cut a stage short
        raise IntegrityError(f"{lock} has the marks of a merge in it; `dvc repro` writes it anew")
    return text


def _stage(text: str, name: str, lock: Path) -> LockedStage | None:
    block = re.search(rf"^  {re.escape(name)}:\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    if block is None:
        return None
    raw = parse_yaml(block[1], f"{lock}: {name}")
    try:
        return LockedStage(
            name=name,
            deps={one["path"]: one["md5"] for one in raw.get("deps", ()) if "md5" in one},
            outs={one["path"]: one["md5"] for one in raw.get("outs", ()) if "md5" in one},
            params=raw.get("params", {}).get("params.yaml", {}),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise IntegrityError(f"{lock}: {name} is not as DVC writes it") from error


def contradictions(
    stages: Sequence[LockedStage], root: Path, unread: Sequence[str]
) -> Iterator[str]:
    """Where dvc.lock contradicts itself or the files that lie below `root`, a line each.

    The paths in `unread` are too large to be hashed.
    """
    made = {path: (md5, stage.name) for stage in stages for path, md5 in stage.outs.items()}
    for stage in stages:
        for path, md5 in stage.deps.items():
            if path in made and made[path][0] != md5:
                yield (
                    f"{stage.name} read {path} of md5 {md5[:12]}…, but {made[path][1]} made "
                    f"{made[path][0][:12]}…"
                )
    for path, (md5, name) in made.items():
        there = root / path
        if path not in unread and there.exists() and (found := md5_of(there)) != md5:
            yield f"{name} made {path} of md5 {md5[:12]}…, it has {found[:12]}… now"


def md5_of(path: Path) -> str:
    """The md5 of a file or a folder, as DVC has it."""
    if path.is_file():
        return md5_of_file(path)
    entries = [
        {"md5": md5_of_file(one), "relpath": one.relative_to(path).as_posix()}
        for one in path.rglob("*")
        if one.is_file()
    ]
    listed = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True)
    return f"{hashlib.md5(listed.encode(), usedforsecurity=False).hexdigest()}.dir"


def md5_of_file(path: Path) -> str:
    """The md5 of a file's bytes."""
    with path.open("rb") as file:
        # DVC's choice: it finds what has changed, and proves nothing against a forger.
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        return md5.hexdigest()
