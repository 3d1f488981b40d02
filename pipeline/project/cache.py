"""`ferry doctor --cache`: which objects of DVC's cache have rotted, and how to be rid of them.

The name of an object is the md5 of its content. DVC believes the name: a bit that fell over on the
disk is copied into every checkout. It is read from files alone, for DVC takes a second to start.
"""

import configparser
import contextlib
import os
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.project.dvclock import LOCK, all_stages, md5_of, md5_of_file
from serving.errors import InputError, IntegrityError, MissingInputError
from serving.files import here_or_above, read_json

DVC = Path(".dvc")
OBJECTS = Path("files/md5")
FOLDER = ".dir"
"""How the md5 of a folder ends, whose object lists what is in it."""
DIGITS = 32
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectUse:
    """An output of a stage, or a file in one, whose content an object of the cache is."""

    stage: str
    path: str
    out: str
    """The output itself, which `dvc checkout` takes."""
    here: Literal["whole", "rotted", "missing"]
    """What lies at that path; a link to the object has rotted with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RottedObject:
    """An object of the cache that is not what its name says."""

    path: str
    reason: str
    uses: tuple[ObjectUse, ...]
    """Of dvc.lock; none for an object of an earlier run."""

    @property
    def copies(self) -> tuple[ObjectUse, ...]:
        """The whole ones."""
        return tuple(use for use in self.uses if use.here == "whole")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """What was found in a cache."""

    cache: str
    objects: int
    bytes: int
    rotted: tuple[RottedObject, ...]
    fix: tuple[str, ...]
    """Commands that mend it, in this order."""


def look_at_cache(log: Callable[[str], None] = lambda _: None) -> CacheReport:
    """Hash every object of the cache of the project here or above.

    `log` is given a line before each step. Raises MissingInputError where there is no project of
    DVC's, InputError for a configuration that cannot be read, and IntegrityError for a dvc.lock
    that DVC did not write.
    """
    root = here_or_above(DVC).parent
    if not (root / DVC).is_dir():
        raise MissingInputError(f"{DVC} is not there, here or above; `dvc init` makes it")
    config = _config(root)
    objects = dict(_objects(_cache_of(root, config)))
    total, done, wrong = sum(path.stat().st_size for path in objects.values()), 0, {}
    for number, (md5, path) in enumerate(objects.items()):
        log(f"{number:,} of {len(objects):,} objects, {done / GIB:.1f} of {total / GIB:.1f} GiB")
        if reason := _wrong(path, md5):
            wrong[md5] = reason
        done += path.stat().st_size
    uses = _uses(root, objects, wrong) if wrong else {}
    rotted = tuple(
        RottedObject(path=str(objects[md5]), reason=reason, uses=tuple(uses[md5]))
        for md5, reason in wrong.items()
    )
    return CacheReport(
        cache=str(_cache_of(root, config)),
        objects=len(objects),
        bytes=total,
        rotted=rotted,
        fix=tuple(_fix(rotted, root, pulls=config.has_option("core", "remote"))),
    )


def as_text(report: CacheReport) -> str:
    """Lay a report out for a terminal."""
    size = f"{report.objects:,} objects, {report.bytes / GIB:.2f} GiB"
    if not report.rotted:
        return f"{report.cache}: {size}, all as they were written"
    lines = [f"{report.cache}: {size}, {len(report.rotted)} rotted"]
    for one in report.rotted:
        lines.append(f"\n{one.path}: {one.reason}")
        lines += [f"  {use.path} of {use.stage}, {use.here} here" for use in one.uses]
        lines += [] if one.uses else [f"  of no output in {LOCK}"]
    return "\n".join([*lines, "\nThis mends it:", *(f"  {command}" for command in report.fix)])


# Where it lies


def _config(root: Path) -> configparser.ConfigParser:
    """The settings of DVC: the user's, the project's and those of this checkout alone."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    user = Path(os.environ.get("DVC_GLOBAL_CONFIG_DIR") or home / "dvc") / "config"
    config = configparser.ConfigParser(interpolation=None, strict=False)
    for path in (user, root / DVC / "config", root / DVC / "config.local"):
        before = config.get("cache", "dir", fallback=None)
        try:
            config.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not a configuration of DVC: {error}") from error
        given = config.get("cache", "dir", fallback=None)
        if given and given != before:  # relative to the file that says it
            config["cache"]["dir"] = str(path.parent / Path(given).expanduser())
    return config


def _cache_of(root: Path, config: configparser.ConfigParser) -> Path:
    given = config.get("cache", "dir", fallback=None)
    return Path(os.path.normpath(given)) if given else root / DVC / "cache"


def _objects(cache: Path) -> Iterator[tuple[str, Path]]:
    """The objects by their md5, as dvc.lock has it; what was being written has another name."""
    for path in sorted((cache / OBJECTS).glob("??/*")):
        md5 = path.parent.name + path.name
        digits = md5.removesuffix(FOLDER)
        if len(digits) == DIGITS and set(digits) <= set("0123456789abcdef") and path.is_file():
            yield md5, path


def _wrong(path: Path, md5: str) -> str:
    """Why an object is not what its name says; "" if it is."""
    try:
        found = md5_of_file(path)
    except OSError as error:  # as of a sector that the disk has lost
        return f"it cannot be read: {error.strerror}"
    return "" if found == md5.removesuffix(FOLDER) else f"its md5 is {found}"


# What it is of


def _uses(
    root: Path, objects: Mapping[str, Path], wrong: Mapping[str, str]
) -> dict[str, list[ObjectUse]]:
    """What the outputs of dvc.lock have of the objects that are wrong."""
    found = defaultdict[str, list[ObjectUse]](list)
    for stage in all_stages(root / LOCK):
        for out, md5 in stage.outs.items():
            for path, content in _contents(out, md5, objects):
                if content in wrong:
                    here = _here(root / path, content, objects[content])
                    use = ObjectUse(stage=stage.name, path=path, out=out, here=here)
                    found[content].append(use)
    return found


def _contents(out: str, md5: str, objects: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """The path and the md5 of an output and, of a folder, of all that is in it."""
    yield out, md5
    if md5.endswith(FOLDER) and md5 in objects:
        # A list that has rotted may be no list any more.
        with contextlib.suppress(OSError, IntegrityError, KeyError, TypeError):
            listed = [(one["relpath"], one["md5"]) for one in read_json(objects[md5])]
            yield from ((f"{out}/{name}", content) for name, content in listed)


def _here(path: Path, md5: str, content: Path) -> Literal["whole", "rotted", "missing"]:
    if not path.exists():
        return "missing"
    try:
        whole = not path.samefile(content) and md5_of(path) == md5
    except OSError:
        whole = False
    return "whole" if whole else "rotted"


# What mends it


def _fix(rotted: Sequence[RottedObject], root: Path, *, pulls: bool) -> Iterator[str]:
    """The commands: each object is made anew of a whole copy, pulled, or made by its stage."""
    if rotted and root != Path():
        yield shlex.join(["cd", str(root)])
    for one in rotted:
        yield from _replaced(one, root)
    lists = [one for one in rotted if one.path.endswith(FOLDER)]
    commit = dict.fromkeys(use.stage for one in lists for use in one.copies[:1])
    if commit:  # a list is made anew of what lies in the folder
        yield shlex.join(["dvc", "commit", *commit])
    lost = dict.fromkeys(use.stage for one in rotted if not one.copies for use in one.uses)
    if lost:
        pull = f"{shlex.join(['dvc', 'pull', *lost])} || " if pulls else ""
        yield pull + shlex.join(["dvc", "repro", *lost])
    uses = (use for one in rotted for use in one.uses if use.here == "rotted")
    if outs := dict.fromkeys(use.out for use in uses if use.stage not in lost):
        yield shlex.join(["dvc", "checkout", *outs])


def _replaced(one: RottedObject, root: Path) -> Iterator[str]:
    path, is_list = os.path.relpath(one.path, root), one.path.endswith(FOLDER)
    if one.copies and not is_list:
        yield shlex.join(["install", "-m", "444", one.copies[0].path, path])
    else:
        yield shlex.join(["rm", "-f", path])
    bad = [use.path for use in one.uses if use.here == "rotted"]
    if bad and not is_list:
        yield shlex.join(["rm", "-f", *bad])
