"""Cold starts: from starting a process to its first answer, as a person waits for it.

Each program imports, loads, answers one row and then prints "answered"; they take turns.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from serving.bench_report import ColdStart, Skipped
from serving.measuring.client import child_environment
from serving.pairing import orders
from serving.timing import NS_PER_MS, digits

__all__ = ["ColdProgram", "cold_starts"]

ANSWERED = b"answered"


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdProgram:
    """A program that prints "answered" as soon as it has its first answer."""

    subject: str
    arguments: tuple[str, ...]
    """Of python: `("-m", "serving.measuring.first_answer", "model.onnx")`."""


def cold_starts(
    programs: Sequence[ColdProgram], num_runs: int, tell: Callable[[str], None], *, seed: int
) -> tuple[tuple[ColdStart, ...], tuple[Skipped, ...]]:
    """Start each program `num_runs` times, in turns, after one start that does not count.

    The uncounted start brings the files into the page cache, as on a machine that has run the
    program before. A program that ends without an answer is among the skipped ones.
    """
    named = {program.subject: program for program in programs}
    runs: dict[str, list[float]] = {name: [] for name in named}
    rounds = orders(list(named), 1 + num_runs, np.random.default_rng(seed))
    for number, order in enumerate(rounds):
        tell(f"cold starts, round {number} of {num_runs}")
        for name in filter(runs.__contains__, order):
            took = _start(named[name])
            if took is None:
                del runs[name]
            elif number:
                runs[name].append(digits(took))
    found = tuple(
        ColdStart(subject=name, p50_ms=digits(statistics.median(times)), runs_ms=tuple(times))
        for name, times in runs.items()
    )
    return found, tuple(_skipped(name) for name in named if name not in runs)


def _skipped(name: str) -> Skipped:
    reason = "its cold start ended without an answer"
    return Skipped(subject=name, provider="", threads=None, skipped=reason)


def _start(program: ColdProgram) -> float | None:
    """Milliseconds from the start of a process to its line; None if there was none."""
    start = perf_counter_ns()
    with subprocess.Popen(
        [sys.executable, *program.arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
    ) as process:
        answered = any(line.strip() == ANSWERED for line in process.stdout or ())
        took = (perf_counter_ns() - start) / NS_PER_MS
        process.kill()  # how long it takes to end is nobody's wait
    return took if answered else None
