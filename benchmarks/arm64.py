"""A Python of 64-bit Arm with numpy and ONNX Runtime, emulated, on any Debian machine.

Run: python benchmarks/arm64.py bundles/mnist-tiny/runner.py selftest
     python benchmarks/arm64.py -c 'import platform; print(platform.machine())'

What follows the script is given to that Python. The first call makes it, in a minute: the packages
of this Debian for Arm, unpacked below ~/.cache/ferry, and wheels; later calls fetch nothing.
It needs no rights of root and no container, but `qemu-user-static`, apt and pip.
"""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import filelock

PACKAGES = ("python3", "libstdc++6")
"""apt finds what they need, and which Python this release of Debian has."""
RUNTIME = "1.27.0"
"""Of ONNX Runtime: later ones, to 1.31.1 at least, end with a segmentation fault in qemu 7.2."""
GLIBCS = range(17, 29)
"""The minor versions of glibc 2 whose wheels run on every Debian since 11, and are looked for."""
PROCESSOR = "cortex-a76"
"""That of a Raspberry Pi 5. Under the SME of qemu's default, products come out wrong."""
FIRST = "import numpy, onnxruntime, platform; print(platform.machine())"


class ArmError(Exception):
    """Why there is no emulated Arm here, in one line for a person."""


def main() -> int:
    """Run the emulated Python with the arguments of this script."""
    try:
        python = command()
    except ArmError as error:
        sys.exit(f"arm64: {error}")
    return subprocess.run([*python, *sys.argv[1:]], env=environment()).returncode


def command() -> list[str]:
    """The command of the emulated Python, made first where it is not there yet.

    Raises ArmError naming the program that is missing or that failed, and what it said.
    """
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if qemu is None:
        raise ArmError("no qemu-aarch64-static here; on Debian `apt-get install qemu-user-static`")
    folder = _cache() / f"arm64-{_release()}-onnxruntime-{RUNTIME}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _make(folder, qemu)
    except OSError as error:
        raise ArmError(f"{error.filename or folder}: {error.strerror}") from error
    return _python(qemu, folder)


def _python(qemu: str, root: Path) -> list[str]:
    return [qemu, "-cpu", PROCESSOR, "-L", str(root), str(root / "usr/bin/python3")]


def environment() -> dict[str, str]:
    """The variables of this process without those that are meant for its own Python."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _make(folder: Path, qemu: str) -> None:
    """Make the root whole or not at all; what a killed process left of one goes first."""
    beginning = f".{folder.name}."
    for left in folder.parent.glob(f"{beginning}*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=beginning) as made:
        root = Path(made) / "root"
        root.mkdir()
        for package in _fetched(Path(made) / "apt"):
            _run("dpkg-deb", "-x", str(package), str(root))
        # Where Debian has merged the two, a package that is not needed here links them.
        if not (root / "lib").exists():
            (root / "lib").symlink_to("usr/lib")
        _install(root)
        # It leaves byte code, so that later calls start in a third of the time.
        _run(*_python(qemu, root), "-c", FIRST)
        root.rename(folder)


def _fetched(folder: Path) -> list[Path]:
    """Download the packages and all that they need, with a state of apt's own."""
    archives = folder / "cache" / "archives"
    for needed in (folder / "lists" / "partial", archives / "partial"):
        needed.mkdir(parents=True)
    status = folder / "status"
    status.touch()  # nothing is installed there
    settings = {
        "Dir::State": folder,
        "Dir::State::Lists": folder / "lists",
        "Dir::State::status": status,
        "Dir::Cache": folder / "cache",
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Sandbox::User": "root",  # the user _apt may not enter a folder of ours
        "APT::Update::Error-Mode": "any",  # else what cannot be fetched is a warning
        "Debug::NoLocking": "true",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    _run("apt-get", *options, "-qq", "update")
    get = ("install", "-qq", "--yes", "--download-only", "--no-install-recommends")
    _run("apt-get", *options, *get, *PACKAGES)
    return sorted(archives.glob("*.deb"))


def _install(root: Path) -> None:
    """Unpack the wheels for the Python that is in the root where it looks for modules."""
    version = (root / "usr/bin/python3").readlink().name.removeprefix("python")
    glibcs = [f"--platform=manylinux_2_{minor}_aarch64" for minor in GLIBCS]
    options = ["--only-binary=:all:", "--no-deps", "--no-compile", f"--python-version={version}"]
    target = root / "usr/lib/python3/dist-packages"
    wheels = ("numpy", f"onnxruntime=={RUNTIME}")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(*pip, *options, *glibcs, f"--target={target}", *wheels)


def _run(*program: str) -> None:
    """Run a program that must end well."""
    # The project's own versions are not those of this Python.
    variables = environment() | {"PIP_CONSTRAINT": "", "DEBIAN_FRONTEND": "noninteractive"}
    if shutil.which(program[0]) is None:
        raise ArmError(f"no {program[0]} here: the emulated Arm is made of Debian's packages")
    done = subprocess.run(program, env=variables, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["without a word"]
        name = Path(program[0]).name
        raise ArmError(f"{name} ended with {done.returncode}: {lines[-1]}")


def _release() -> str:
    """The name of this release of Debian, for instance "bookworm"."""
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "linux")
    return "linux"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ferry"


if __name__ == "__main__":
    sys.exit(main())
