"""A real sshd on loopback with keys and settings of its own, and ssh's settings to reach it."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ALIAS = "device"
"""What the settings call it."""


@dataclass(frozen=True)
class SshServer:
    """Where it is, and the files of who asks."""

    folder: Path
    port: int
    process: "subprocess.Popen[bytes]"

    @property
    def config(self) -> Path:
        return self.folder / "ssh_config"

    def settings(self, name: str, **changed: object) -> Path:
        """Another file of settings, with some that differ."""
        values = {
            "HostName": "127.0.0.1",
            "Port": self.port,
            "User": getpass.getuser(),
            "IdentityFile": self.folder / "key",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.folder / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
        }
        lines = (f'  {key} "{value}"' for key, value in (values | changed).items())
        path = self.folder / name
        path.write_text("\n".join([f"Host {ALIAS}", *lines, ""]))
        return path

    def sessions(self) -> list[int]:
        """The processes of connections that are open; not what runs in them."""
        command = ["pgrep", "-x", "sshd(-.*)?"]
        every = {int(one) for one in subprocess.run(command, capture_output=True).stdout.split()}
        return [one for one in below(self.process.pid) if one in every]


def below(pid: int) -> list[int]:
    """The processes that a process started, and those that they did."""
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True)
    children = [int(one) for one in done.stdout.split()]
    return [*children, *(one for child in children for one in below(child))]


def missing() -> str:
    """What this machine lacks for it, or ""."""
    sbin = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    for name in ("sshd", "ssh", "ssh-keygen", "rsync", "pgrep"):
        if shutil.which(name, path=sbin) is None:
            return f"{name} is not installed"
    return ""


def make_key(path: Path) -> str:
    """Make a key without a password; its public half."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True)
    return path.with_name(f"{path.name}.pub").read_text()


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """Serve from `folder`, on a free port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    host, _ = make_key(folder / "host_key"), make_key(folder / "stranger")
    (folder / "authorized").write_text(make_key(folder / "key"))
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host}[::1]:{port} {host}")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd of root shuts its children in
    given = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "authorized",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
        "MaxStartups": "100",
    }
    config = folder / "sshd_config"
    config.write_text("".join(f"{key} {value}\n" for key, value in given.items()))
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    command = [str(sshd), "-D", "-e", "-f", str(config)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    server = SshServer(folder, port, process)
    server.settings("ssh_config")
    try:
        await_port(port, folder / "log")
        yield server
    finally:
        process.terminate()
        process.wait()


def await_port(port: int, log: Path) -> None:
    """Wait until somebody listens."""
    for _ in range(100):
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise OSError(f"sshd does not listen: {log.read_text()}")
