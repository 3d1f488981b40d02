"""Bundles whose runner answers at once or as it is told, and a look at what a device serves."""

import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tiny_classifier import forge

from serving.bundles.bundle import RUNNER, FileInfo, read_manifest
from serving.edge.deploy import DeployPlan, DeployReport, deploy, roll_back
from serving.edge.ssh import Access
from serving.edge.state import DeviceState, state_of
from serving.edge.targets import parse_target

STUB = """\
import json, pathlib, sys, time
if sys.argv[1] == "selftest":
    {selftest}
    sys.stdout.write(json.dumps({{"passed": True, "worst": 1.5e-06}}))
else:
    {bench}
    sys.stdout.write(json.dumps({{"p50_ms": 0.25, "rows_per_second": 4000.0, "said": "well"}}))
"""


def stub(
    source: Path,
    folder: Path,
    *,
    accuracy: float = 97.5,
    selftest: str = "pass",
    bench: str = "pass",
    **changes: object,
) -> Path:
    """A copy of the bundle `source` with a runner that does what it is told before it answers."""
    shutil.copytree(source, folder)
    text = STUB.format(selftest=selftest, bench=bench).encode()
    (folder / RUNNER).write_bytes(text)
    files = dict(read_manifest(folder).files)
    files[RUNNER] = FileInfo(size=len(text), sha256=hashlib.sha256(text).hexdigest())
    forge(folder, files=files, metrics={"accuracy": accuracy}, **changes)
    return folder


def plan(config: Path | None = None, **changes: Any) -> DeployPlan:
    """To reach devices with this Python."""
    known = {"ssh_config": config, "python": sys.executable, "stop": threading.Event()}
    return DeployPlan(access=Access(**(known | changes)))


def rolled_out(bundle: Path, target: str, given: DeployPlan) -> DeployReport:
    """What became of the one target."""
    (report,) = deploy(bundle, [parse_target(target)], given).devices
    return report


def rolled_back(target: str, given: DeployPlan) -> DeployReport:
    """What became of the one target."""
    (report,) = roll_back([parse_target(target)], given).devices
    return report


def served(target: str, given: DeployPlan) -> DeviceState:
    """What `ferry devices` says."""
    return state_of(parse_target(target), given.access)


def whole(folder: Path) -> str:
    """The digest of what a folder serves, every byte of which is looked at."""
    current = (folder / "current").resolve()
    manifest = json.loads((current / "manifest.json").read_bytes())
    for name, info in manifest["files"].items():
        assert hashlib.sha256((current / name).read_bytes()).hexdigest() == info["sha256"]
    return str(manifest["digest"])


def names(folder: Path) -> list[str]:
    """Everything below versions/ but the lock."""
    return sorted(one.name for one in (folder / "versions").iterdir() if one.name != ".lock")


def below(folder: Path) -> Iterator[str]:
    """Every path below a folder."""
    return (str(one.relative_to(folder)) for one in sorted(folder.rglob("*")))
