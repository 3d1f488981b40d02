"""Search the highest rate of arrivals at which the p99 of latencies keeps a limit.

The search starts a fourth below what the system does flat out and goes down or up until the highest
rate lies between two that were tried; then it halves that interval on a logarithmic scale.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from serving.errors import InputError
from serving.measuring.scenarios.report import LoadRun, Probe, ScenarioPlan
from serving.measuring.scenarios.system import ServerLoad
from serving.measuring.timing import digits

MIN_QUERIES = 100
MIN_PROBE_QUERIES = 500
"""So that five of them decide on p99."""
MAX_QUERIES = 1_000_000
MAX_OVERRUN = 10
"""How many times the seconds asked for may pass for the sake of enough queries."""
LIMITS_LONG = 30
"""A probe lasts so many limits: a rate 3 % above what can be done has a backlog of one by then."""
FIRST_PART, STEP_DOWN, STEP_UP = 0.75, 4, 1.25
LOWEST_PART = 0.01
"""Of what can be done; then one query in a hundred waits for another."""
MAX_PART = 3
"""Of what seemed possible, in case that was measured at a bad moment."""
PRECISION = 1.03

Serve = Callable[[ServerLoad], LoadRun]


@dataclass(frozen=True, slots=True, kw_only=True)
class HighestRate:
    """The highest rate that kept the limit."""

    rate_per_second: float
    run: LoadRun
    probes: tuple[Probe, ...]
    """All rates that were tried, in order."""


def num_queries(rate_per_second: float, seconds: float, least: int) -> int:
    """How many queries make a run of `seconds`, or of longer, for `least`, but not of ten times."""
    wanted = max(rate_per_second * seconds, least)
    most = max(rate_per_second * seconds * MAX_OVERRUN, 1)
    return math.ceil(min(wanted, most, MAX_QUERIES))


def highest_rate(serve: Serve, capacity: float, plan: ScenarioPlan, limit_ms: float) -> HighestRate:
    """Try rates with `serve`, beginning near `capacity`, the rows per second flat out.

    Raises InputError when no rate keeps the limit, with the best p99 that was reached.
    """
    search = _RateSearch(serve, plan, limit_ms)
    lowest = digits(_lowest(capacity, plan.seconds))
    first = digits(max(FIRST_PART * capacity, lowest))
    low, high = search.bracket(first, lowest, MAX_PART * capacity)
    while high / low > PRECISION:
        middle = digits(math.sqrt(low * high))
        low, high = (middle, high) if search.keeps(middle) else (low, middle)
    return HighestRate(rate_per_second=low, run=search.runs[low], probes=tuple(search.probes))


class _RateSearch:
    """The rates that were tried, and what they gave."""

    def __init__(self, serve: Serve, plan: ScenarioPlan, limit_ms: float) -> None:
        self.serve = serve
        self.plan = plan
        self.limit_ms = limit_ms
        self.runs: dict[float, LoadRun] = {}
        self.probes: list[Probe] = []

    def bracket(self, first: float, lowest: float, highest: float) -> tuple[float, float]:
        """A rate that keeps the limit and a higher one that does not, or is the highest."""
        if not self.keeps(first, whole=first == lowest):
            high, low = first, self._below(first, lowest)
            while not self.keeps(low, whole=low == lowest):
                high, low = low, self._below(low, lowest)
            return low, high
        low, high = first, digits(first * STEP_UP)
        while high < highest and self.keeps(high):
            low, high = high, digits(high * STEP_UP)
        return (low, high) if high < highest else (low, low)

    def keeps(self, rate: float, *, whole: bool = False) -> bool:
        """Whether a rate keeps the limit; a `whole` run goes on when it cannot any more."""
        seconds = max(self.plan.seconds, LIMITS_LONG * self.limit_ms / 1000)
        load = ServerLoad(
            rate_per_second=rate,
            num_queries=num_queries(rate, seconds, MIN_PROBE_QUERIES),
            seed=self.plan.seed + len(self.probes),
            limit_ms=None if whole else self.limit_ms,
        )
        run = self.runs[rate] = self.serve(load)
        kept = run.p99_ms <= self.limit_ms
        self.probes.append(Probe(rate_per_second=rate, p99_ms=run.p99_ms, kept=kept))
        return kept

    def _below(self, rate: float, lowest: float) -> float:
        """The next lower rate to try; InputError below the lowest."""
        if rate > lowest:
            return max(digits(rate / STEP_DOWN), lowest)
        best = min(self.probes, key=lambda probe: probe.p99_ms)
        raise InputError(
            f"no rate keeps p99 under {self.limit_ms:g} ms: the best was {best.p99_ms:.3g} ms at "
            f"{best.rate_per_second:.3g} queries/s"
        )


def _lowest(capacity: float, seconds: float) -> float:
    """The lowest rate worth a try: hardly a query waits there, yet enough arrive in time."""
    timely = MIN_QUERIES / (seconds * MAX_OVERRUN)
    return max(LOWEST_PART * capacity, min(timely, capacity / STEP_DOWN))
