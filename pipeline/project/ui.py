"""`ferry ui`: the project's runs in MLflow's own pages, for this machine alone."""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO

from pipeline.tracking.sending import sync
from pipeline.tracking.store import (
    DEFAULTS,
    SQLITE,
    artifact_root,
    load_mlflow,
    path_of,
    prepare,
    store_uri,
)
from pipeline.tracking.view import address_of_results
from serving.errors import EngineError, UsageError
from serving.files import require

HOST = "127.0.0.1"
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_END = 10.0


def ui(port: int, opened: Callable[[str], None]) -> None:
    """Serve the pages until Ctrl-C; `opened` is called with their address once they answer.

    Raises MissingInputError where nothing was recorded yet, OutputError for a store that cannot be
    used, UsageError for a port that is taken and for runs that are kept elsewhere, and EngineError
    where MLflow ends by itself.
    """
    store = store_uri()
    if store.startswith("http"):
        raise UsageError(f"the runs are kept at {store}: open that in a browser")
    if store.startswith(SQLITE):
        require(path_of(store), "ferry train EXPERIMENT")
    if importlib.util.find_spec("mlflow") is None:
        raise ModuleNotFoundError(name="mlflow")
    if _answers(port):
        raise UsageError(f"--port {port} of {HOST} is taken; choose another one")
    prepare()
    sync(lambda _: None, again=False)
    with (
        contextlib.suppress(KeyboardInterrupt),
        tempfile.TemporaryFile() as output,
        _server(store, port, output) as process,
    ):
        while process.poll() is None and not _answers(port):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if process.poll() is None:
            opened(f"http://{HOST}:{port}{_page(store)}")
        process.wait()
        output.seek(0)
        said = output.read().decode(errors="replace").splitlines()
        raise EngineError(f"MLflow ended: {said[-1] if said else 'it said nothing'}")


def _page(store: str) -> str:
    """The page to begin with."""
    client = load_mlflow().MlflowClient(store)
    return address_of_results(
        [one.experiment_id for one in client.search_experiments() if one.experiment_id != "0"]
    )


def _answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex((HOST, port)) == 0


@contextlib.contextmanager
def _server(store: str, port: int, output: IO[bytes]) -> Iterator["subprocess.Popen[bytes]"]:
    """MLflow's server, which ends with the block, and with it the processes that it starts."""
    command = [sys.executable, "-P", "-m", "mlflow", "server"]
    command += ["--host", HOST, "--port", str(port), "--workers", "1", "--app-name", "ferry"]
    if place := artifact_root():
        # Also for an experiment that is begun in the pages: ferry goes on with it by its name.
        command += ["--default-artifact-root", place]
    # A session of its own, for Ctrl-C ends it with tracebacks.
    with subprocess.Popen(
        command,
        # Others see the arguments of a process, and the store's address may hold a password. The
        # processes that it starts shall not import a folder of the project either.
        env={
            **DEFAULTS,
            **os.environ,
            "MLFLOW_BACKEND_STORE_URI": store,
            "PYTHONSAFEPATH": "1",
            "UVICORN_APP_DIR": os.devnull,
        },
        stdout=output,
        stderr=output,
        start_new_session=True,
    ) as process:
        # Whoever stops ferry in another way stops the server as well.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            yield process
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(SECONDS_TO_END)
