"""A real `mlflow server` of this machine that asks for a user and a password."""

import base64
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

USER, PASSWORD = "admin", "correct-horse-battery"
CONFIG = """[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/users.db
admin_username = {user}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""
SECONDS_TO_START = 90.0


@dataclass(frozen=True)
class TrackingServer:
    """Where it answers."""

    port: int

    @property
    def url(self) -> str:
        """Without the user, who is named by MLFLOW_TRACKING_USERNAME."""
        return f"http://127.0.0.1:{self.port}"

    def url_of(self, password: str = PASSWORD) -> str:
        """With the user and a password."""
        return f"http://{USER}:{password}@127.0.0.1:{self.port}"


@contextmanager
def tracking_server(folder: Path, empty_store: Path) -> Iterator[TrackingServer]:
    """A server whose runs and artifacts lie in the folder, until the block ends."""
    shutil.copy(empty_store, folder / "mlflow.db")
    (folder / "auth.ini").write_text(CONFIG.format(folder=folder, user=USER))
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        server = TrackingServer(one.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    command += ["--host", "127.0.0.1", "--port", str(server.port), "--workers", "1"]
    secrets = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test",
    }
    clean = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    log = folder / "server.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            cwd=folder,
            env=clean | secrets,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as process,
    ):
        try:
            _await(server, process, log)
            yield server
        finally:
            os.killpg(process.pid, 9)


def _await(server: TrackingServer, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until it has answered once: its first answer to a user takes long."""
    request = urllib.request.Request(
        f"{server.url}/api/2.0/mlflow/experiments/search?max_results=1"
    )
    token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    request.add_header("Authorization", f"Basic {token}")
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(request, timeout=SECONDS_TO_START).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"the server did not start: {log.read_text()[-2000:]}")
