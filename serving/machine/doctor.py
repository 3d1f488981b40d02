"""`ferry doctor`: what on this machine, or in this installation, will cause trouble, with fixes.

It must work where little else does: nothing that may be broken is imported before it is looked at,
and mlflow, torch and dvc are found without importing them. Of MLflow's store only the first bytes
are read, and a server is only asked whether it answers.
"""

import importlib.util
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

import psutil

from serving.console import EXTRA_PACKAGES
from serving.errors import one_line
from serving.machine.environment import ferry_version, installed_version, runtime_wheels

Status = Literal["ok", "warning", "problem"]
GIB = 2**30
LITTLE_MEMORY = 1 * GIB
LITTLE_DISK, NO_DISK = 5 * GIB, GIB // 5
PIPELINE = "pip install 'onnx-ferry[pipeline]'"
SQLITE_MAGIC = b"SQLite format 3\x00"
CONNECT_SECONDS = 2.0
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
STORE = "mlflow store"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: Status
    detail: str
    fix: str | None = None
    """What to do about it, in one line; None for what is ok."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All that was looked at, in the order in which it is shown."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that keep something from working."""
        return tuple(finding for finding in self.findings if finding.status == "problem")


def diagnose(folder: Path) -> Diagnosis:
    """Look at this machine, at this installation and at `folder`, where the pipeline would run."""
    findings = [_python(), _runtime(), *_providers(), *_processor(), _memory(), _disk(folder)]
    findings += [look_at_store(folder, os.environ.get("MLFLOW_TRACKING_URI")), _extra(folder)]
    findings += [_tool("git", folder), _tool("dvc", folder), _params(folder), _telemetry()]
    return Diagnosis(findings=tuple(findings))


def as_text(diagnosis: Diagnosis) -> str:
    """Lay the findings out for a terminal, each fix below its finding."""
    width = max(len(finding.name) for finding in diagnosis.findings)
    lines: list[str] = []
    for finding in diagnosis.findings:
        lines.append(f"{finding.status:<7}  {finding.name:<{width}}  {finding.detail}")
        if finding.fix:
            lines.append(f"{'':<{width + 9}}  → {finding.fix}")
    return "\n".join(lines)


def look_at_store(folder: Path, uri: str | None) -> Finding:
    """Look at the store that `uri` (MLFLOW_TRACKING_URI) names, else at `folder`/mlflow.db."""
    if not uri:
        return _database(folder / "mlflow.db")
    # Never show the address as it is given: it may hold a password.
    address = urlsplit(uri)
    scheme = address.scheme.split("+")[0]
    if scheme == "sqlite":
        # sqlite:///relative and sqlite:////absolute, as SQLAlchemy reads them.
        return _database(folder / unquote(address.path.removeprefix("/")))
    if scheme in ("", "file"):
        return _directory(folder / unquote(address.path))
    if scheme not in PORTS:
        return Finding(STORE, "ok", f"kept by {scheme}, which is not looked at")
    return _server(address, PORTS[scheme])


def _python() -> Finding:
    versions = {"ferry": ferry_version() or "not installed", "numpy": installed_version("numpy")}
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    python = f"{platform.python_version()} at {sys.executable}"
    return Finding("python", "ok", f"{python}; {packages}; {platform.platform()}")


def _runtime() -> Finding:
    wheels = runtime_wheels()
    there = " and ".join(f"{name} {version}" for name, version in wheels.items())
    if len(wheels) > 1:
        detail = f"{there} are both installed and write the same folder: one breaks the other"
        fix = f"pip uninstall -y {' '.join(wheels)} && pip install {_right_wheel()}"
        return Finding("onnxruntime", "problem", detail, fix)
    if not wheels or importlib.util.find_spec("onnxruntime") is None:
        detail = f"{there} is installed without its files" if wheels else "not installed"
        return Finding("onnxruntime", "problem", detail, _reinstall())
    return Finding("onnxruntime", "ok", there)


def _reinstall() -> str:
    return f"pip install --force-reinstall --no-deps {_right_wheel()}"


def _right_wheel() -> str:
    """The wheel that ferry depends on here; CUDA's exists for two systems on x86-64."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return "onnxruntime-gpu" if is_x86 and sys.platform in ("linux", "win32") else "onnxruntime"


def _providers() -> Iterator[Finding]:
    """Which providers really create a session and run the probe."""
    try:
        from serving.runtime.providers import PROVIDERS
        from serving.runtime.session import usable_providers
    except ImportError as error:
        detail = f"onnxruntime cannot be imported: {one_line(error)}"
        yield Finding("providers", "problem", detail, _reinstall())
        return
    usable = usable_providers()
    for provider, reason in usable.items():
        yield _provider(provider, reason)
    others = ", ".join(name for name in PROVIDERS if name not in usable)
    yield Finding("other providers", "ok", f"not part of this onnxruntime: {others or 'none'}")


def _provider(provider: str, reason: str | None) -> Finding:
    name = f"provider {provider}"
    if reason is None:
        detail = "creates a session and runs"
        return Finding(name, "ok", detail if provider != "cpu" else f"{detail}; {_int8()}")
    reason = reason.removesuffix("; `ferry doctor` says which providers do")
    reason = reason.partition(" on this machine: ")[2] or reason
    if provider == "cpu":
        return Finding(name, "problem", reason, _reinstall())
    if provider == "cuda" and shutil.which("nvidia-smi"):
        fix = "pip install 'onnxruntime-gpu[cuda,cudnn]', and check that `nvidia-smi` works"
        return Finding(name, "warning", reason, fix)
    return Finding(name, "ok", f"built in, not usable here: {reason}")


def _int8() -> str:
    """What integer kernels do here with weights of all 8 bits."""
    from serving.runtime.kernels import VNNI, overflows

    if overflows():
        return f"sums of int8 overflow here, so that what needs {VNNI} is refused"
    return f"sums of int8 do not overflow, so that what needs {VNNI} runs"


def _processor() -> Iterator[Finding]:
    """The processor and how much of it this process may use."""
    try:
        from serving.machine.environment import describe
    except ImportError:
        return  # onnxruntime is broken, which is reported already
    found = describe()
    flags = " ".join(found.flags) or "no vector extensions known"
    yield Finding("processor", "ok", f"{found.processor} ({found.architecture}; {flags})")
    yield _cores(found.cores, found.allowed_cores, found.quota_cores)
    if found.gpu:
        yield Finding("graphics card", "ok", f"{found.gpu}, driver {found.gpu_driver}")
    load = found.load_average[0]
    if load > found.allowed_cores:
        detail = f"{load:g} processes want {found.allowed_cores} cores: timings will be unsteady"
        fix = "wait until the machine is idle before timing anything"
        yield Finding("load", "warning", detail, fix)


def _cores(cores: int, allowed: int, quota: float | None) -> Finding:
    detail = f"{allowed} of {cores} may be used"
    if quota is None or quota >= cores:
        return Finding("cores", "ok", detail)
    fix = "ferry keeps to the quota; `docker run --cpus` gives a container more"
    return Finding("cores", "warning", f"{detail}: the container's quota is {quota:g}", fix)


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    detail = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"
    if memory.available >= LITTLE_MEMORY:
        return Finding("memory", "ok", detail)
    fix = "close what is not needed; training wants about 2 GiB"
    return Finding("memory", "warning", detail, fix)


def _disk(folder: Path) -> Finding:
    if not folder.is_dir():
        return Finding("disk", "problem", f"{folder} is no folder", f"mkdir -p {folder}")
    free = shutil.disk_usage(folder).free
    detail = f"{free / GIB:.1f} GiB free at {folder.resolve()}"
    if not os.access(folder, os.W_OK):
        fix = f"chmod u+w {folder}, or work elsewhere with `ferry -C DIR`"
        return Finding("disk", "problem", f"{detail}, read-only", fix)
    if free < LITTLE_DISK:
        fix = "free some space; `dvc gc -w` drops cached results that no branch needs"
        return Finding("disk", "problem" if free < NO_DISK else "warning", detail, fix)
    return Finding("disk", "ok", detail)


def _database(path: Path) -> Finding:
    if not path.exists():
        if os.access(path.parent, os.W_OK):
            return Finding(STORE, "ok", f"{path} will be made by the first training")
        return _bad_store(f"{path.parent} is not writable", f"chmod u+w {path.parent}")
    if not path.is_file() or not os.access(path, os.R_OK | os.W_OK):
        return _bad_store(f"{path} is not a writable file", f"chmod u+rw {path}")
    with path.open("rb") as file:
        start = file.read(len(SQLITE_MAGIC))
    if start not in (b"", SQLITE_MAGIC):
        return _bad_store(f"{path} is not an SQLite database", f"mv {path} {path}.broken")
    return Finding(STORE, "ok", f"{path}, {path.stat().st_size / 2**20:.1f} MiB, writable")


def _directory(path: Path) -> Finding:
    there = path if path.exists() else path.parent
    if there.is_dir() and os.access(there, os.W_OK):
        return Finding(STORE, "ok", f"folder {path}, writable")
    return _bad_store(f"folder {path} cannot be written", "set MLFLOW_TRACKING_URI to one that can")


def _server(address: SplitResult, default_port: int) -> Finding:
    try:
        host, port = address.hostname, address.port or default_port
    except ValueError:
        host = None
    fix = "start the server, or unset MLFLOW_TRACKING_URI to keep runs in mlflow.db"
    if host is None:
        return _bad_store(f"MLFLOW_TRACKING_URI names no {address.scheme} server", fix)
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        return _bad_store(f"{host}:{port} does not answer: {reason}", fix)
    return Finding(STORE, "ok", f"{host}:{port} answers")


def _bad_store(detail: str, fix: str) -> Finding:
    return Finding(STORE, "warning", detail, fix)


def _extra(folder: Path) -> Finding:
    name = "pipeline extra"
    missing = sorted(one for one in EXTRA_PACKAGES if importlib.util.find_spec(one) is None)
    if not missing:
        torch, mlflow = installed_version("torch"), installed_version("mlflow")
        return Finding(name, "ok", f"installed: torch {torch}, mlflow {mlflow}")
    if not _wants_pipeline(folder):
        return Finding(name, "ok", "not installed: models run, none are trained")
    return Finding(name, "warning", f"missing: {', '.join(missing)}", PIPELINE)


def _wants_pipeline(folder: Path) -> bool:
    """Whether someone trains here, and does not only run models."""
    return _is_project(folder) or importlib.util.find_spec("torch") is not None


def _tool(name: str, folder: Path) -> Finding:
    """Look for a program on PATH, or beside the running Python."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name) or (str(beside) if beside.exists() else None)
    if found:
        return Finding(name, "ok", found)
    detail = "not on PATH; only the pipeline needs it"
    if not _wants_pipeline(folder):
        return Finding(name, "ok", detail)
    fix = PIPELINE if name == "dvc" else f"install {name}, for instance `apt install {name}`"
    return Finding(name, "warning", detail, fix)


def _params(folder: Path) -> Finding:
    name = "params.yaml"
    if _is_project(folder):
        return Finding(name, "ok", f"{folder / name} is there")
    detail = f"not in {folder.resolve()}: the stages run where it lies"
    if not _wants_pipeline(folder):
        return Finding(name, "ok", detail)
    return Finding(name, "warning", detail, "name the folder of your checkout with `ferry -C DIR`")


def _is_project(folder: Path) -> bool:
    return (folder / "params.yaml").is_file()


def _telemetry() -> Finding:
    value = os.environ.get("ORT_DISABLE_TELEMETRY", "1")
    if value == "1":
        return Finding("telemetry", "ok", "of onnxruntime is switched off")
    detail = f"onnxruntime may report its use, as ORT_DISABLE_TELEMETRY={value} asks"
    return Finding("telemetry", "warning", detail, "unset ORT_DISABLE_TELEMETRY")
