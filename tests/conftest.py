"""What every test is spared: the loggers that a command set up in this process."""

import logging
import os
import signal
from collections.abc import Iterator

import pytest

# As the command `ferry` does, and before torch is imported: idle threads that spin steal the cores
# from the other process that runs tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# A shell starts what runs in the background deaf to Ctrl-C, and so would be every program that a
# test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(package) for package in ("pipeline", "serving")]
    before = [(one.level, one.propagate, list(one.handlers)) for one in loggers]
    yield
    for one, (level, propagate, handlers) in zip(loggers, before, strict=True):
        one.setLevel(level)
        one.propagate = propagate
        one.handlers[:] = handlers
