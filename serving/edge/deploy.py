"""Roll a bundle out to devices, each of which serves a whole version at every moment.

    deploy(Path("bundles/mnist-tiny"), all_targets(["pi@sensor:/opt/model"], None), plan)

The bundle is uploaded beside the version that is served, its own runner tests and times it there,
and only then is it served. A device that fails stays as it was.
"""

import dataclasses
import functools
import getpass
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from serving.bundles.bundle import open_bundle
from serving.bundles.finding import MANIFEST
from serving.bundles.integrity import (
    MOST_TEXT_BYTES,
    SIGNATURE,
    RunnerError,
    check_signature,
    plain_bytes,
)
from serving.bundles.verify import Trust
from serving.console import DASH, columns, number
from serving.edge.folder import DIGITS
from serving.edge.ssh import Access, Conversation, conversation
from serving.edge.state import DeviceState, in_parallel, state_told
from serving.edge.targets import DeviceTarget, short_names
from serving.errors import FerryError, IntegrityError, one_line
from serving.files import dump_json, read_record, sha256_of_bytes

Outcome = Literal["deployed", "present", "rolled back", "failed"]
Tell = Callable[[DeviceTarget, str], None]
"""Takes what a device is doing."""
STEPS = {
    "upload": "uploading",
    "check": "checking what was uploaded",
    "selftest": "running its self-test",
    "bench": "timing it",
    "tested": "switching",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployPlan:
    """What is the same for all devices."""

    access: Access
    provider: str = "cpu"
    key: Path | None = None
    """The public key of whoever must have signed the bundle."""
    jobs: int = 8
    """Devices at a time."""
    tell: Tell = lambda _target, _step: None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployReport:
    """What became of one device."""

    target: str
    host: str
    outcome: Outcome
    """"present" where it served this very bundle already."""
    problem: str | None
    """Why it failed; it serves what it served before."""
    over: str | None
    """The digest of what was served before."""
    selftest: float | None
    """The largest difference to a golden output, now."""
    seconds: float
    state: DeviceState | None
    """What the device serves now; None where it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploySummary:
    """What became of all devices."""

    digest: str | None
    """Of the bundle; None of a rollback."""
    devices: tuple[DeployReport, ...]

    def require(self) -> None:
        """Raise FerryError if one of them failed."""
        failed = [one for one in self.devices if one.outcome == "failed"]
        if len(failed) > 1:
            names = ", ".join(one.target for one in failed)
            raise FerryError(f"{len(failed)} of {len(self.devices)} devices failed: {names}")
        for one in failed:
            raise FerryError(f"{one.target}: {one.problem}")


def deploy(bundle: Path, targets: Sequence[DeviceTarget], plan: DeployPlan) -> DeploySummary:
    """Serve a bundle on every target, if it passes its tests there.

    Raises what `open_bundle` does, InputError for a key that is none, and IntegrityError for a
    bundle that its holder did not sign; what goes wrong with a device stands in its report.
    """
    opened = open_bundle(bundle)
    contents = {**opened.contents, MANIFEST: dump_json(opened.manifest).encode()}
    if (bundle / SIGNATURE).is_file():
        contents[SIGNATURE] = plain_bytes(bundle / SIGNATURE, MOST_TEXT_BYTES)
    sums = {name: sha256_of_bytes(content) for name, content in contents.items()}
    if plan.key is not None:
        refuse_unsigned(bundle, contents.get(SIGNATURE), sums, plan.key)
    request = {
        "action": "deploy",
        "digest": opened.manifest.digest,
        "minimum_runtime": opened.manifest.minimum_runtime,
        "files": {
            name: {"size": len(content), "sha256": sums[name]} for name, content in contents.items()
        },
    }
    devices = _on_all(targets, plan, request, functools.partial(_send, bundle, list(contents)))
    return DeploySummary(digest=opened.manifest.digest, devices=devices)


def refuse_unsigned(
    bundle: Path, signature: bytes | None, sums: Mapping[str, str], key: Path
) -> None:
    """Refuse a bundle whose files, by their sha256, the holder of the key did not sign."""
    Trust(key=key).refuse_unusable()
    if signature is None:
        raise IntegrityError(
            f"{bundle} is not signed, so no key can vouch for it; `ferry sign` signs it"
        )
    signed = {name: sha256 for name, sha256 in sums.items() if name != SIGNATURE}
    try:
        check_signature(signature, key, signed)
    except RunnerError as error:
        raise IntegrityError(f"{bundle}: {error}") from error


def roll_back(targets: Sequence[DeviceTarget], plan: DeployPlan) -> DeploySummary:
    """Serve the version before the present one again on every target, if its self-test passes."""
    return DeploySummary(digest=None, devices=_on_all(targets, plan, {"action": "rollback"}, None))


def _send(bundle: Path, names: Sequence[str], talk: Conversation, told: Mapping[str, Any]) -> None:
    talk.send(bundle, names, str(told["to"]), told["like"])
    talk.say("uploaded")


Upload = Callable[[Conversation, Mapping[str, Any]], None]


def _on_all(
    targets: Sequence[DeviceTarget],
    plan: DeployPlan,
    request: Mapping[str, object],
    upload: Upload | None,
) -> tuple[DeployReport, ...]:
    asked = {**request, "provider": plan.provider, "by": _who()}

    def on_one(target: DeviceTarget) -> DeployReport:
        begin = time.monotonic()
        unknown = dict.fromkeys(DeployReport.__dataclass_fields__)
        unknown |= {"target": target.name, "host": target.host, "seconds": 0.0}
        plan.tell(target, "connecting")
        try:
            told = _converse(target, plan, {**asked, "path": target.path}, upload)
            found = {key: told.get(key) for key in ("outcome", "over", "selftest")}
            report = read_record(DeployReport, {**unknown, **found}, target.name)
            report = dataclasses.replace(report, state=state_told(target, told))
        except FerryError as error:
            found = {"outcome": "failed", "problem": one_line(error)}
            report = read_record(DeployReport, {**unknown, **found}, target.name)
        plan.tell(target, report.problem or report.outcome)
        return dataclasses.replace(report, seconds=round(time.monotonic() - begin, 3))

    return in_parallel(on_one, targets, plan.access, jobs=plan.jobs)


def _converse(
    target: DeviceTarget,
    plan: DeployPlan,
    request: Mapping[str, object],
    upload: Upload | None,
) -> dict[str, Any]:
    """Lead a device through its deployment; what it told at the end."""
    with conversation(target, plan.access, request) as talk:
        while True:
            told = talk.hear()
            if told["step"] == "done":
                return told
            plan.tell(target, STEPS.get(told["step"], told["step"]))
            if told["step"] == "upload" and upload:
                upload(talk, told)
            if told["step"] == "tested":
                talk.live()
                # From here on the device goes on alone, and only it knows how that ends.
                talk.steadfast = True
                talk.say("switch")


def _who() -> str:
    """The person and the machine, for who meets the lock."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # nobody has a name, as in some containers
        return socket.gethostname()


def as_table(report: DeploySummary) -> str:
    """One line of each device."""
    called = short_names((one.target, one.host) for one in report.devices)
    header = ("device", "model", "digest", "selftest", "p50 ms", "seconds", "outcome")
    rows = [_row(called[one.target], one) for one in report.devices]
    return columns([header, *rows])


def _row(called: str, one: DeployReport) -> tuple[str, ...]:
    state = one.state
    return (
        called,
        f"{state.name} {state.variant}" if state else DASH,
        (state.digest or DASH)[:DIGITS] if state else DASH,
        number(one.selftest, ".1e"),
        number(state.p50_ms if state else None, ".3g"),
        f"{one.seconds:.1f}",
        one.problem or _outcome(one),
    )


def _outcome(one: DeployReport) -> str:
    if one.outcome == "present":
        return "present already: nothing is changed"
    over = f", in place of {one.over[:DIGITS]}" if one.over else ""
    return f"{one.outcome}{over}"
