"""How a run ends when it is told to: after the batch in hand, or without it when that takes long.

with stoppable(session.stop) as stopped: ...    # [signal.SIGINT] after Ctrl-C
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from serving.console import note

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE_SECONDS = 5.0
"""How long a run that was told to end waits for what it has in hand."""


@contextlib.contextmanager
def stoppable(end_batches: Callable[[], None]) -> Iterator[list[signal.Signals]]:
    """Note signals instead of dying of them; outside the main thread there are none.

    After the first one the batch in hand may end. With the second, or PATIENCE_SECONDS later,
    `end_batches` is called and KeyboardInterrupt raised; with the third, or as many seconds later,
    the process ends.
    """
    stopped: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    stages = _Stages(stopped, end_batches)
    # One that is ignored, as in the background of a script, stays so.
    before = {one: signal.getsignal(one) for one in SIGNALS}
    taken = [one for one in SIGNALS if before[one] is not signal.SIG_IGN]
    for one in taken:
        signal.signal(one, stages.go_on)
    try:
        yield stopped
    finally:
        stages.end()
        for one in taken:
            signal.signal(one, before[one])


class _Stages:
    """From the first signal to the end, each stage with a clock of its own."""

    def __init__(self, stopped: list[signal.Signals], end_batches: Callable[[], None]) -> None:
        self._stopped = stopped
        self._end_batches = end_batches
        self._clock: threading.Timer | None = None
        self._over = False

    def go_on(self, number: int, _frame: FrameType | None) -> None:
        """Enter the next stage; in the main thread."""
        if self._over:
            return
        self._stopped.append(signal.Signals(number))
        if len(self._stopped) > 2:
            os._exit(128 + self._stopped[0])
        if self._clock:
            self._clock.cancel()
        self._clock = threading.Timer(PATIENCE_SECONDS, self._lose_patience)
        self._clock.daemon = True
        self._clock.start()
        if len(self._stopped) == 2:
            self._end_batches()
            raise KeyboardInterrupt

    def end(self) -> None:
        """No stage follows."""
        self._over = True
        if self._clock:
            self._clock.cancel()
            self._clock.join()

    def _lose_patience(self) -> None:
        if not self._over:
            note(f"the batch in hand takes more than {PATIENCE_SECONDS:g} s; it is left undone")
            # To the main thread, which may wait for a lock; it acts as one more Ctrl-C.
            main = threading.main_thread().ident or 0
            signal.pthread_kill(main, self._stopped[0])
