"""A subject of known speed, and plans to load it with."""

import dataclasses
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.measuring.scenarios import ScenarioPlan
from serving.measuring.timing import Call

PLAN = ScenarioPlan(
    scenario="single-stream",
    batch_size=1,
    seconds=0.2,
    rate_per_second=None,
    p99_limit_ms=None,
    seed=1,
)


def plan(scenario: str, **changes: Any) -> ScenarioPlan:
    return dataclasses.replace(PLAN, scenario=scenario, **changes)


class Steady:
    """Takes `call_ms` for a call and `row_ms` for each of its rows; other threads may run."""

    def __init__(self, call_ms: float, row_ms: float = 0.0) -> None:
        self.call_ms = call_ms
        self.row_ms = row_ms
        self.asked: list[npt.NDArray[Any]] = []
        self.took_ms: list[float] = []
        """How long each call really took: a busy machine ends a sleep late."""
        self.stall_at: int | None = None
        self.fail_at: int | None = None

    def rows(self, count: int) -> npt.NDArray[Any]:
        return np.arange(count, dtype=np.float32).reshape(count, 1)

    def answer(self, rows: npt.NDArray[Any]) -> object:
        start = time.perf_counter_ns()
        self.asked.append(rows)
        if len(self.asked) == self.stall_at:
            time.sleep(0.2)
        if len(self.asked) == self.fail_at:
            raise ArithmeticError("the subject broke")
        time.sleep((self.call_ms + self.row_ms * len(rows)) / 1000)
        self.took_ms.append((time.perf_counter_ns() - start) / 1e6)
        return rows

    def call(self, batch_size: int) -> Call:
        bound = np.full((batch_size, 1), -1, np.float32)
        return lambda: self.answer(bound)
