"""SIGINT and SIGTERM as a wish that a run fulfils after the batch in hand.

A second one acts as it always does, for a batch that never ends.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

__all__ = ["Stop", "stoppable"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether the run was asked to stop, and by what."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Note the first signal instead of dying of it; outside the main thread there are none."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {one: signal.getsignal(one) for one in SIGNALS}

    def note(number: int, _frame: FrameType | None) -> None:
        stop.signal = signal.Signals(number)
        _restore(before)

    for one in SIGNALS:
        # One that is ignored, as in the background of a script, stays so.
        if before[one] is not signal.SIG_IGN:
            signal.signal(one, note)
    try:
        yield stop
    finally:
        _restore(before)


def _restore(before: Mapping[signal.Signals, Any]) -> None:
    for one, handler in before.items():
        signal.signal(one, handler)
