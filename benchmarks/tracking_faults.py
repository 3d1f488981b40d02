"""Whether trainings end well, and are recorded as if undisturbed, when their tracking is disturbed.

Run: python benchmarks/tracking_faults.py --faults 50 [--jobs 2] [--publish docs/results]

Takes about 20 minutes. Each fault meets a real `ferry train` of a tiny experiment, at the start, in
the middle or at the end of what it sends: through a proxy in front of a real `mlflow server` that
misbehaves from one request on, or in a store of its own (the "local" ones), whose disk is a small
one. Then the fault is gone, and `ferry track --sync` must bring the server to what an undisturbed
training left there. Aims: every training ends, none waits for more than 5 s, every metric is on
disk, every run is whole and there once.
"""

import contextlib
import functools
import http.client
import http.server
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
import yaml
from benching import Line, parser, show

from pipeline.config import layout
from pipeline.records.train import TrainReport
from pipeline.tracking.journal import Metrics, journals
from pipeline.tracking.store import load_mlflow
from serving.files import read_json, read_record

TEMPLATE = "digits-mlp"
HOST = "127.0.0.1"
MOMENTS = {"start": 0.0, "middle": 0.5, "end": 0.95}
PROXIED = ("refused", "500", "hang", "slow", "trickle", "html", "cut", "sender", "training")
LOCAL = ("local disk", "local sender", "local training")
LONGEST_WAIT = 5.0
DISK_MIB = 8
EMPTY, RECORDS = "empty.db", 12
"""A store without runs, and how many records a training has."""
MOST_DIFFERENCES = 3
TIMED = ("train/seconds", "train/rows_per_second")
"""Metrics that no two trainings have alike."""
PAGE = b"<html><body>Please log in to the network.</body></html>"


@dataclass(slots=True)
class Found:
    """What came of a fault."""

    kind: str
    moment: str
    problems: list[str] = field(default_factory=list)
    waited: float = 0.0
    seconds: float = 0.0
    """Of the whole command, without one that was killed."""


def main() -> None:
    """Disturb, send what is left and compare; exit status 1 when anything is not as it must be."""
    arguments = parser(__doc__)
    arguments.add_argument("--faults", type=int, default=50)
    arguments.add_argument("--jobs", type=int, default=1, help="At once.")
    arguments.add_argument("--kind", choices=(*PROXIED, *LOCAL), help="Only of this kind.")
    given = arguments.parse_args()
    kinds = [given.kind] if given.kind else [*PROXIED, *LOCAL]
    faults = [(kind, moment) for moment in MOMENTS for kind in kinds]
    faults = (faults * (1 + given.faults // len(faults)))[: given.faults]
    with tempfile.TemporaryDirectory() as name, mlflow_server(Path(name)) as server:
        bench = Bench(Path(name), server)
        with ThreadPoolExecutor(given.jobs) as pool:
            found = list(pool.map(bench.disturb, range(len(faults)), faults))
    lines = list(summary(found))
    if given.jobs == 1:  # else each slows the others down
        lost = [each.seconds - bench.seconds for each in found]
        reached = f"{statistics.median(lost):.1f} (at most {max(lost):.1f})"
        lines.append(Line("whole command beyond an undisturbed one, s", reached, "-", None))
    show(lines, given.publish)
    sys.exit(any(line.met is False for line in lines))


def summary(found: list[Found]) -> Iterator[Line]:
    """The table of aims."""
    count = len(found)
    for what, word in (
        ("trainings under a tracking fault that end well", "training"),
        ("of these, with all metrics on disk", "disk"),
        ("`ferry track --sync` then leaves what an undisturbed one does, once", "sync"),
    ):
        good = sum(not any(one.startswith(word) for one in each.problems) for each in found)
        yield Line(what, f"{good} of {count}", f"{count} of {count}", good == count)
    worst = max(each.waited for each in found)
    yield Line("longest wait for tracking, s", f"{worst:.1f}", "5", worst <= LONGEST_WAIT)


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator["Server"]:
    """A real one, with a store of its own."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        command, stdout=quiet, stderr=quiet, cwd=folder, start_new_session=True
    ) as process:
        try:
            while not answers(port):
                time.sleep(0.2)
            yield Server(f"http://{HOST}:{port}", port, folder / "artifacts")
        finally:
            os.killpg(process.pid, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Server:
    """Where the server is, and where it keeps artifacts."""

    uri: str
    port: int
    artifacts: Path


def free_port() -> int:
    """One that nobody listens at."""
    with socket.create_server((HOST, 0)) as one:
        port: int = one.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as one:
        return one.connect_ex((HOST, port)) == 0


class Proxy:
    """Passes requests on to a server, and does worse from the request `strike` on."""

    def __init__(self, server: Server, kind: str, strike: float, do: Callable[[], None]) -> None:
        """`do` is called once, at that request, of whatever kind the fault is."""
        self.server, self.kind, self._do = server, kind, do
        self._strike = strike
        self.requests = 0
        self.struck, self.lifted = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._listener = self._listen(0)
        self.port = self._listener.server_address[1]

    def _listen(self, port: int) -> http.server.ThreadingHTTPServer:
        handler = type("Handler", (Handler,), {"proxy": self})
        listener = http.server.ThreadingHTTPServer((HOST, port), handler)
        listener.daemon_threads = True
        threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
        return listener

    def fault(self, method: str) -> str:
        """Which one the next request meets; "" for none."""
        with self._lock:
            self.requests += 1
            due = self.requests > self._strike and (self.kind != "cut" or method == "PUT")
            if due and not self.struck.is_set():
                self.struck.set()
                self._do()
                if self.kind == "refused":
                    self.close()
        return self.kind if self.struck.is_set() and not self.lifted.is_set() else ""

    def close(self) -> None:
        """Listen no more."""
        self._listener.shutdown()
        self._listener.server_close()

    def lift(self) -> None:
        """Behave again."""
        if self.kind == "refused" and self.struck.is_set():
            self._listener = self._listen(self.port)
        self.lifted.set()


class Handler(http.server.BaseHTTPRequestHandler):
    """One request at a proxy."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def handle_one_request(self) -> None:
        """Ends with the client."""
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def relay(self) -> None:
        """Pass it on, or do worse."""
        fault = self.proxy.fault(self.command)
        size = int(self.headers.get("Content-Length", 0))
        if fault == "refused":
            self.close_connection = True
        elif fault == "cut" and self.command == "PUT":
            self._ask(self.rfile.read(size // 2), cut=True)
            self.close_connection = True
        elif fault == "hang":
            self.rfile.read(size)
            self.proxy.lifted.wait()
            self.close_connection = True
        elif fault in {"500", "html"}:
            self.rfile.read(size)
            self._answer(500 if fault == "500" else 200, {"Content-Type": "text/html"}, PAGE)
        else:
            body = self.rfile.read(size)
            late = fault == "slow" and self.proxy.requests % 2
            time.sleep(2 if late else 0)
            status, headers, content = self._ask(body)
            time.sleep(2 if fault == "slow" and not late else 0)
            self._answer(status, headers, content, slowly=fault == "trickle")

    def _ask(self, body: bytes, *, cut: bool = False) -> tuple[int, Mapping[str, str], bytes]:
        with contextlib.closing(http.client.HTTPConnection(HOST, self.proxy.server.port)) as there:
            there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                there.putheader(name, value)
            there.endheaders(body)
            if cut:
                return 0, {}, b""
            answer = there.getresponse()
            kind = answer.getheader("Content-Type") or "application/json"
            return answer.status, {"Content-Type": kind}, answer.read()

    def _answer(
        self, status: int, headers: Mapping[str, str], content: bytes, *, slowly: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for index in range(len(content)) if slowly else ():
            if self.proxy.lifted.wait(1):
                self.close_connection = True
                return
            self.wfile.write(content[index : index + 1])
        self.wfile.write(b"" if slowly else content)


for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
    setattr(Handler, f"do_{method}", Handler.relay)


class Bench:
    """A project that is copied for each fault, and what an undisturbed training leaves."""

    def __init__(self, folder: Path, server: Server) -> None:
        """Prepare the project and train it undisturbed, three times."""
        self._folder, self._server = folder, server
        self._prepared = folder / "prepared"
        self._prepared.mkdir()
        shutil.copy("params.yaml", self._prepared)
        for command in (["pull", "digits"], ["preprocess", "digits"]):
            ferry(self._prepared, None, *command).wait()
        load_mlflow().MlflowClient(f"sqlite:///{folder}/{EMPTY}").search_experiments()
        plain = [self._undisturbed(number) for number in range(3)]
        self.seconds = statistics.median(seconds for _, seconds in plain)
        print(f"undisturbed: {self.seconds:.1f} s, {self._requests} requests", flush=True)

    def _undisturbed(self, number: int) -> tuple[Path, float]:
        project = self._project(f"plain-{number}")
        proxy = Proxy(self._server, "", float("inf"), lambda: None)
        uri = f"http://{HOST}:{proxy.port}"
        begin = time.monotonic()
        self._train(project, uri).wait()
        seconds = time.monotonic() - begin
        ferry(project, uri, "track", "--sync").wait()
        proxy.close()
        self._requests = proxy.requests
        self.wanted = self._view(project, self._server.uri)
        self._journal = journal_of(project)
        return project, seconds

    def _project(self, name: str) -> Path:
        """A copy, with one experiment, called so, for its runs to be found."""
        project = self._folder / name
        shutil.copytree(self._prepared, project)
        settings = yaml.safe_load((project / "params.yaml").read_text())
        one = settings["experiments"][TEMPLATE] | {"epochs": 3}
        settings |= {"short": [name], "students": {}, "experiments": {name: one}}
        (project / "params.yaml").write_text(yaml.safe_dump(settings))
        return project

    def _train(self, project: Path, uri: str) -> "subprocess.Popen[bytes]":
        return ferry(project, uri, "train", project.name)

    def disturb(self, number: int, fault: tuple[str, str]) -> Found:
        """Train under a fault, take it away, send what is left, and compare."""
        kind, moment = fault
        share = MOMENTS[moment]
        for name in ("first", "again", "sooner"):
            found = Found(kind, moment)
            project = self._project(f"fault-{number:02}-{name}")
            local = kind.startswith("local")
            strike = share * (RECORDS if local else self._requests)
            place = (Stored if local else Proxied)(project, self._server, kind, strike)
            with contextlib.closing(place):
                self._try(project, place, found)
            if place.struck.is_set():
                break
            share *= 0.7  # the training had ended before
        print(f"{number + 1:3} {kind} at the {moment}: waited {found.waited:.1f} s, ", end="")
        print("; ".join(found.problems) or "as undisturbed", flush=True)
        return found

    def _try(self, project: Path, place: "Proxied | Stored", found: Found) -> None:
        begin = time.monotonic()
        process = self._train(project, place.uri)
        place.watch(process)
        if process.wait() == -signal.SIGKILL:
            begin = time.monotonic()
            process = self._train(project, place.uri)
        if process.wait():
            found.problems.append(f"training: {process.returncode} {said(project)}")
        found.seconds = time.monotonic() - begin
        if not process.returncode:
            found.waited = report(project).tracking_seconds
            if journal_of(project) != self._journal or not metrics(project).is_file():
                found.problems.append("disk: metrics are missing")
        place.lift()
        sync = ferry(project, place.uri, "track", "--sync")
        if sync.wait():
            found.problems.append(f"sync: {sync.returncode} {said(project)}")
        seen = self._view(project, place.direct)
        found.problems += [f"sync: {one}" for one in differences(self.wanted, seen)]

    def _view(self, project: Path, uri: str) -> dict[str, object]:
        """All that MLflow shows of the project's one run, but times and names."""
        client = load_mlflow().MlflowClient(uri)
        experiment = client.get_experiment_by_name(project.name)
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        seen: dict[str, object] = {"runs": len(runs)}
        if len(runs) != 1:
            return seen
        (run,) = runs
        plain = functools.partial(re.sub, re.escape(project.name), "NAME")
        seen |= {"status": run.info.status, "name": plain(run.info.run_name)}
        seen |= {f"parameter {key}": plain(value) for key, value in run.data.params.items()}
        seen |= {
            f"tag {key}": plain(value) for key, value in run.data.tags.items() if key != "ferry.run"
        }
        for key in run.data.metrics:
            history = client.get_metric_history(run.info.run_id, key)
            seen[f"metric {key}"] = [
                (point.step, None if key in TIMED else point.value) for point in history
            ]
        for one in run.inputs.dataset_inputs:
            seen[f"data {one.dataset.name}"] = (one.dataset.digest, [*map(str, one.tags)])
        models = client.search_logged_models([experiment.experiment_id])
        seen["models"] = sorted((model.name, model.status.value) for model in models)
        where = unquote(urlsplit(run.info.artifact_uri).path)
        folder = Path(where)
        if run.info.artifact_uri.startswith("mlflow-artifacts:"):
            folder = self._server.artifacts / where.lstrip("/")
        for path in filter(Path.is_file, folder.rglob("*")):
            content = path.read_bytes().replace(project.name.encode(), b"NAME")
            seen[f"artifact {path.relative_to(folder)}"] = sha256(content).hexdigest()
        return seen


class Proxied:
    """A proxy before the server, and what it does to the processes of a training."""

    def __init__(self, _project: Path, server: Server, kind: str, strike: float) -> None:
        self._proxy = Proxy(server, kind, strike, lambda: kill(self._process, kind))
        self._process: subprocess.Popen[bytes] | None = None
        self.uri, self.direct = f"http://{HOST}:{self._proxy.port}", server.uri
        self.struck = self._proxy.struck

    def watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Of the training."""
        self._process = process

    def lift(self) -> None:
        """Take the fault away."""
        self._proxy.lift()

    def close(self) -> None:
        """End."""
        self._proxy.close()


class Stored:
    """A store in a file, and what happens to its disk, or to the processes of a training."""

    def __init__(self, project: Path, _server: Server, kind: str, strike: float) -> None:
        self._project, self._kind, self._strike = project, kind, strike
        self.struck = threading.Event()
        self._disk = project / "disk"
        self._disk.mkdir()
        if kind == "local disk":
            command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", self._disk]
            subprocess.run(command, check=True)
        if strike:
            shutil.copy(project.parent / EMPTY, self._disk / "mlflow.db")
        self.uri = self.direct = f"sqlite:///{self._disk}/mlflow.db"
        if kind == "local disk" and not strike:
            self._fill()

    def watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Strike as soon as so much is sent."""
        while process.poll() is None and not self.struck.is_set():
            runs = journals(self._project)
            if any(run.sent(self.uri).entries >= self._strike for run in runs):
                if self._kind == "local disk":
                    self._fill()
                kill(process, self._kind)
                self.struck.set()
            time.sleep(0.005)

    def _fill(self) -> None:
        self.struck.set()
        with contextlib.suppress(OSError), (self._disk / "filler").open("wb", 0) as file:
            while True:
                file.write(bytes(4096))

    def lift(self) -> None:
        """Take the fault away."""
        (self._disk / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        """End."""
        if self._kind == "local disk":
            subprocess.run(["umount", "--lazy", self._disk], check=True)


def kill(process: "subprocess.Popen[bytes] | None", kind: str) -> None:
    """The training, or the process that sends for it, where the fault is of that kind."""
    if process and kind.endswith("training"):
        process.kill()
    elif process and kind.endswith("sender"):
        for child in psutil.Process(process.pid).children():
            if any("pipeline.tracking.sending" in word for word in child.cmdline()):
                child.kill()


def ferry(project: Path, uri: str | None, *arguments: str) -> "subprocess.Popen[bytes]":
    """A command in a project."""
    place = {"MLFLOW_TRACKING_URI": uri} if uri else {}
    with (project / "output.txt").open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-c", "from pipeline.cli import main; main()", *arguments],
            stdout=file,
            stderr=file,
            cwd=project,
            env={**os.environ, **place},
        )


def said(project: Path) -> str:
    """The last line of its commands."""
    return (project / "output.txt").read_text(errors="replace").strip().splitlines()[-1]


def report(project: Path) -> TrainReport:
    """Of its training."""
    path = project / layout.details(project.name, "train")
    return read_record(TrainReport, read_json(path), str(path))


def metrics(project: Path) -> Path:
    """The file of its training."""
    return project / layout.report_files(project.name, "train").metrics


def journal_of(project: Path) -> set[tuple[str, int, float | str | None]]:
    """All values of metrics that are on its disk, but those of time."""
    entries = [one for run in journals(project) for one in run.entries()]
    points = [point for one in entries if isinstance(one, Metrics) for point in one.points]
    return {(one.key, one.step, None if one.key in TIMED else one.value) for one in points}


def differences(wanted: Mapping[str, object], seen: Mapping[str, object]) -> list[str]:
    """What two views do not have in common."""
    keys = [key for key in {**wanted, **seen} if wanted.get(key) != seen.get(key)]
    told = [f"{key}: {seen.get(key)} and not {wanted.get(key)}" for key in keys]
    return told[:MOST_DIFFERENCES]


if __name__ == "__main__":
    main()
