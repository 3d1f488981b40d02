"""The program that brings journals to MLflow, in a process of its own.

One that hangs in a server's hands can be killed, its import of MLflow takes no time from a
training, and where the stage is killed it ends by itself.
"""

import contextlib
import fcntl
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.tracking import journal
from pipeline.tracking.journal import Begun, Journal
from pipeline.tracking.store import load_mlflow, open_store, store_root, store_uri
from pipeline.tracking.upload import MOST_CHARACTERS, Upload
from serving.console import DASH, columns
from serving.errors import IntegrityError, one_line

logger = logging.getLogger(__name__)

PROGRAM = f"from {__name__} import main; main()"
UNKNOWN = Begun(experiment=DASH, name="", labels={}, adopts=None, begun_ms=0)
"""The run of a journal that cannot be read."""
SECONDS_BETWEEN_LOOKS = 0.3
SECONDS_AFTER_PROBLEM = 2.0
SECONDS_ALONE = 10.0
"""That the process goes on when the stage was killed."""


class Sender:
    """The process, as the stage that starts it sees it."""

    def __init__(self) -> None:
        """Start it. It begins with importing MLflow."""
        theirs, ours = os.pipe()
        # A file, for a pipe that nobody reads would stop it once it is full.
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `finish`
        # A session of its own: Ctrl-C is for the training.
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=theirs,
            stdout=self._messages,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs)
        self._input = os.fdopen(ours, "w")
        self._trouble = ""

    def follow(self, run_id: str) -> None:
        """Have it send the run `run_id`, now and as it grows."""
        with contextlib.suppress(BrokenPipeError):  # it died; what it did not send is kept
            self._input.write(f"{run_id}\n")
            self._input.flush()

    def finish(self, seconds: float) -> str:
        """Let it send what there is, for some seconds at most, and end it; what went wrong."""
        if self._messages.closed:
            return self._trouble
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        try:
            status = self.process.wait(seconds)
            self._trouble = f"the process that sends it ended with {status}" if status else ""
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self._trouble = f"it takes more than {seconds:g} s"
        with self._messages as file:
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines():
                logger.warning("%s", line)
        return self._trouble


def main() -> None:
    """Send the runs that the standard input names, until its end; others while there is time."""
    _log_to_stage()
    stage = _Stage()
    sent = True
    others = iter(journal.journals(store_root()))
    while True:
        ended = stage.ended.is_set()  # before the look, for what was written last is sent as well
        if stage.runs:
            sent = all(send(journal.of_run(store_root(), one)) for one in stage.runs)
        else:
            with contextlib.suppress(ImportError):  # which is told of the run
                load_mlflow()
        if ended:
            return
        # What earlier stages had no time or no server for.
        other = next(others, None) if sent else None
        if other and other.run_id not in stage.runs and not is_sent(other):
            send(other, stage.ended.is_set)
        stage.ended.wait(SECONDS_BETWEEN_LOOKS if sent else SECONDS_AFTER_PROBLEM)


def _log_to_stage() -> None:
    """Let the stage have ferry's warnings alone: what libraries print is lost."""
    stage = os.fdopen(os.dup(1), "w")
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
    logging.getLogger("pipeline").addHandler(logging.StreamHandler(stage))


class _Stage:
    """What the stage tells by the standard input: a line for each run, and its own end."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.ended = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            self.runs.append(line.strip())
        self.ended.set()
        # A stage that lives kills this process earlier.
        timer = threading.Timer(SECONDS_ALONE, os._exit, (1,))
        timer.daemon = True
        timer.start()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """How much of a run the server has."""

    run: str
    experiment: str
    begun: str
    """In the time of this machine."""
    records: int
    sent: int
    problem: str
    refused: tuple[str, ...]


def state_of(run: Journal) -> RunState:
    """Compare the journal of a run with what was sent of it."""
    sent = run.sent(store_uri())
    try:
        entries = run.entries()
    except IntegrityError as error:
        entries, sent = [], replace(sent, problem=str(error))
    begun = next((one for one in entries if isinstance(one, Begun)), UNKNOWN)
    return RunState(
        run=run.run_id,
        experiment=begun.experiment,
        begun=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(begun.begun_ms / 1000)),
        records=len(entries),
        sent=sent.entries,
        problem=sent.problem,
        refused=sent.refused,
    )


def is_sent(run: Journal) -> bool:
    """Whether the server has all of a run."""
    state = state_of(run)
    return state.sent == state.records and not state.problem


def states() -> list[RunState]:
    """How much the server has of every run, the oldest first."""
    return [state_of(one) for one in journal.journals(store_root())]


def as_table(runs: Sequence[RunState]) -> str:
    """A line for each run."""
    header = ("run", "experiment", "begun", "sent", "")
    rows = [
        (one.run[:8], one.experiment, one.begun, f"{one.sent} of {one.records}", _note(one))
        for one in runs
    ]
    return columns([header, *rows]) if rows else "no run was recorded here"


def _note(run: RunState) -> str:
    problems = (run.problem, *(f"refused: {one}" for one in run.refused))
    return "; ".join(filter(None, problems))


def sync(log: Callable[[str], None]) -> list[RunState]:
    """Send what is left of every run; `log` is given a line before each. The state of all then."""
    for one in journal.journals(store_root()):
        state = state_of(one)
        left = state.records - state.sent
        if left > 0:
            log(f"{state.experiment} of {state.begun}: {left} of {state.records} records")
            send(one)
    return states()


def send(run: Journal, stop: Callable[[], bool] = lambda: False) -> bool:
    """Bring a run to the server, and note what it has then; whether nothing went wrong.

    A problem is noted with it. Where another process is sending this run, it is waited for. `stop`
    is asked after each record.
    """
    if not run.path.is_file():
        return True
    with _alone(run):
        sent = run.sent(store_uri())
        try:
            entries = run.entries()
            if sent.entries < len(entries):
                upload = Upload(open_store(), run, sent)
                for entry in entries[sent.entries :]:
                    if stop():
                        break
                    upload.send(entry)
        except Exception as error:  # noqa: BLE001 - whatever it was, it is told and tried again
            run.note_sent(replace(run.sent(store_uri()), problem=one_line(error, MOST_CHARACTERS)))
            return False
    return True


@contextlib.contextmanager
def _alone(run: Journal) -> Iterator[None]:
    """Keep other processes from sending the same run."""
    with run.path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
