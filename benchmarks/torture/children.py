"""Many attempts in children: one runs some hundreds, and when one ends it, the next goes on after.

What an attempt may do is bounded: a child's memory, and the time of each attempt.
"""

import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import IO

FORK = get_context("fork")
SECONDS = 10.0
MEMORY = 2 << 30
DIED, HUNG, RAISED = "died", "hung", "raised"
"""How the word of an attempt begins that ended its child, had to be ended, or was a traceback."""
Attempt = Callable[[int], str]


def attempts(numbers: Sequence[int], attempt: Attempt) -> Iterator[tuple[int, str]]:
    """Each number with what its attempt says of it, one word or some."""
    done = 0
    with tempfile.TemporaryFile() as streams:
        while done < len(numbers):
            for one, word in _some(numbers[done:], attempt, streams):
                yield one, word
                done += 1


def _some(
    numbers: Sequence[int], attempt: Attempt, streams: IO[bytes]
) -> Iterator[tuple[int, str]]:
    """The words of one child; the last is of the attempt that ended it, if one did."""
    receive, send = FORK.Pipe(duplex=False)
    child = FORK.Process(target=_child, args=(numbers, attempt, send, streams))
    child.start()
    send.close()
    try:
        for number in numbers:
            if not receive.poll(SECONDS):
                yield number, HUNG
                return
            try:
                word = receive.recv()
            except EOFError:
                child.join()
                yield number, _end(child.exitcode or 0, streams)
                return
            yield number, word
    finally:
        child.kill()
        child.join()


def _end(status: int, streams: IO[bytes]) -> str:
    """Why a child ended."""
    if status < 0:
        return f"{DIED} {signal.Signals(-status).name}"
    streams.seek(0)
    lines = streams.read().decode("utf-8", "replace").strip().splitlines()
    return f"{RAISED} {lines[-1] if lines else f'status {status}'}"


def _child(numbers: Sequence[int], attempt: Attempt, send: Connection, streams: IO[bytes]) -> None:
    streams.seek(0)
    streams.truncate()
    sys.stdout.flush()
    for stream in (1, 2):
        os.dup2(streams.fileno(), stream)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    for number in numbers:
        send.send(attempt(number))
