"""MLPerf's load patterns over one subject: single stream, multi stream, offline and server.

The rules are those of MLPerf Inference; ferry makes the load itself, and benchmarks/scenarios.py
holds its figures against those of MLPerf's own load generator. The server scenario is an open loop:
queries arrive by a schedule, whether or not those before them were answered, and their latency
counts from the time they were due.

A search finds the highest rate of arrivals at which the p99 of latencies keeps a limit. It starts a
fourth below what the system does flat out and goes down or up until the highest rate lies between
two that were tried; then it halves that interval on a logarithmic scale.
"""

import math
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from time import perf_counter_ns

import numpy as np

from serving.errors import InputError, UnknownNameError, UsageError
from serving.measuring.system import (
    Arrivals,
    Lane,
    LoadRun,
    ServerLoad,
    System,
    busy_threads,
    check_rate,
    poisson_arrivals,
    run_of,
    wait_until,
)
from serving.measuring.timing import (
    MAX_OVERRUN,
    NS_PER_MS,
    NS_PER_S,
    digits,
    enough_calls,
    no_garbage_collection,
    warm_up,
)
from serving.runtime.settings import SessionSettings

STREAMS = {"single-stream": 1, "multi-stream": 8}
"""Rows of a query; eight are MLPerf's."""
SCENARIOS = (*STREAMS, "offline", "server")
HEAD_START_NS = 20_000_000
"""For the threads to begin, before the time of the first arrival is counted."""
MIN_QUERIES = 100
MIN_PROBE_QUERIES = 500
"""So that five of them decide on p99."""
MAX_QUERIES = 1_000_000
LIMITS_LONG = 30
"""A probe lasts so many limits: a rate 3 % above what can be done has a backlog of one by then."""
FIRST_PART, STEP_DOWN, STEP_UP = 0.75, 4, 1.25
LOWEST_PART = 0.01
"""Of what can be done; then one query in a hundred waits for another."""
MAX_PART = 3
"""Of what seemed possible, in case that was measured at a bad moment."""
PRECISION = 1.03


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioPlan:
    """How a scenario is run; `check_plan` refuses what makes no sense."""

    scenario: str
    """One of `SCENARIOS`."""
    batch_size: int
    """The most rows of one call, offline and in the server scenario; streams have their own."""
    seconds: float
    """For a run, or for each rate that a search tries; longer for the sake of enough queries."""
    rate_per_second: float | None
    """Queries that arrive per second, in the server scenario; None to search for the highest."""
    p99_limit_ms: float | None
    """What that search keeps, or None for a rate that is given."""
    seed: int
    """Of the arrivals."""

    def describe(self) -> str:
        """The plan on one line."""
        if self.rate_per_second is not None:
            return f"{self.scenario} at {self.rate_per_second:g} queries/s"
        if self.p99_limit_ms is not None:
            return f"{self.scenario}, the highest rate with p99 under {self.p99_limit_ms:g} ms"
        return self.scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One rate that was tried in the search for the highest one."""

    rate_per_second: float
    p99_ms: float
    kept: bool
    """Whether the limit was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioFigures(LoadRun):
    """One run, with what was asked for."""

    scenario: str
    rate_per_second: float | None
    """Queries that arrived per second, in the server scenario."""
    p99_limit_ms: float | None
    """What the rate was searched for, or None for a rate that was given."""
    probes: tuple[Probe, ...]
    """The rates that were tried in that search, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioResult(ScenarioFigures):
    """A model under one of MLPerf's load patterns."""

    subject: str
    provider: str
    settings: SessionSettings


def measure_scenario(system: System, plan: ScenarioPlan) -> ScenarioFigures:
    """Load a system as planned, after a warm-up; InputError for a limit that no rate keeps."""
    check_plan(plan)
    rows = STREAMS.get(plan.scenario, system.batch_size)
    warm_up(system.call(rows), plan.seconds)
    if plan.scenario == "offline":
        return _figures(plan, run_offline(system, plan.seconds))
    if plan.scenario != "server":
        return _figures(plan, run_stream(system, rows, plan.seconds))
    rate = plan.rate_per_second
    if rate is None:
        return highest_rate(partial(run_server, system), system.capacity(plan.seconds), plan)
    queries = num_queries(rate, plan.seconds, MIN_QUERIES)
    load = ServerLoad(rate_per_second=rate, num_queries=queries, seed=plan.seed, limit_ms=None)
    return _figures(plan, run_server(system, load), rate)


def check_plan(plan: ScenarioPlan) -> None:
    """Raise UnknownNameError or UsageError for a plan that makes no sense."""
    if plan.scenario not in SCENARIOS:
        raise UnknownNameError("scenario", plan.scenario, SCENARIOS)
    if plan.batch_size < 1:
        raise UsageError(f"the batch size must be 1 or more, got {plan.batch_size}")
    if not 0 < plan.seconds < np.inf:
        raise UsageError(f"the seconds must be above 0, got {plan.seconds:g}")
    _check_load(plan)


def _check_load(plan: ScenarioPlan) -> None:
    rate, limit = plan.rate_per_second, plan.p99_limit_ms
    if plan.scenario != "server":
        if rate is not None or limit is not None:
            raise UsageError(f"a rate or a p99 limit is for server, not for {plan.scenario}")
        return
    if (rate is None) == (limit is None):
        message = "neither" if rate is None else f"{rate:g} queries/s and {limit:g} ms"
        raise UsageError(f"server takes a rate or a p99 limit, one of them, got {message}")
    if rate is not None:
        check_rate(rate)
    if limit is not None and not 0 < limit < np.inf:
        raise UsageError(f"the p99 limit must be above 0 ms, got {limit:g}")


def _figures(
    plan: ScenarioPlan, run: LoadRun, rate: float | None = None, probes: tuple[Probe, ...] = ()
) -> ScenarioFigures:
    return ScenarioFigures(
        **asdict(run),
        scenario=plan.scenario,
        rate_per_second=rate,
        p99_limit_ms=plan.p99_limit_ms,
        probes=probes,
    )


def run_stream(system: System, rows: int, seconds: float) -> LoadRun:
    """Ask queries of so many rows one after the other, for about so many seconds."""
    call, clock = system.call(rows), perf_counter_ns
    limit_ns = int(seconds * NS_PER_S)
    times = array("q")
    call()
    with no_garbage_collection():
        start = before = clock()
        while True:
            call()
            after = clock()
            times.append(after - before)
            if enough_calls(len(times), after - start, limit_ns, MIN_QUERIES):
                break
            before = clock()
    return run_of(times, elapsed_ns=after - start, rows_per_query=rows, batch_size=rows)


def run_offline(system: System, seconds: float) -> LoadRun:
    """Ask for all rows at once: as many as take about so many seconds."""
    size = system.batch_size
    num_calls = max(system.settings.parallel, round(system.capacity(seconds) * seconds / size))
    ends = system.flat_out(num_calls)
    run = run_of(ends, elapsed_ns=int(ends.max()), rows_per_query=size, batch_size=size)
    return replace(run, rows_per_query=num_calls * size, num_queries=1)


def run_server(system: System, load: ServerLoad) -> LoadRun:
    """Ask queries of one row as they arrive; latencies count from when each was due."""
    lanes = system.lanes(range(1, system.batch_size + 1))
    offsets = poisson_arrivals(load.rate_per_second, load.num_queries, seed=load.seed)
    start = perf_counter_ns() + HEAD_START_NS
    served = _Served(load, (offsets + start).tolist())
    with busy_threads(lanes, served.work) as begin:
        list(begin())
    answered = [number for number, end in enumerate(served.ends) if end]
    ends = np.array(served.ends)[answered]
    latencies = ends - start - offsets[answered]
    elapsed = int(ends.max()) - start
    return run_of(latencies, elapsed_ns=elapsed, rows_per_query=1, batch_size=system.batch_size)


class _Served:
    """The queries of a run in the server scenario, and when each was answered."""

    def __init__(self, load: ServerLoad, due_ns: list[int]) -> None:
        self.arrivals = Arrivals(due_ns)
        self.ends = [0] * len(due_ns)
        self.limit_ns = np.inf if load.limit_ms is None else load.limit_ms * NS_PER_MS
        # So many may come too late before the percentile is above the limit, whatever follows.
        self.spare = len(due_ns) - 1 - int(np.ceil(0.99 * (len(due_ns) - 1)))
        self.late: list[int] = []

    def work(self, lane: Lane) -> None:
        """Answer what is due, as one thread of several, up to as many at once as a call takes."""
        arrivals, due_ns, most = self.arrivals, self.arrivals.due_ns, max(lane) - 1
        try:
            while (first := arrivals.take()) is not None:
                wait_until(due_ns[first])
                taken = (first, *arrivals.take_due(most)) if most else (first,)
                lane[len(taken)]()
                self._note(taken, perf_counter_ns())
        finally:
            arrivals.drop()  # an error in one thread ends the others

    def _note(self, taken: tuple[int, ...], end: int) -> None:
        for number in taken:
            self.ends[number] = end
            if end - self.arrivals.due_ns[number] > self.limit_ns:
                self.late.append(number)
                if len(self.late) > self.spare:
                    self.arrivals.drop()


Serve = Callable[[ServerLoad], LoadRun]


def num_queries(rate_per_second: float, seconds: float, least: int) -> int:
    """How many queries make a run of `seconds`, or of longer, for `least`, but not of ten times."""
    wanted = max(rate_per_second * seconds, least)
    most = max(rate_per_second * seconds * MAX_OVERRUN, 1)
    return math.ceil(min(wanted, most, MAX_QUERIES))


def highest_rate(serve: Serve, capacity: float, plan: ScenarioPlan) -> ScenarioFigures:
    """Search near `capacity`, the rows per second flat out, for the highest rate; returns its run.

    Raises InputError when none keeps the plan's limit, with the best p99 that was reached.
    """
    search = _RateSearch(serve, plan)
    # The lowest rate worth a try: hardly a query waits there, yet enough arrive in time.
    timely = MIN_QUERIES / (plan.seconds * MAX_OVERRUN)
    lowest = digits(max(LOWEST_PART * capacity, min(timely, capacity / STEP_DOWN)))
    first = digits(max(FIRST_PART * capacity, lowest))
    low, high = search.bracket(first, lowest, MAX_PART * capacity)
    while high / low > PRECISION:
        middle = digits(math.sqrt(low * high))
        low, high = (middle, high) if search.keeps(middle) else (low, middle)
    return _figures(plan, search.runs[low], low, tuple(search.probes))


class _RateSearch:
    """The rates that were tried, and what they gave."""

    def __init__(self, serve: Serve, plan: ScenarioPlan) -> None:
        self.serve = serve
        self.plan = plan
        self.limit_ms = plan.p99_limit_ms or 0.0
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
