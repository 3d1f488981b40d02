"""Watch a command from outside: what a model does may hang, grow without end, or end the process.

    ferry predict foreign.onnx rows.npy --output labels.csv --call-timeout 60 --max-memory 4

The commands that run models fork at their start, before anything heavy is imported. The child goes
on as the command; the parent waits, and says in one line what a native runtime says nothing of. The
child tells where it is in memory that both share. Where no parent watches, in a notebook for
instance, all that it would tell is dropped.
"""

import contextlib
import itertools
import mmap
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NamedTuple, NoReturn, TypeVar

TIMEOUT_SECONDS = 120.0
"""How long one call of a model, or one step of a command, may take unless the user says so."""
LONGEST_SECONDS = 1e9
GRACE_SECONDS = 8.0
"""How long a command that was told to end may be within one call of a model."""
POLL_SECONDS = 0.25
GROUP_SECONDS = 0.05
"""How soon a signal reaches the child as well, where it was for the whole group."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FAULTS = (
    *(signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS),
    signal.SIGTRAP,
)
"""What ends a process from within."""

# The shared memory: numbers of 64 bits, and then two texts.
USED, TIMEOUT_MS, EXTRA_MS, DONE, BATCH_ROWS, FATAL, CAREFUL = range(7)
FIRST_SLOT, SLOTS, SLOT_CELLS = 8, 1024, 3
CALLS, ROW, CALLS_BEFORE = range(SLOT_CELLS)
CELLS = FIRST_SLOT + SLOTS * SLOT_CELLS
TEXT_BYTES = 512
DOING, KEPT = 8 * CELLS, 8 * CELLS + TEXT_BYTES


class Page:
    """Where a watched command is; the child writes it, and the parent reads it.

    Each thread that runs a model has a slot: its calls so far, counted at their begin and at their
    end, so that an odd number is a call that runs; and the first row of the batches that it
    answers, with the count before them. The first slot is that of the command itself.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, DOING + 2 * TEXT_BYTES)
        self.cells = memoryview(self._memory)[: 8 * CELLS].cast("Q")
        self.cells[USED] = 1
        self.cells[TIMEOUT_MS] = int(TIMEOUT_SECONDS * 1000)

    def write(self, place: int, text: str) -> None:
        """Set a text, DOING or KEPT."""
        content = text.encode("utf-8", "replace")[: TEXT_BYTES - 1]
        self._memory[place : place + TEXT_BYTES] = content.ljust(TEXT_BYTES, b"\0")

    def read(self, place: int) -> str:
        """A text, "" where none was set."""
        content = self._memory[place : place + TEXT_BYTES]
        return content.partition(b"\0")[0].decode("utf-8", "replace")

    def counts(self) -> list[int]:
        """The count of each slot."""
        ends = FIRST_SLOT + self.cells[USED] * SLOT_CELLS
        return self.cells[FIRST_SLOT:ends:SLOT_CELLS].tolist()

    def running(self) -> list[int]:
        """The slots of the calls that run."""
        return [slot for slot, count in enumerate(self.counts()) if count & 1]

    def row(self, slot: int) -> int | None:
        """The first row of the batch that the slot's call answers; None where it is of no batch."""
        at = FIRST_SLOT + slot * SLOT_CELLS
        first, calls = self.cells[at + ROW], self.cells[at + CALLS] - self.cells[at + CALLS_BEFORE]
        return first - 1 + (calls // 2) * self.cells[BATCH_ROWS] if first else None

    def again(self, fatal: int | None) -> None:
        """Make ready for a child that goes on carefully, up to the row `fatal` if it is known."""
        for cell in range(FIRST_SLOT, CELLS):
            self.cells[cell] = 0
        self.cells[USED], self.cells[CAREFUL] = 1, self.cells[DONE]
        self.cells[FATAL] = 0 if fatal is None else fatal + 1


# In the child: what it tells

Result = TypeVar("Result")
_page: Page | None = None
_local = threading.local()
_slots = itertools.count(1)


@contextlib.contextmanager
def native() -> Iterator[None]:
    """The block runs native code on what somebody else has made."""
    if _page is None:
        yield
        return
    at = _slot(_page)
    _page.cells[at] += 1
    try:
        yield
    finally:
        _page.cells[at] += 1


def watched(call: Callable[..., Result]) -> Callable[..., Result]:
    """The same call; in a process that is watched one that tells when it begins and ends."""
    if _page is None:
        return call
    page = _page

    def run(*given: object) -> Result:
        at = _slot(page)
        page.cells[at] += 1
        try:
            return call(*given)
        finally:
            page.cells[at] += 1

    return run


def step(text: str = "", *, seconds: float = 0.0) -> None:
    """The command goes on: with what, and how many seconds longer than others it may take."""
    if _page:
        if text:
            _page.write(DOING, text)
        _page.cells[EXTRA_MS] = int(seconds * 1000)
        _page.cells[FIRST_SLOT] += 2


def limit_steps() -> None:
    """From here on the timeout is also for what is between two steps, not for calls alone."""
    if _page and not _page.cells[FIRST_SLOT] & 1:
        _page.cells[FIRST_SLOT] += 1


def batches_from(row: int, batch_rows: int) -> None:
    """The next calls of this thread answer batches, from that row of all inputs on."""
    if _page:
        at = _slot(_page)
        _page.cells[at + ROW], _page.cells[at + CALLS_BEFORE] = row + 1, _page.cells[at]
        _page.cells[BATCH_ROWS] = batch_rows


def done(rows: int) -> None:
    """So many rows are answered; a later run can go on after them."""
    if _page:
        _page.cells[DONE] = rows + 1


def kept(text: str) -> None:
    """What is to be said of the rows so far, if the process ends without a word."""
    if _page:
        _page.write(KEPT, text)


def careful() -> int | None:
    """The rows that were answered when a process before this one died over the next ones, if so."""
    return _page.cells[CAREFUL] - 1 if _page and _page.cells[CAREFUL] else None


def fatal_row() -> int | None:
    """The row whose batch did not end in the process before this one."""
    return _page.cells[FATAL] - 1 if _page and _page.cells[FATAL] else None


def too_long(where: str, page: Page | None = None) -> str:
    """What is said of a call, or of a step, that takes longer than it may."""
    page = page or _page or Page()
    return (
        f"{where or 'a step'} has not ended in {page.cells[TIMEOUT_MS] / 1000:g} s (--call-timeout)"
    )


def set_timeout(seconds: float) -> None:
    """How long one call, or one step, may take."""
    if _page:
        _page.cells[TIMEOUT_MS] = int(min(seconds, LONGEST_SECONDS) * 1000)


def set_memory_limit(gib: float) -> None:
    """The memory that this process, and each that it starts, may have."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    asked = int(min(gib * 2**30, 2**62))
    asked = asked if most == resource.RLIM_INFINITY else min(asked, most)
    resource.setrlimit(resource.RLIMIT_DATA, (asked, most))


def memory_limit() -> float:
    """The memory that this process may have, in GiB; 0 where no limit was set."""
    if _page is None:
        return 0.0
    import resource

    return resource.getrlimit(resource.RLIMIT_DATA)[0] / 2**30


def be_killed_with_parent() -> None:
    """Let the system kill this process when the one that started it is gone, as Linux can."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _slot(page: Page) -> int:
    """The first cell of this thread's slot; so many threads later another may have it as well."""
    try:
        return int(_local.at)
    except AttributeError:
        number = 1 + next(_slots) % (SLOTS - 1)
        page.cells[USED] = max(page.cells[USED], number + 1)
        _local.at = FIRST_SLOT + number * SLOT_CELLS
        return int(_local.at)


# In the parent: how it watches


class Ending(NamedTuple):
    """How a child ended."""

    status: int
    """Its exit status, or the negative number of the signal that ended it."""
    fault: str = ""
    """What is wrong, in words, where it did not end by itself."""
    row: int | None = None
    """The first row of the batch that did not end in time."""


def watch() -> None:
    """Fork; the child returns from here as the command, and the parent ends with it.

    A child that dies over a row, and whose rows so far can be kept, is followed by one that goes on
    batch by batch, keeps them, and tells which batch it was.
    """
    page = Page()
    watcher = _Watcher(page)
    while watcher.fork():
        ending = watcher.wait()
        if not ending.fault or not page.cells[DONE] or page.cells[CAREFUL]:
            _end_as(ending, page)
        _say(f"Warning: {ending.fault}; once more, batch by batch, to keep the rows before it")
        page.again(ending.row)


def _begin_child(page: Page, pipe: int, parent: int) -> None:
    """Die with the parent, and let it see which signals come here."""
    global _page  # noqa: PLW0603 - one for the process
    _page = page
    be_killed_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    os.set_blocking(pipe, False)
    signal.set_wakeup_fd(pipe, warn_on_full_buffer=False)
    import resource

    if resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY:
        # Not a container's limit, which is for what is used: libraries ask for more than that.
        set_memory_limit(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)


class _Watcher:
    """The parent of one child after the other."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._counts: list[int] = []
        self._seconds: dict[int, float] = {}
        """How long each slot's call runs."""
        self._told: dict[int, float] = {}
        """The signals that came here and are not seen to have come to the child, and when."""
        self._asked: tuple[int, float] | None = None
        """The signal that tells the child to end, and when it came."""
        self._before = {
            number: signal.signal(number, self._on_signal)
            for number in PASSED_ON
            if signal.getsignal(number) is not signal.SIG_IGN
        }

    def fork(self) -> bool:
        """Start a child; False there, where signals do again what they did before."""
        parent = os.getpid()
        self._counts, self._seconds = [], {}
        self._pipe, write = os.pipe()
        # One that comes to the child before it is ready waits, and is not lost.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        self._child = os.fork()
        if not self._child:
            os.close(self._pipe)
            _begin_child(self._page, write, parent)
            for number, action in self._before.items():
                signal.signal(number, action)
        else:
            os.close(write)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return bool(self._child)

    def wait(self) -> Ending:
        """Watch until the child has ended, which it does at once where a call takes too long."""
        last = time.monotonic()
        while True:
            self._listen()
            found, status = os.waitpid(self._child, os.WNOHANG)
            if found:
                os.close(self._pipe)
                code = os.waitstatus_to_exitcode(status)
                return Ending(status=code, fault=self._fault_of(code))
            now = time.monotonic()
            late, last = self._late(now - last), now
            if late is not None:
                fault = too_long(self._where([late]), self._page)
                return Ending(status=self._kill(), fault=fault, row=self._page.row(late))
            if self._asked and now - self._asked[1] > GRACE_SECONDS and self._page.running():
                self._kill()
                return Ending(status=128 + self._asked[0])

    def _kill(self) -> int:
        os.kill(self._child, signal.SIGKILL)
        _, status = os.waitpid(self._child, 0)
        os.close(self._pipe)
        return os.waitstatus_to_exitcode(status)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._told[number] = time.monotonic()

    def _listen(self) -> None:
        """Wait for what comes first: a signal of the child's, its end, or the next look at it."""
        seconds = GROUP_SECONDS if self._told else POLL_SECONDS
        ready, _, _ = select.select([self._pipe], [], [], seconds)
        arrived = os.read(self._pipe, 64) if ready else b""
        if ready and not arrived:  # it ends
            time.sleep(0.001)
        now = time.monotonic()
        # One that was for the whole group has come to the child as well.
        passed_on = {one for one, since in self._told.items() if now - since >= GROUP_SECONDS}
        for number in passed_on.difference(arrived):
            os.kill(self._child, number)
        for number in passed_on.union(arrived).intersection(PASSED_ON):
            self._told.pop(number, None)
            self._asked = self._asked or (number, now)

    def _late(self, elapsed: float) -> int | None:
        """The slot of a call, or of a step, that takes longer than it may."""
        before, self._counts = self._counts, self._page.counts()
        # What passed while the whole machine, or both of us, stood still does not count.
        elapsed = min(elapsed, 2 * POLL_SECONDS)
        most, extra = self._page.cells[TIMEOUT_MS] / 1000, self._page.cells[EXTRA_MS] / 1000
        for slot, count in enumerate(self._counts):
            # Any call is a step of the command, whose slot is the first.
            same = before == self._counts if slot == 0 else before[slot : slot + 1] == [count]
            self._seconds[slot] = self._seconds.get(slot, 0.0) + elapsed if same else 0.0
            if count & 1 and self._seconds[slot] > most + (0 if slot else extra):
                return slot
        return None

    def _fault_of(self, code: int) -> str:
        if -code in FAULTS:
            where = self._where(self._page.running())
            name = signal.Signals(-code).name
            return f"the native runtime ended ({name}){' in ' if where else ''}{where}"
        if code == -signal.SIGKILL:
            return "the process was killed (SIGKILL), as the system does when memory runs out"
        return ""

    def _where(self, slots: list[int]) -> str:
        rows = sorted({row for slot in slots if (row := self._page.row(slot)) is not None})
        size = max(self._page.cells[BATCH_ROWS], 1)
        return " or ".join(f"batch {row // size + 1}" for row in rows) or self._page.read(DOING)


def _end_as(ending: Ending, page: Page) -> NoReturn:
    """End as the child did: with its status, by its signal, or with what is wrong with it."""
    if ending.fault:
        if page.read(KEPT):
            _say(page.read(KEPT))
        _say(f"Error: {ending.fault}")
        os._exit(1)
    if ending.status < 0:
        signal.signal(-ending.status, signal.SIG_DFL)
        os.kill(os.getpid(), -ending.status)
    os._exit(ending.status)


def _say(text: str) -> None:
    from serving.errors import on_one_line

    sys.stderr.write(f"{on_one_line(text)}\n")
    sys.stderr.flush()
