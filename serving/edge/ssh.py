"""Talk with a device: run what `serving.edge.on_device` says there, and send it files.

One connection of the system's ssh holds the conversation, and rsync goes through it as well. It is
asked for nothing: who logs in with a password opens a shared connection first, or makes a key. A
target of this machine needs no ssh.
"""

import contextlib
import json
import os
import re
import select
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from serving.edge import folder, on_device
from serving.edge.targets import DeviceTarget
from serving.errors import FerryError, MissingInputError

CONNECT_SECONDS = 10
ALIVE_SECONDS = 10
"""Between two signs of life, on the network and from us to the device."""
END_SECONDS = 20.0
"""To wait for the device to put in order what it has begun."""
LONGEST_SOCKET = 85
"""Bytes of the path of ssh's socket, to which it adds up to 18 of the 108 that there may be."""
BEGIN = """\
import sys
if sys.version_info < (3, 8): sys.exit("too old: %d.%d" % sys.version_info[:2])
import json, types
for name, text in json.loads(sys.stdin.buffer.readline()):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
module.main()
"""
"""What the device's Python is started with: it reads the modules, which it keeps nowhere."""
BOOT = f"exec({BEGIN!r})"
"""The same on one line, for any shell."""
SENT = (folder, on_device)
WORDS: Mapping[str, set[str]] = {
    "refused": {"reason"},
    "upload": {"to", "like"},
    "done": {"path", "record", "half"},
}
"""What a device tells with a step, besides what is optional."""
SSH_FAILED, NOT_EXECUTED, NOT_FOUND = 255, 126, 127
"""Exit statuses: of ssh itself, and of a shell for a program that it cannot start."""


class DeviceError(FerryError, OSError):
    """A device that cannot be reached, or that does not take what it is sent."""

    def __init__(self, message: str) -> None:
        super().__init__(_printable(message))


class StoppedError(DeviceError):
    """A deployment that is given up here, for instance by Ctrl-C."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How devices are reached."""

    ssh_config: Path | None = None
    """In place of ~/.ssh/config."""
    python: str = "python3"
    """The Python there that has numpy and onnxruntime."""
    stop: threading.Event
    """Set when everything is to be given up."""


class Conversation:
    """One request to a device, and what it tells."""

    def __init__(
        self, target: DeviceTarget, access: Access, shared: Sequence[str], errors: IO[bytes]
    ) -> None:
        """With options by which rsync's ssh takes the same connection, and a file for errors."""
        self.target, self.access, self.shared, self._errors = target, access, shared, errors
        self.steadfast = False
        """Whether to hear the device out, even if all is to be given up."""
        self._process = _started(self._command(), stderr=errors)
        self._heard, self._lines = b"", 0
        self._said = time.monotonic()

    def _command(self) -> list[str]:
        python, login = self.access.python, self.target.login
        if login is None:
            return [os.path.expanduser(python), "-I", "-c", BOOT]  # noqa: PTH111 - never raises
        master = ["-o", "ControlMaster=yes"] if self.shared else []
        remote = f"{_quoted(python)} -I -c {shlex.quote(BOOT)}"
        return [*ssh_words(self.access), *self.shared, *master, "--", login, remote]

    def close(self) -> None:
        """End it: a device that was not told to switch puts in order what it has begun."""
        pipes = self._process.stdin, self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            if pipes[0]:
                pipes[0].close()
        try:
            self._process.wait(END_SECONDS if self._lines else 0.3)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if pipes[1]:
            pipes[1].close()

    def say(self, word: str) -> None:
        """Say a word to the device, or nothing as a sign of life."""
        self._said = time.monotonic()
        # That it is gone is told where it is listened to.
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin:
                self._process.stdin.write(f"{word}\n".encode())
                self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """What the device tells next; DeviceError when it refuses, or is not there any more."""
        while True:
            while b"\n" not in self._heard:
                self._heard += self._read()
            line, _, self._heard = self._heard.partition(b"\n")
            if line.startswith(on_device.MARK.encode()):
                break
        self._lines += 1
        try:
            told = _printable(json.loads(line[len(on_device.MARK) :]))
        except (ValueError, RecursionError):
            told = None
        step = told.get("step") if isinstance(told, dict) else None
        if not isinstance(step, str) or not WORDS.get(step, set()) <= set(told):
            raise DeviceError(f"it does not answer as ferry does: {line[:60]!r}")
        if step == "refused":
            raise DeviceError(str(told["reason"]))
        return dict(told)

    def _read(self) -> bytes:
        """What has come, perhaps nothing yet; it raises where nothing will come."""
        self.live()
        pipe = self._process.stdout
        if pipe is None or not select.select([pipe], [], [], 0.3)[0]:
            return b""
        content = os.read(pipe.fileno(), 65536)
        if not content:
            raise self._ended()
        return content

    def live(self) -> None:
        """Give a sign of life when it is time; StoppedError where all is to be given up."""
        if self.access.stop.is_set() and not self.steadfast:
            raise StoppedError("given up here, nothing is changed there")
        if time.monotonic() - self._said > ALIVE_SECONDS:
            self.say("")

    def send(self, source: Path, names: Sequence[str], to: str, like: str | None) -> None:
        """Let rsync send the files `names` below `source` to the folder `to` of the device.

        `like` is a folder there whose equal files are copied instead. A link to them would be
        smaller, but what spoils one version would spoil the one before as well.
        """
        options = ["--checksum", "--timeout=60", "--files-from=-"]
        # Where the path needs it only: the rsync of some systems does not know the option.
        options += ["--protect-args"] if shlex.quote(to) != to else []
        options += [f"--copy-dest={like}"] if like else []
        where = f"{to}/"
        if self.target.login:
            words = [*ssh_words(self.access), *self.shared]
            options += ["-e", " ".join('"' + word.replace('"', '""') + '"' for word in words)]
            user, at, host = self.target.login.rpartition("@")
            where = f"{user}{at}{f'[{host}]' if ':' in host else host}:{where}"
        command = ["rsync", *options, "--", f"{source}/", where]
        process = _started(command, stderr=subprocess.PIPE)
        try:
            given: bytes | None = "".join(f"{name}\n" for name in names).encode()
            wrong: bytes | None = None
            while wrong is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    _, wrong = process.communicate(given, timeout=0.3)
                given = None
                self.live()
                if self._process.poll() is not None:
                    raise self._ended()
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            raise DeviceError(_why_not_sent(wrong.decode(errors="replace"), process.returncode))

    def _ended(self) -> DeviceError:
        """Why the device is not there any more."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # it only closed its stdout
            self._process.wait(END_SECONDS)
        code = self._process.poll()
        self._errors.seek(0)
        wrong = self._errors.read().decode(errors="replace")
        if self._lines:
            ask = "; perhaps it serves the new version: ask `ferry devices`"
            why = _last(wrong) or f"exit status {code}"
            return DeviceError(f"the connection was lost: {why}{ask if self.steadfast else ''}")
        if code == SSH_FAILED and self.target.login:
            return DeviceError(_why_no_ssh(wrong, self.target.login, self.access))
        python = self.access.python
        if code in (NOT_EXECUTED, NOT_FOUND) or "not found" in wrong.lower():
            return DeviceError(
                f"there is no {python} there that can be run: install it (apt install python3), "
                f"or name another with --python"
            )
        if found := re.search(r"^too old: (\S+)", wrong, re.MULTILINE):
            return DeviceError(f"{python} there is {found[1]}; it must be 3.8 or newer")
        return DeviceError(f"{python} there ended at once: {_last(wrong) or f'exit status {code}'}")


@contextlib.contextmanager
def conversation(
    target: DeviceTarget, access: Access, request: Mapping[str, object]
) -> Iterator[Conversation]:
    """Ask a device for something, as `on_device.main` takes it; DeviceError names the target."""
    if access.stop.is_set():
        raise StoppedError("given up here, nothing is changed there")
    with (
        tempfile.TemporaryDirectory(prefix="ferry-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as errors,
    ):
        socket, shared = f"{folder}/ssh", []
        if target.login and len(socket) <= LONGEST_SOCKET and not _shares(target.login, access):
            shared = ["-o", f"ControlPath={socket}"]
        talk = Conversation(target, access, shared, errors)
        try:
            sources = [(one.__name__, Path(one.__file__ or "").read_text("utf-8")) for one in SENT]
            talk.say(json.dumps(sources))
            talk.say(json.dumps(request))
            yield talk
        finally:
            talk.close()


def _printable(told: Any) -> Any:
    """What a device told, with blanks for what is no letter: a terminal would obey it."""
    if isinstance(told, str):
        return "".join(one if one.isprintable() else " " for one in told)
    if isinstance(told, list):
        return [_printable(one) for one in told]
    if isinstance(told, dict):
        return {_printable(name): _printable(value) for name, value in told.items()}
    return told


def ssh_words(access: Access) -> list[str]:
    """How ssh is called, without the host."""
    config = ["-F", str(access.ssh_config)] if access.ssh_config else []
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": CONNECT_SECONDS,
        "ServerAliveInterval": ALIVE_SECONDS,
        "ServerAliveCountMax": 3,
        "ClearAllForwardings": "yes",
        "RemoteCommand": "none",
        "LogLevel": "ERROR",
    }
    return ["ssh", *config, "-T", *(f"-o{key}={value}" for key, value in options.items())]


def _started(command: Sequence[str], stderr: Any) -> "subprocess.Popen[bytes]":
    """Start a program that a Ctrl-C at the terminal does not reach: it is ended in good order."""
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=stderr, start_new_session=True
        )
    except OSError as error:
        if package := {"ssh": "openssh-client", "rsync": "rsync"}.get(command[0]):
            raise MissingInputError(
                f"{command[0]} is not installed here: apt install {package}"
            ) from error
        raise DeviceError(f"{command[0]} cannot be run here: {error.strerror}") from error


def _settings(login: str, access: Access) -> dict[str, str]:
    """What the user's settings say of a host, by their names in lower case."""
    process = _started([*ssh_words(access), "-G", "--", login], stderr=subprocess.PIPE)
    said, wrong = process.communicate()
    if process.returncode:
        raise DeviceError(_last(wrong.decode(errors="replace")))
    lines = said.decode(errors="replace").splitlines()
    return {key: value for key, _, value in (line.partition(" ") for line in lines)}


def _shares(login: str, access: Access) -> bool:
    """Whether the user's own settings share a connection, perhaps one with a password."""
    return _settings(login, access).get("controlpath", "none") != "none"


def _quoted(python: str) -> str:
    """A program for a shell, below the home folder there where it begins so."""
    home, rest = ("~/", python[2:]) if python.startswith("~/") else ("", python)
    return home + shlex.quote(rest)


def _why_no_ssh(wrong: str, login: str, access: Access) -> str:
    """What ssh said, with what to do about it."""
    if "HOST IDENTIFICATION HAS CHANGED" in wrong:
        known = _settings(login, access)
        host, port = known.get("hostkeyalias") or known["hostname"], known["port"]
        host = host if port == "22" or "hostkeyalias" in known else f"[{host}]:{port}"
        file = re.search(r"Offending .*key in (.+):\d+", wrong)
        where = f"-f {shlex.quote(file[1])} " if file else ""
        return (
            f"its host key has changed: another device, or somebody between; if you know why, "
            f"`ssh-keygen {where}-R {shlex.quote(host)}` forgets the old key"
        )
    if "Host key verification failed" in wrong:
        return f"its host key is not known: `ssh {login}` shows it once, to be accepted"
    if "Permission denied (" in wrong:
        return f"{login} may not log in: `ssh-copy-id {login}` brings your key there"
    if "Could not resolve hostname" in wrong:
        return f"there is no such host: {_last(wrong)}"
    return _last(wrong) or "ssh cannot connect"


def _why_not_sent(wrong: str, code: int) -> str:
    if "No space left" in wrong or "quota exceeded" in wrong:
        return "not enough space there: the disk became full during the upload"
    lines = [line for line in wrong.splitlines() if line.strip()]
    return f"the upload failed: {lines[0].strip() if lines else f'rsync ended with {code}'}"


def _last(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
