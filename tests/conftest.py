"""What every test is spared: the loggers that a command set up in this process."""

import logging
import os
from collections.abc import Iterator

import pytest

# As the command `ferry` does, and before torch is imported: idle threads that spin steal the cores
# from the other process that runs tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(package) for package in ("pipeline", "serving")]
    before = [(one.level, one.propagate, list(one.handlers)) for one in loggers]
    yield
    for one, (level, propagate, handlers) in zip(loggers, before, strict=True):
        one.setLevel(level)
        one.propagate = propagate
        one.handlers[:] = handlers
