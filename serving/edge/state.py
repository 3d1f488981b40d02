"""What is on a device, as its own files tell: `ferry devices` reads it, and no memory of ours.

A deployment may end after the program that began it was killed, so only the device knows.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from serving.console import DASH, columns, number
from serving.edge.folder import DIGITS
from serving.edge.ssh import Access, conversation
from serving.edge.targets import DeviceTarget, short_names
from serving.errors import FerryError, IntegrityError, one_line
from serving.files import read_record

Result = TypeVar("Result")
TOLD = (
    *("path", "name", "variant", "digest", "weights_sha256", "model_sha256", "model_bytes"),
    *("golden_rows", "since", "before", "busy", "problems"),
)
"""The fields of a state that are what the device told, unchanged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMachine:
    """What a device is."""

    system: str
    architecture: str
    processor: str
    """The board, or the processor of a computer."""
    cores: int
    python: str
    numpy: str
    onnxruntime: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """What one target serves, and what is wrong with it."""

    target: str
    """As it was typed."""
    host: str
    path: str
    """The folder there; as it was typed where the device was not reached."""
    name: str | None
    """The experiment, or the file, of the version that is served."""
    variant: str | None
    digest: str | None
    """Of the bundle that is served, by its manifest there."""
    weights_sha256: str | None
    model_sha256: str | None
    model_bytes: int | None
    golden_rows: int | None
    """The rows that its self-test runs."""
    since: str | None
    """When it began to be served, by the device's clock, in UTC."""
    before: str | None
    """The digest that `--rollback` would go to."""
    selftest: float | None
    """The largest difference to a golden output when it was tested there."""
    bench: Mapping[str, float]
    """What the runner's bench measured there, for instance {"p50_ms": 0.3}."""
    provider: str | None
    machine: DeviceMachine | None
    by: str | None
    """Who deployed it, from which machine."""
    busy: str | None
    """The deployment that goes on there now."""
    problems: tuple[str, ...]
    """Why it serves no whole version, or could not be asked."""
    notes: tuple[str, ...]
    """What else there is to know: half an upload that was left."""

    @property
    def p50_ms(self) -> float | None:
        """The median time of a call there."""
        return self.bench.get("p50_ms")


def state_told(target: DeviceTarget, told: Mapping[str, Any]) -> DeviceState:
    """A record of what a device told; IntegrityError where that is not what ferry writes."""
    about = told["record"] if isinstance(told["record"], Mapping) else {}
    half = told["half"]
    raw: dict[str, Any] = {
        "target": target.name,
        "host": target.host,
        **{key: told.get(key) for key in TOLD},
        "notes": [f"{half} half {'upload' if half == 1 else 'uploads'} left"] if half else [],
        **{key: about.get(key) for key in ("selftest", "provider", "machine", "by")},
        "bench": about.get("bench") or {},
    }
    try:
        return read_record(DeviceState, raw, target.name)
    except IntegrityError as error:
        unread = dict.fromkeys(("selftest", "provider", "machine", "by")) | {"bench": {}}
        raw |= unread | {"notes": [*raw["notes"], f"what its tests gave was altered: {error}"]}
        return read_record(DeviceState, raw, target.name)


def state_of(target: DeviceTarget, access: Access) -> DeviceState:
    """What a target serves; why it cannot be told is one of its problems."""
    try:
        with conversation(target, access, {"action": "state", "path": target.path}) as talk:
            return state_told(target, talk.hear())
    except FerryError as error:
        return unknown_state(target, one_line(error))


def unknown_state(target: DeviceTarget, problem: str) -> DeviceState:
    """The state of a device that cannot be asked."""
    values = dict.fromkeys(DeviceState.__dataclass_fields__)
    known = {"target": target.name, "host": target.host, "path": target.path, "bench": {}}
    raw = {**values, **known, "problems": [problem], "notes": []}
    return read_record(DeviceState, raw, target.name)


def states(
    targets: Sequence[DeviceTarget], access: Access, *, jobs: int
) -> tuple[DeviceState, ...]:
    """What each target serves, asked several at a time."""
    return in_parallel(lambda one: state_of(one, access), targets, access, jobs=jobs)


def in_parallel(
    work: Callable[[DeviceTarget], Result],
    targets: Sequence[DeviceTarget],
    access: Access,
    *,
    jobs: int,
) -> tuple[Result, ...]:
    """The results of all targets, `jobs` at a time; a Ctrl-C lets each end in good order."""
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures = [pool.submit(work, one) for one in targets]
        while True:
            try:
                return tuple(one.result() for one in futures)
            except KeyboardInterrupt:
                access.stop.set()


def require(found: Sequence[DeviceState]) -> None:
    """Raise FerryError if one serves no whole version, or could not be asked."""
    wrong = [one for one in found if one.problems]
    if len(wrong) > 1:
        names = ", ".join(one.target for one in wrong)
        raise FerryError(f"{len(wrong)} of {len(found)} devices serve no whole version: {names}")
    for one in wrong:
        raise FerryError(f"{one.target}: {', '.join(one.problems)}")


def as_table(found: Sequence[DeviceState]) -> str:
    """One line of each target."""
    header = ("device", "model", "digest", "selftest", "p50 ms", "since", "state")
    called = short_names((one.target, one.host) for one in found)
    return columns([header, *(_row(called[one.target], one) for one in found)])


def _row(called: str, one: DeviceState) -> tuple[str, ...]:
    return (
        called,
        f"{one.name} {one.variant}" if one.name else DASH,
        one.digest[:DIGITS] if one.digest else DASH,
        number(one.selftest, ".1e"),
        number(one.p50_ms, ".3g"),
        one.since or DASH,
        _state(one),
    )


def _state(one: DeviceState) -> str:
    """Everything about it in words."""
    going_on = (f"a deployment is going on, {one.busy}",) if one.busy else ()
    return "; ".join((*(one.problems or ("serves",)), *one.notes, *going_on))
