"""What a device does when a bundle comes: `ferry deploy` sends this text to its python3 over SSH.

Nothing is installed there: Python 3.8 or newer reads this text and `serving.edge.folder` from its
standard input, and after them what the client says. A client that is gone, or silent for a minute,
ends its deployment: before the switch nothing is changed, after it all is done.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from serving.edge.folder import (
    DIGITS,
    Installed,
    Refused,
    now,
    remove,
    seen,
    sync,
    token,
    why_not_whole,
    write,
)

MARK = "ferry: "
"""Before each line of JSON that is told, as a login shell may print lines of its own."""
SILENCE_SECONDS = 60.0
TEST_SECONDS = 900.0
MARGIN = 256 * 1024
"""Bytes that stay free beside an upload: for what is written about it."""
BLOCK = 4096
# Isolated, and yet with the packages of the user, which `pip install --user` fills.
ALONE = (
    "import site, sys\n"
    "if sys.prefix == sys.base_prefix: site.addsitedir(site.getusersitepackages())\n"
)
RUN = ALONE + (
    "import runpy\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
)
ASK = ALONE + (
    "import os\nos.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')\nimport json, numpy\n"
    "import onnxruntime\nprint(json.dumps([numpy.__version__, onnxruntime.__version__]))\n"
)


class Gone(Refused):
    """The client has left, or is silent."""


class Client:
    """The one who asked: it is told lines of JSON, and says words, and empty lines as it lives."""

    def __init__(self, number: int) -> None:
        """Listen to a file descriptor."""
        self.words: queue.Queue[str] = queue.Queue()
        self.heard, self.gone = time.monotonic(), False
        threading.Thread(target=self._listen, args=(number,), daemon=True).start()

    def _listen(self, number: int) -> None:
        rest = b""
        while content := _read_some(number):
            self.heard = time.monotonic()
            *lines, rest = (rest + content).split(b"\n")
            for line in filter(None, lines):
                self.words.put(line.decode(errors="replace"))
        self.gone = True

    def tell(self, **what: object) -> None:
        """Say something, if anybody is there to hear it."""
        with contextlib.suppress(OSError):
            sys.stdout.write(MARK + json.dumps(what) + "\n")
            sys.stdout.flush()

    def check(self) -> None:
        """Raise Gone if nobody is there any more."""
        if self.gone or time.monotonic() - self.heard > SILENCE_SECONDS:
            raise Gone("the client has gone")

    def wait(self, word: str) -> None:
        """Wait until the client says the word."""
        while True:
            with contextlib.suppress(queue.Empty):
                if self.words.get(timeout=0.5) == word:
                    return
                raise Gone(f"the client does not say {word}")
            self.check()


def deploy(request: dict[str, Any], client: Client) -> None:
    """Serve the bundle of the request, if it passes its tests here."""
    installed = Installed(request["path"])
    installed.check()
    machine = this_machine(request, client)
    with installed.locked(request["by"], client.check):
        before, name = installed.present(), version_of(installed, request)
        record = installed.record(name) if name is not None and name == before else None
        if name is not None and record and record["provider"] == request["provider"]:
            tested = tested_in(installed.versions / name, request, client, brief=True)
            done(client, installed, outcome="present", over=None, **tested)
            return
        over = None if name == before else installed.digest_of(before)
        staging = None
        if name is None:
            need_space(installed, request)
            staging = installed.versions / f".{request['digest'][:DIGITS]}.{token()}.tmp"
        try:
            if staging is not None:
                upload(installed, staging, request, client)
            folder = staging or installed.versions / str(name)
            tested = tested_in(folder, request, client, brief=False)
            client.tell(step="tested")
            client.wait("switch")
            name = name or free_name(installed, request["digest"])
            write_record(installed, name, {**tested, "machine": machine}, request)
            serve(installed, name, staging)
        finally:
            if staging is not None:
                remove(staging)
        done(client, installed, outcome="deployed", over=over, **tested)


def rollback(request: dict[str, Any], client: Client) -> None:
    """Serve the version before the present one again, if it passes its self-test."""
    installed = Installed(request["path"])
    installed.check()
    if installed.present() is None:
        raise Refused(f"nothing is deployed in {installed.path}")
    with installed.locked(request["by"], client.check):
        history, before = installed.history(), installed.present()
        if before in history:
            del history[-1]
        if not history:
            raise Refused(f"there is no version before {before} in {installed.path}")
        name, over = history[-1], installed.digest_of(before)
        reason = why_not_whole(installed.versions / name)
        if reason:
            raise Refused(f"the version before, {name}, is not whole any more: {reason}")
        tested = tested_in(installed.versions / name, request, client, brief=True)
        client.tell(step="tested")
        client.wait("switch")
        installed.switch(name)
        with contextlib.suppress(OSError):
            installed.keep(history, before)
        done(client, installed, outcome="rolled back", over=over, **tested)


def state(request: dict[str, Any], client: Client) -> None:
    """Say what is there, and what is wrong with it."""
    installed = Installed(request["path"])
    installed.check()
    client.tell(step="done", **seen(installed))


def done(client: Client, installed: Installed, **what: object) -> None:
    """Tell how a deployment ended, and what is served now."""
    client.tell(step="done", **what, **seen(installed, ours=True))


def this_machine(request: dict[str, Any], client: Client) -> dict[str, Any]:
    """What this is; refuses one that lacks what the runner, or the upload, needs."""
    python = f"{sys.executable} there (Python {platform.python_version()})"
    code, said, wrong = run([sys.executable, "-I", "-c", ASK], client, "import of numpy")
    if code:
        lacks = re.search(r"No module named '(\w+)", wrong)
        if lacks:
            raise Refused(
                f"{python} has no {lacks[1]}: {sys.executable} -m pip install numpy onnxruntime, "
                f"or name another Python with --python"
            )
        raise Refused(f"{python} cannot import numpy and onnxruntime: {_how(code, wrong)}")
    numpy, onnxruntime = json.loads(said.splitlines()[-1])
    minimum = request.get("minimum_runtime") or "0.0"
    if _version(onnxruntime) < _version(minimum):
        raise Refused(f"the model needs onnxruntime {minimum} or newer, {python} has {onnxruntime}")
    if shutil.which("rsync") is None:
        raise Refused("there is no rsync there: apt install rsync")
    return {
        "system": f"{os.uname().sysname} {os.uname().release}",
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
        "numpy": numpy,
        "onnxruntime": onnxruntime,
    }


def version_of(installed: Installed, request: dict[str, Any]) -> str | None:
    """The name of a version that is this very bundle, the present one first."""
    names = [one for one in installed.names() if one.startswith(request["digest"][:DIGITS])]
    for name in sorted(names, key=lambda one: one != installed.present()):
        if not why_not_whole(installed.versions / name, request["files"]):
            return name
    return None


def need_space(installed: Installed, request: dict[str, Any]) -> None:
    """Refuse a bundle that does not fit beside what is there."""
    new = [-(-info["size"] // BLOCK) * BLOCK for info in request["files"].values()]
    found = os.statvfs(installed.versions)
    free, needed = found.f_bavail * found.f_frsize, sum(new) + MARGIN
    if free < needed:
        raise Refused(
            f"not enough space in {installed.path}: {free / 1e6:.1f} MB are free, the bundle needs "
            f"{needed / 1e6:.1f} MB"
        )


def upload(installed: Installed, staging: Path, request: dict[str, Any], client: Client) -> None:
    """Let the client fill a new folder, and make sure of every byte of it."""
    staging.mkdir()
    link = installed.link.resolve()
    like = str(link) if installed.present() and link.is_dir() else None
    client.tell(step="upload", to=str(staging), like=like)
    client.wait("uploaded")
    client.tell(step="check")
    reason = why_not_whole(staging, request["files"])
    if reason:
        raise Refused(f"the upload is not the bundle: {reason}")
    for folder, _, names in os.walk(staging):
        for name in names:
            sync(Path(folder) / name)
        sync(Path(folder))


def free_name(installed: Installed, digest: str) -> str:
    """A name for a version, of which a damaged one may lie there, even served."""
    name = digest[:DIGITS]
    for one in installed.names():
        if one.startswith(name) and one != installed.present():
            installed.remove(one)
    names = (name, f"{name}.2", f"{name}.3")
    return next(one for one in names if not (installed.versions / one).exists())


def write_record(
    installed: Installed, name: str, about: dict[str, Any], request: dict[str, Any]
) -> None:
    """Write beside a version what its tests gave, whole or not at all."""
    about = {**about, "provider": request["provider"], "tested": now(), "by": request["by"]}
    write(installed.versions / f"{name}.json", json.dumps(about))


def serve(installed: Installed, name: str, staging: Path | None) -> None:
    """Serve a version that is whole and tested, and put in order what is beside it."""
    before, history = installed.present(), installed.history()
    if staging is not None:
        staging.rename(installed.versions / name)
        sync(installed.versions)
    if before != name:
        try:
            installed.switch(name)
        except OSError:
            if staging is not None:
                installed.remove(name)
            raise
        history.append(name)
    # It is served now, whatever becomes of the rest, which the next deployment does as well.
    with contextlib.suppress(OSError):
        # There is no way back to a damaged one that this one takes the place of.
        same = [one for one in history if one != name and one.startswith(name[:DIGITS])]
        installed.keep([one for one in history if one not in same], before)


def tested_in(
    folder: Path, request: dict[str, Any], client: Client, *, brief: bool
) -> dict[str, Any]:
    """Run the bundle's own self-test and, if not `brief`, its bench; refuse one that fails."""
    options = ["--provider", request["provider"]]
    if "digest" in request:
        options += ["--digest", request["digest"]]
    client.tell(step="selftest")
    tested = {"selftest": runner(folder, ["selftest", "--json", *options], client).get("worst")}
    if not brief:
        client.tell(step="bench")
        found = runner(folder, ["bench", *options], client)
        tested["bench"] = {one: found[one] for one in found if isinstance(found[one], (int, float))}
    return tested


def runner(folder: Path, words: list[str], client: Client) -> dict[str, Any]:
    """What the runner of a bundle tells in JSON."""
    command = [sys.executable, "-I", "-B", "-c", RUN, str(folder / "runner.py"), *words]
    code, said, wrong = run(command, client, words[0])
    if code:
        raise Refused(f"the {words[0]} failed: {_how(code, wrong)}")
    try:
        found = json.loads(said)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Refused(f"the {words[0]} does not answer in JSON: {said[:60]!r}")
    return found


def run(command: list[str], client: Client, what: str) -> tuple[int, str, str]:
    """The status, output and errors of a program, which ends when the client leaves.

    `what` names it where it takes too long.
    """
    pipe, deadline = subprocess.PIPE, time.monotonic() + TEST_SECONDS
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, errors="backslashreplace"
    ) as process:
        try:
            while time.monotonic() < deadline:
                client.check()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    said, wrong = process.communicate(timeout=0.3)
                    return process.returncode, said, wrong
            raise Refused(f"the {what} took longer than {TEST_SECONDS:.0f} s")
        finally:
            process.kill()


def _how(code: int, wrong: str) -> str:
    """How a program ended, in one line."""
    if code < 0:
        return f"it ended with {signal.strsignal(-code)}"
    lines = [line for line in wrong.splitlines() if line.strip()]
    return lines[-1].replace("runner: ", "", 1).strip()[:300] if lines else f"exit status {code}"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in re.findall(r"\d+", text)[:2])


def _processor() -> str:
    """The board or, of a computer, the processor."""
    with contextlib.suppress(OSError):
        board = Path("/proc/device-tree/model").read_text(encoding="utf-8", errors="replace")
        return board.rstrip("\0")
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        named = re.search(r"model name\s*: (.*)", text)
        if named:
            return named[1]
    return platform.processor()


def _read_some(number: int) -> bytes:
    try:
        return os.read(number, 65536)
    except OSError:
        return b""


def _why(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "not enough space there: the disk became full"
    where = f"{error.filename2 or error.filename}: " if error.filename else ""
    return f"{where}{os.strerror(error.errno) if error.errno else error}"


def main() -> None:
    """Do what the next line of the standard input asks for."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request = json.loads(sys.stdin.buffer.readline())
    client = Client(sys.stdin.fileno())
    action = {"deploy": deploy, "rollback": rollback, "state": state}[request["action"]]
    try:
        action(request, client)
    except Refused as reason:
        client.tell(step="refused", reason=str(reason))
    except OSError as error:
        client.tell(step="refused", reason=_why(error))


if __name__ == "__main__":
    main()
