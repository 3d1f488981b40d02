"""The program that brings journals to MLflow, in a process of its own.

One that hangs in a server's hands can be killed, its import of MLflow takes no time from a
training, and where the stage is killed it ends by itself.
"""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from pipeline.tracking import journal
from pipeline.tracking.journal import SENT, RunJournal
from pipeline.tracking.store import load_mlflow, open_store, store_key, store_root
from pipeline.tracking.upload import MOST_CHARACTERS, Upload
from serving.batch.lock import lock_output
from serving.console import columns
from serving.errors import OutputError, one_line

logger = logging.getLogger(__name__)

PROGRAM = f"from {__name__} import {{0}}; {{0}}()"
SECONDS_BETWEEN_LOOKS = 0.3
SECONDS_AFTER_PROBLEM, MOST_SECONDS_AFTER_PROBLEM = 2.0, 300.0
"""Twice as long each time: a server that refuses a password may count the tries."""
SECONDS_ALONE = 10.0
"""That the process goes on when the stage was killed."""
SECONDS_TO_WAIT = 20.0
"""For another process that sends the same run."""
SECONDS_TO_END = 10.0
"""For a process that has nothing more to say."""
SECONDS_OF_SILENCE = 60.0
"""After which a record that no server takes is given up by `sync`."""
BYTES_A_SECOND = 100_000
"""That a large file is given beyond that."""
SILENCE = "the server said nothing"
MOST_SILENT = 2
"""Runs in a row that a server is silent at, after which no other is tried."""


class Sender:
    """A process that sends, as the command that starts it sees it."""

    def __init__(self, program: str = "main", runs: Sequence[str] = ()) -> None:
        """Start a function of this module. It begins with importing MLflow."""
        self.process: subprocess.Popen[bytes] | None = None
        self.silent = False
        """Whether it was killed, for it said nothing."""
        self._trouble: str | None = None
        try:
            # A session of its own: Ctrl-C is for the training.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM.format(program), *runs],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            self._trouble = f"no process can be started that sends it: {one_line(error)}"

    def follow(self, run_id: str) -> None:
        """Have it send the run `run_id`, now and as it grows."""
        if self.process and self.process.stdin:
            with contextlib.suppress(BrokenPipeError):  # it died; what it did not send is kept
                self.process.stdin.write(f"{run_id}\n".encode())
                self.process.stdin.flush()

    def says(self, seconds: float) -> str:
        """Its next line; "" when it has ended, or has been killed, for it said none for so long."""
        if self.process is None or self.process.stdout is None:
            return ""
        timer = threading.Timer(seconds, self._give_up, (self.process,))
        timer.start()
        try:
            return self.process.stdout.readline().decode(errors="replace")
        finally:
            timer.cancel()

    def _give_up(self, process: "subprocess.Popen[bytes]") -> None:
        self.silent = True
        process.kill()

    def finish(self, seconds: float) -> str:
        """Let it send what there is, for some seconds at most, and end it; what went wrong."""
        if self._trouble is None and self.process:
            self._trouble = _ended(self.process, seconds)
        return self._trouble or ""


def _ended(process: "subprocess.Popen[bytes]", seconds: float) -> str:
    """Wait for the end of a process, or kill it, and log what it said; what went wrong."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close() if process.stdin else None
    try:
        status = process.wait(seconds)
        trouble = f"the process that sends it ended with {status}" if status else ""
    except subprocess.TimeoutExpired:
        process.kill()
        trouble = f"it takes more than {seconds:g} s"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)  # not for ever, as for one that waits for a lost disk
    if process.stdout:
        os.set_blocking(process.stdout.fileno(), False)
        said = (process.stdout.read() or b"").decode(errors="replace")
        for line in dict.fromkeys(said.splitlines()):
            logger.warning("%s", line)
        process.stdout.close()
    return trouble


def main() -> None:
    """Send the runs that the standard input names, until its end; others while there is time."""
    # Nobody reads it before the end: what is too much for the pipe is lost and stops nothing.
    os.set_blocking(_log_to_parent().fileno(), False)
    stage = _Stage()
    sent, pause = True, SECONDS_BETWEEN_LOOKS
    others = iter(journal.journals(store_root()))
    while True:
        ended = stage.ended.is_set()  # before the look, for what was written last is sent as well
        if stage.runs:
            tried = [send(journal.of_run(store_root(), one)) for one in stage.runs]
            sent = all(tried)
        else:
            with contextlib.suppress(ImportError):  # which is told of the run
                load_mlflow()
        if ended:
            return
        # What earlier stages had no time or no server for.
        other = next(others, None) if sent else None
        if other and other.run_id not in stage.runs and not is_sent(other):
            send(other, stage.ended.is_set)
        longer = min(max(2 * pause, SECONDS_AFTER_PROBLEM), MOST_SECONDS_AFTER_PROBLEM)
        pause = SECONDS_BETWEEN_LOOKS if sent else longer
        stage.ended.wait(pause)


def send_once() -> None:
    """Send the runs that the arguments name, and say which before each record."""
    stream = _log_to_parent()

    def tell() -> bool:
        stream.write(f"{run}\n")
        stream.flush()
        return False

    threading.Thread(target=_end_with_parent, daemon=True).start()
    for run in sys.argv[1:]:
        tell()
        send(journal.of_run(store_root(), run), tell, again=True)
    os._exit(0)  # the thread still listens


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


def _log_to_parent() -> TextIO:
    """Let the command have ferry's warnings alone: what libraries print is lost."""
    stream = os.fdopen(os.dup(1), "w")
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
    logging.getLogger("pipeline").addHandler(logging.StreamHandler(stream))
    return stream


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


def state_of(run: RunJournal) -> RunState:
    """Compare the journal of a run with what was sent of it."""
    sent, begun = run.sent(store_key()), run.begun()
    return RunState(
        run=run.run_id,
        experiment=begun.experiment,
        begun=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(begun.begun_ms / 1000)),
        records=run.count(),
        sent=sent.entries,
        problem=sent.problem,
        refused=sent.refused,
    )


def is_sent(run: RunJournal) -> bool:
    """Whether the server has all of a run."""
    state = state_of(run)
    return state.sent >= state.records and not state.problem


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


def sync(log: Callable[[str], None], *, again: bool = True) -> list[RunState]:
    """Send what is left of every run; `log` is given a line before each. The state of those left.

    With `again`, runs are looked at as well of which all was sent: the server may have a new store.
    A run that the server is silent at is given up; after some of them no more are tried.
    """
    runs = [one for one in journal.journals(store_root()) if again or not is_sent(one)]
    wanted = {one.run_id: one.count() for one in runs}
    left, silent = runs, 0
    while left and silent < MOST_SILENT:
        done = _deliver(left, log)
        # Not in a row, where it took some in between.
        silent = 1 if done else silent + 1
        left = left[done + 1 :]
    found = [state_of(one) for one in runs]
    # What grows meanwhile is for the stage to send.
    return [one for one in found if one.problem or one.sent < wanted[one.run]]


def is_silent(left: Sequence[RunState]) -> bool:
    """Whether a run is left because the server said nothing."""
    return any(one.problem.startswith(SILENCE) for one in left)


def _deliver(runs: Sequence[RunJournal], log: Callable[[str], None]) -> int:
    """Send runs in a process, until it has nothing to say for too long; how many it ended."""
    sender, at = Sender("send_once", [one.run_id for one in runs]), -1
    seconds = SECONDS_OF_SILENCE
    try:
        while line := sender.says(seconds).strip():
            if at + 1 < len(runs) and line == runs[at + 1].run_id:
                at += 1
                seconds = SECONDS_OF_SILENCE + runs[at].largest() / BYTES_A_SECOND
                state = state_of(runs[at])
                if left := state.records - state.sent:
                    log(f"{state.experiment} of {state.begun}: {left} of {state.records} records")
            elif line != runs[at].run_id:
                logger.warning("%s", line)
        trouble = sender.finish(SECONDS_TO_END)
    finally:
        sender.finish(0)  # after Ctrl-C
    if not trouble:
        return len(runs)
    if sender.silent:
        trouble = f"{SILENCE} for {seconds:.0f} s"
    at = max(at, 0)
    _note_problem(runs[at], trouble)
    return at


def send(run: RunJournal, stop: Callable[[], bool] = lambda: False, *, again: bool = False) -> bool:
    """Bring a run to the server, and note what it has then; whether nothing went wrong.

    A problem is noted with it. Another process that sends this run is waited for. `stop` is asked
    before each record. With `again`, a run is looked at of which all was sent: its store may be a
    new one.
    """
    if not again and run.sent(store_key()).entries >= run.count():
        return True
    try:
        with lock_output(run.folder / SENT, SECONDS_TO_WAIT):
            return _send(run, stop)
    except OutputError as error:
        logger.warning("%s", one_line(error))
        return False


def _send(run: RunJournal, stop: Callable[[], bool]) -> bool:
    try:
        upload = Upload(open_store(), run, run.sent(store_key()))
        lines = run.lines()
        for number in range(upload.resume(len(lines)) + 1, len(lines) + 1):
            if stop():
                break
            upload.send(lines[number - 1], number)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is told and tried again
        _note_problem(run, one_line(error, MOST_CHARACTERS))
        return False
    if run.sent(store_key()).problem:
        _note_problem(run, "")
    return True


def _note_problem(run: RunJournal, problem: str) -> None:
    try:
        run.note_sent(replace(run.sent(store_key()), problem=problem))
    except OSError as error:
        logger.warning("%s cannot be written: %s", run.folder, error.strerror)
