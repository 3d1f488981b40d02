"""Register a bundle, promote a version over the champion, and go back.

register(Path("bundles/mnist-cnn"), "mnist-cnn")
promote("mnist-cnn", Promotion()).require()
rollback("mnist-cnn")
"""

import contextlib
import datetime as dt
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import layout, params
from pipeline.errors import GateError
from pipeline.project.registry.gates import Contest, judge
from pipeline.records import read
from pipeline.records.train import TrainReport
from serving.batch.lock import lock_output
from serving.bundles.bundle import MODEL, Bundle, open_bundle
from serving.bundles.finding import folder_of
from serving.bundles.integrity import SIGNATURE
from serving.bundles.registry import (
    CHALLENGER,
    CHAMPION,
    COPIES,
    REGISTRY,
    Promoted,
    PromotionGate,
    Registered,
    Registry,
    RegistryEntry,
    RolledBack,
    entry_of,
    is_name,
    read_registry,
    registry_at,
    version_named,
)
from serving.bundles.verify import verify
from serving.bundles.writing import copy_bundle
from serving.errors import IntegrityError, MissingInputError, OutputError, UsageError
from serving.files import remove, sync_folder, write_text
from serving.machine.environment import git_revision, output_of, this_machine
from serving.measuring.rounds import Log

Event = Registered | Promoted | RolledBack
LOCK_SECONDS = 10.0
"""That one process waits for another one."""
GIT_SECONDS = 10
IGNORED = f"/{COPIES}/\n.*.lock\n"
"""What git does not keep: the copies of bundles, which DVC has, and locks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterReport:
    """What `ferry register` did."""

    name: str
    version: int
    new: bool
    """False for a bundle that was registered before."""
    alias: str
    """Of the version, or ""."""
    digest: str
    data_sha256: str


def model_name(folder: Path, given: str | None = None) -> str:
    """The name to register a bundle under: the given one, else the bundle's own.

    Raises UsageError for what cannot be one, and what `open_bundle` does.
    """
    name = open_bundle(folder).manifest.name if given is None else given
    if not is_name(name):
        raise UsageError(f"{name!r} is not a name of letters, digits, '-' and '_'; give --name")
    return name


def _utf8(text: str) -> str:
    """A text with "?" for what is no UTF-8, as an argument may be."""
    return text.encode(errors="replace").decode()


def register(
    folder: Path, name: str, *, description: str = "", tags: Mapping[str, str]
) -> RegisterReport:
    """Make a bundle the next version of `name`, and the challenger.

    The registry keeps a copy, for the next `ferry bundle` replaces the folder. Raises what
    `open_bundle` does, and IntegrityError for a bundle that does not pass `verify`.
    """
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    verify(folder).require()
    data_sha256 = _trained_on(manifest.name, manifest.source.weights_sha256)

    def decide(now: Registry) -> Registered | None:
        _keep(bundle, now.copy_of(manifest.digest))
        if manifest.digest in {one.digest for one in now.versions.values()}:
            return None
        return Registered(
            version=max(now.versions, default=0) + 1,
            experiment=manifest.name,
            variant=manifest.variant,
            digest=manifest.digest,
            model_sha256=manifest.files[MODEL].sha256,
            weights_sha256=manifest.source.weights_sha256,
            dataset=manifest.source.dataset,
            data_sha256=data_sha256,
            metrics=manifest.metrics,
            description=_utf8(description),
            tags={key: _utf8(value) for key, value in tags.items()},
        )

    path = layout.project() / REGISTRY / f"{name}.jsonl"
    added = append(path, decide)
    registry = registry_at(path)
    version = next(
        number for number, one in registry.versions.items() if one.digest == manifest.digest
    )
    return RegisterReport(
        name=name,
        version=version,
        new=added is not None,
        alias=registry.alias_of(version),
        digest=manifest.digest,
        data_sha256=registry.versions[version].data_sha256,
    )


def _trained_on(experiment: str, weights_sha256: str) -> str:
    """The sha256 of the data that the weights were trained on, by the report of their training."""
    path = layout.details(experiment, "train")
    with contextlib.suppress(MissingInputError, IntegrityError):
        trained = read(TrainReport, path, f"ferry train {experiment}")
        if trained.weights_sha256 == weights_sha256:
            return trained.data_sha256
    return ""


def _keep(bundle: Bundle, folder: Path) -> None:
    """Copy a bundle to where the registry has it, unless it is there."""
    with lock_output(folder.parent, LOCK_SECONDS):  # a bundle may be registered by two names
        for left in folder.parent.glob(f".{folder.name}.*"):  # by a process that was killed
            remove(left)
        with contextlib.suppress(MissingInputError, IntegrityError):
            whole = open_bundle(folder).manifest == bundle.manifest
            # One that was signed since then is kept with its signature.
            if whole and (
                (folder / SIGNATURE).exists() or not (bundle.folder / SIGNATURE).exists()
            ):
                return
        copy_bundle(bundle, folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """What is to become the champion, and how."""

    version: int | None = None
    """None for the challenger."""
    expect: int | None = None
    """The version that must be the champion, 0 for none; None for whichever is."""
    force: str = ""
    """The reason to promote it even if it does not hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteReport:
    """What `ferry promote` found and did."""

    name: str
    version: int
    over: int | None
    """The champion that it was held against; None where there was none."""
    promoted: bool
    forced: str
    gates: tuple[PromotionGate, ...]
    """() where it was the champion already."""

    @property
    def failed(self) -> tuple[PromotionGate, ...]:
        """The gates that were not passed."""
        return tuple(gate for gate in self.gates if gate.status == "failed")

    def describe(self) -> str:
        """What came of it, in a few words."""
        if not self.gates:
            return "is the champion already"
        beaten = f"over version {self.over}" if self.over else "as the first champion"
        forced = f", forced: {self.forced}" if self.forced else ""
        return f"is promoted {beaten}{forced}" if self.promoted else "is not promoted"

    def require(self) -> None:
        """Raise GateError, naming the failed gates, if it was not promoted."""
        if self.failed and not self.promoted:
            told: dict[str, list[str]] = {}
            for gate in self.failed:  # several may fail for one reason
                told.setdefault(gate.detail, []).append(gate.name)
            reasons = "; ".join(f"{', '.join(gates)}: {detail}" for detail, gates in told.items())
            raise GateError(
                f"{self.name}/{self.version} is not promoted: {reasons}; "
                f"--force REASON promotes it all the same, and is recorded"
            )


def promote(
    name: str, asked: Promotion, *, log: Log = lambda _: None, path: Path = layout.PARAMS
) -> PromoteReport:
    """Make a version the champion if it holds against the present one, or if it is forced.

    The gates, and what they found, are recorded with it. Raises OutputError when another version
    became the champion since they began, or is not the expected one; UnknownNameError for a name or
    a version that is not there; and MissingInputError where there is no challenger, or where its
    bundle is not here. No force overrules that, nor the IntegrityError of an altered bundle.
    """
    registry, config = read_registry(name), params.registry(path)
    version = asked.version or registry.version_of(CHALLENGER)
    version_named(f"{name}/{version}")
    champion = registry.champion
    if asked.expect is not None and asked.expect != (champion or 0):
        raise _another(registry, asked.expect)
    if version == champion:
        return PromoteReport(
            name=name, version=version, over=champion, promoted=False, forced="", gates=()
        )
    contest = Contest(registry=registry, version=version, champion=champion, config=config)
    folder = contest.folder()
    if asked.force:  # what nobody can open is no champion
        open_bundle(folder)
    gates = judge(contest, log)
    failed = any(gate.status == "failed" for gate in gates)
    report = PromoteReport(
        name=name,
        version=version,
        over=champion,
        promoted=not failed or bool(asked.force),
        forced=_utf8(asked.force) if failed else "",
        gates=gates,
    )
    if report.promoted:
        event = Promoted(version=version, over=champion, gates=gates, forced=report.forced)
        append(registry.path, _if_still(champion, lambda _: event))
    return report


def _if_still(
    champion: int | None, decide: Callable[[Registry], Promoted | RolledBack]
) -> Callable[[Registry], Promoted | RolledBack]:
    """What decides, but refuses where there is another champion by now."""

    def checked(now: Registry) -> Promoted | RolledBack:
        if now.champion != champion:
            raise _another(now, champion or 0)
        return decide(now)

    return checked


def _another(now: Registry, expected: int) -> OutputError:
    def word(version: int | None) -> str:
        return f"version {version}" if version else "none"

    return OutputError(
        f"the champion of {now.name} is {word(now.champion)}, expected was {word(expected)}; "
        f"nothing is changed"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackReport:
    """What `ferry rollback` did."""

    name: str
    version: int
    """The champion now."""
    over: int
    """The one before."""


def rollback(name: str, expect: int | None = None) -> RollbackReport:
    """Make the champion before the present one the champion again.

    Raises MissingInputError where there is none, or nobody here has its bundle, OutputError where
    another version than expected is the champion, and IntegrityError for an altered bundle.
    """
    registry = read_registry(name)
    champion = registry.version_of(CHAMPION)
    if expect not in (None, champion):
        raise _another(registry, expect or 0)
    if len(registry.champions) < 2:
        raise MissingInputError(
            f"{name}/{champion} is the first champion: there is none to go back to"
        )
    version = registry.champions[-2]
    open_bundle(folder_of(registry, version))
    event = RolledBack(version=version, over=champion)
    append(registry.path, _if_still(champion, lambda _: event))
    return RollbackReport(name=name, version=version, over=champion)


# A line more in the file


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
