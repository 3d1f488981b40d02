"""`ferry pull mnist`: the official files of a data set in `data/raw/D`, checked by sha256.

The mirror that was named is tried first, then the official addresses, then the mirrors of
params.yaml in order; files that are there and good are left alone. Those of a user's own data set
are hashed where they lie.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from pipeline import datasets
from pipeline.config.experiment import OwnSection
from pipeline.datasets import Archive, RawFile
from pipeline.datasets._download import (
    UnavailableError,
    fetch,
    finish,
    is_good,
    is_url,
    part_of,
    unpack,
)
from pipeline.datasets._own import hash_files
from pipeline.errors import ConfigError, DownloadError
from serving.console import note
from serving.errors import FerryError, UsageError, redacted

Attempt = tuple[str, Callable[[], None]]
"""An address to show, and what gets the file from there or raises UnavailableError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledFile:
    """One file of the raw folder."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    source: str | None
    """The address it came from; None when it was there and good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullReport:
    """What lies in `data/raw/D` now."""

    dataset: str
    files: tuple[PulledFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pull:
    """One run: where the files go and which mirrors there are."""

    raw: Path
    name: str
    folder: str
    """Below a mirror."""
    mirrors: tuple[str | None, ...]
    """In the order in which they are tried; None stands for the official addresses."""


def pull(raw: Path, *, name: str, mirrors: Sequence[str], mirror: str | None = None) -> PullReport:
    """Bring the official files of the data set `name` to the folder `raw`.

    `mirror` and `mirrors` are URLs or folders laid out as `MIRROR/DATASET/FILE`, holding an archive
    or its members; a data set with a `mirrored_as` has that name there. Several processes may pull
    at once; all but the first wait and find the files.

    Raises UnknownNameError for a data set that does not exist, UsageError or ConfigError for an
    address that is no mirror, and DownloadError when no address had a file.
    """
    dataset = datasets.get(name)
    first = [_checked(mirror, "--mirror", UsageError)] if mirror else []
    later = [
        _checked(entry, f"mirrors[{index}]", ConfigError) for index, entry in enumerate(mirrors)
    ]
    folder = dataset.mirrored_as or name
    run = _Pull(raw=raw, name=name, folder=folder, mirrors=(*first, None, *later))
    raw.mkdir(parents=True, exist_ok=True)
    with _alone(raw, name):
        files = [_pull_file(run, file) for file in dataset.files]
        for archive in dataset.archives:
            files += _pull_archive(run, archive)
    return PullReport(dataset=name, files=tuple(files))


def pull_own(raw: Path, *, name: str, section: OwnSection) -> PullReport:
    """Hash the files of the user's own data set `name`, and write their manifest to `raw`.

    Raises as `hash_files` does.
    """
    with _alone(raw, name):
        files = hash_files(raw, name, section).files
    pulled = [
        PulledFile(name=file.name, size=file.size, sha256=file.sha256, source=None)
        for file in files
    ]
    return PullReport(dataset=name, files=tuple(pulled))


def _checked(mirror: str, where: str, error: type[FerryError]) -> str:
    """Refuse a mirror that is neither an http(s) URL with a host nor a folder's name."""
    if not mirror or ("://" in mirror and not (is_url(mirror) and _has_host(mirror))):
        raise error(f"{where} must be an http or https URL or a folder, got {mirror!r}")
    return mirror if is_url(mirror) else str(Path(mirror).expanduser())


def _has_host(url: str) -> bool:
    try:
        return bool(urlsplit(url).hostname)
    except ValueError:
        return False


@contextlib.contextmanager
def _alone(raw: Path, name: str) -> Iterator[None]:
    """Keep other processes from pulling the same data set for the length of a block."""
    lock = FileLock(raw.parent / f".{raw.name}.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        note(f"another process pulls {name}; waiting for it")
        held = lock.acquire()
    with held:
        yield


def _pull_file(run: _Pull, file: RawFile) -> PulledFile:
    target = run.raw / file.name
    if is_good(file, target):
        part_of(target).unlink(missing_ok=True)
        return _pulled(file, None)
    if finish(file, target):
        return _pulled(file, "an earlier download")
    return _pulled(file, _first_that_works(run, file.name, _file_attempts(run, file)))


def _pull_archive(run: _Pull, archive: Archive) -> list[PulledFile]:
    """Get the members that are not there and good; the archive itself is not kept."""
    missing = [m for m in archive.members if not is_good(m, run.raw / m.name)]
    source = None
    if missing:
        attempts = _archive_attempts(run, archive, missing)
        source = _first_that_works(run, archive.name, attempts)
    for name in (archive.name, *[member.name for member in archive.members]):
        part_of(run.raw / name).unlink(missing_ok=True)
    (run.raw / archive.name).unlink(missing_ok=True)
    return [_pulled(m, source if m in missing else None) for m in archive.members]


def _pulled(file: RawFile, source: str | None) -> PulledFile:
    return PulledFile(name=file.name, size=file.size, sha256=file.sha256, source=source)


def _first_that_works(run: _Pull, name: str, attempts: Iterator[Attempt]) -> str:
    """Try the addresses in order and return the one that had the file."""
    tried: list[str] = []
    for address, attempt in attempts:
        if tried:
            note(f"{name}: {tried[-1]}; trying {address}")
        try:
            attempt()
        except UnavailableError as error:
            tried.append(f"{address}: {error}")
        else:
            return address
    raise DownloadError(
        f"{name} of {run.name} could not be pulled; tried {'; '.join(tried) or 'no address'}. "
        f"Name a URL or folder that holds {run.folder}/{name} with --mirror or FERRY_MIRROR, "
        f"or use a data set that needs no network: {', '.join(_embedded_names())}"
    )


def _file_attempts(run: _Pull, file: RawFile) -> Iterator[Attempt]:
    target = run.raw / file.name
    if file.embedded:
        yield file.embedded, partial(_copy_embedded, file, target)
    for _, address in _addresses(run, file):
        yield redacted(address), partial(fetch, file, target, address)


def _archive_attempts(run: _Pull, archive: Archive, missing: list[RawFile]) -> Iterator[Attempt]:
    """Try the archive from each address, and from a mirror without it the members themselves."""
    for mirror, address in _addresses(run, archive):
        yield redacted(address), partial(_fetch_archive, run, archive, missing, address)
        if mirror is not None:
            folder = _below(mirror, run.folder, "")
            yield f"{redacted(folder)} (members)", partial(_fetch_members, run, missing, mirror)


def _addresses(run: _Pull, file: RawFile) -> Iterator[tuple[str | None, str]]:
    """The addresses of a file in order, each with its mirror; None for the official ones."""
    for mirror in run.mirrors:
        places = file.urls if mirror is None else (_below(mirror, run.folder, file.name),)
        yield from ((mirror, place) for place in places)


def _fetch_archive(run: _Pull, archive: Archive, missing: list[RawFile], address: str) -> None:
    target = run.raw / archive.name
    if not is_good(archive, target):
        fetch(archive, target, address)
    unpack(target, missing, run.raw)


def _fetch_members(run: _Pull, missing: list[RawFile], mirror: str) -> None:
    for member in missing:
        target = run.raw / member.name
        if is_good(member, target):
            continue
        try:
            fetch(member, target, _below(mirror, run.folder, member.name))
        except UnavailableError as error:
            raise UnavailableError(f"{member.name}: {error}") from error


def _copy_embedded(file: RawFile, target: Path) -> None:
    package, _, path = (file.embedded or "").partition(":")
    with resources.as_file(resources.files(package) / path) as source:
        fetch(file, target, str(source))


def _below(mirror: str, folder: str, name: str) -> str:
    if is_url(mirror):
        parts = urlsplit(mirror)  # what signs it stays behind the path
        return parts._replace(path=f"{parts.path.rstrip('/')}/{folder}/{name}").geturl()
    return str(Path(mirror) / folder / name)


def _embedded_names() -> list[str]:
    """Name the data sets whose files, if there are any, all come inside installed packages."""
    known = {name: datasets.get(name).raw_files() for name in datasets.names()}
    return [name for name, files in known.items() if all(file.embedded for file in files)]
