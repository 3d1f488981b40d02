"""The records of load patterns: the plan of a scenario, what one run found, and the report."""

from dataclasses import dataclass

from serving.runtime.settings import SessionSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioPlan:
    """How a scenario is run; `check_plan` refuses what makes no sense."""

    scenario: str
    """One of "single-stream", "multi-stream", "offline" and "server"."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One rate that was tried in the search for the highest one."""

    rate_per_second: float
    p99_ms: float
    kept: bool
    """Whether the limit was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRun:
    """What one run under a load found."""

    batch_size: int
    """Rows of one call; in the server scenario the most of them."""
    rows_per_query: int
    num_queries: int
    seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    """Latencies of queries, in the server scenario counted from when they were due to arrive.

    Offline, where there is one query of all rows, those of the rows, from its start.
    """
    rows_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioFigures(LoadRun):
    """One run, with what was asked for."""

    scenario: str
    """One of "single-stream", "multi-stream", "offline" and "server"."""
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
