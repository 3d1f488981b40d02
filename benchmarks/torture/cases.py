"""What a kind of torture is made of: cases, and what came of them.

A kind is a module in kinds/ with `cases(task)`, which yields each `Case` of it; the file's name is
the name of the kind. A case may stand for many attempts: its outcome counts them.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

HANG_SECONDS = 10.0
SHORT = 0.01
TRACEBACK = "Traceback (most recent call last)"
TOKEN = "t0kenThatNobodyMayRead"  # noqa: S105 - it opens nothing
"""A secret to give to ferry; `Ended.judged` looks for it in every stream."""
CONTROL = {*map(chr, (*range(32), *range(127, 160)))} - set("\t\n\r")
FERRY = shutil.which("ferry", path=os.fspath(Path(sys.executable).parent)) or "ferry"
CANARY = "executed"
"""What hostile content tries to make in the working directory, if it can run anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a kind is asked for."""

    scratch: Path
    """An empty folder, for this kind alone."""
    seed: int
    short: bool
    """Whether a few of the smallest cases are wanted."""
    times: float = 1.0
    """How many times the random cases that are published."""

    def count(self, whole: int) -> int:
        """How many of so many random cases to make; 1 % in the short form."""
        return max(1, round(whole * (SHORT if self.short else self.times)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How attempts ended: each counts once."""

    held: int = 0
    lost: int = 0
    """Rows, files or answers that are not as they must be."""
    executed: int = 0
    tracebacks: int = 0
    hangs: int = 0
    deaths: int = 0
    """Processes in charge that ended without a word."""
    secrets: int = 0
    notes: tuple[str, ...] = ()
    """What did not hold, a line each, with what to repeat it by."""
    seen: Mapping[str, int] = field(default_factory=dict)
    """What else is worth counting, such as how many were refused."""

    def __add__(self, other: "Outcome") -> "Outcome":
        counts = {name: getattr(self, name) + getattr(other, name) for name in COUNTS}
        seen = {
            name: self.seen.get(name, 0) + other.seen.get(name, 0)
            for name in (*self.seen, *other.seen)
        }
        return Outcome(**counts, notes=self.notes + other.notes, seen=seen)

    @property
    def total(self) -> int:
        """All attempts."""
        return sum(getattr(self, name) for name in COUNTS)


COUNTS = tuple(one.name for one in fields(Outcome) if one.type is int)
HELD = Outcome(held=1)


@dataclass(frozen=True, slots=True)
class Case:
    """One attack, or many of one sort."""

    name: str
    """Unique within its kind, and the same each time."""
    run: Callable[[], Outcome]
    """Runs in a process of its own."""
    seconds: float = 60.0
    """When that process is ended, as a hang."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command that ran."""

    words: tuple[str, ...]
    status: int | None
    """As subprocess gives it, or None where it had to be killed."""
    stdout: str
    stderr: str
    seconds: float
    folder: Path

    def judged(self, *, tokens: tuple[str, ...] = (TOKEN,)) -> Outcome:
        """What can be said of every command; whether the answer is right, the case must say."""
        streams = self.stdout + self.stderr
        if self.status is None:
            return self.fault("hangs", f"no end after {self.seconds:.0f} s")
        if TRACEBACK in streams:
            return self.fault("tracebacks", streams.strip().splitlines()[-1])
        if self.status < 0:
            return self.fault("deaths", signal.Signals(-self.status).name)
        if self.status and not self.stderr.strip():
            return self.fault("deaths", f"status {self.status} without a word")
        if (self.folder / CANARY).exists():
            return self.fault("executed", f"{CANARY} was made")
        if control := set(self.stderr) & CONTROL:
            return self.fault("executed", f"a terminal would obey {control}")
        if any(token in streams for token in tokens):
            return self.fault("secrets", "in its streams")
        return HELD

    def fault(self, count: str, why: str) -> Outcome:
        """An outcome that tells which command it was."""
        counts: dict[str, Any] = {count: 1}
        return Outcome(**counts, notes=(f"{' '.join(self.words)}: {why}",))

    @property
    def message(self) -> str:
        """Its last words."""
        return (self.stderr.strip().splitlines() or [""])[-1]


def ferry(
    *words: str | Path,
    folder: Path,
    seconds: float = HANG_SECONDS,
    stdin: bytes = b"",
    program: Sequence[str | Path] = (FERRY,),
) -> Ended:
    """Run `ferry WORDS` in a folder, and end it and its children after so many seconds.

    Another program than ferry is judged as strictly.
    """
    process = subprocess.Popen(
        [*program, *words],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    )
    return ended_by(process, folder, seconds=seconds, stdin=stdin)


def ended_by(
    process: "subprocess.Popen[bytes]", folder: Path, *, seconds: float = 60.0, stdin: bytes = b""
) -> Ended:
    """Wait for a process that leads a group, and end that after so many seconds."""
    begin, status = time.monotonic(), None
    try:
        stdout, stderr = process.communicate(stdin or None, timeout=seconds)
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
    program, *words = map(str, process.args if isinstance(process.args, list) else [process.args])
    return Ended(
        words=(Path(program).name, *(one for one in words if "\n" not in one)),
        status=status,
        stdout=stdout.decode("utf-8", "replace"),
        stderr=stderr.decode("utf-8", "replace"),
        seconds=time.monotonic() - begin,
        folder=folder,
    )
