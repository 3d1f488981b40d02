"""The search of the highest rate, on a server whose latencies follow from the rate alone."""

from collections.abc import Callable

import pytest

from serving.errors import InputError
from serving.measuring.scenarios.rate_search import MAX_OVERRUN, highest_rate, num_queries
from serving.measuring.scenarios.report import LoadRun, ScenarioPlan
from serving.measuring.scenarios.system import ServerLoad

PLAN = ScenarioPlan(
    scenario="server",
    batch_size=1,
    seconds=1.0,
    rate_per_second=None,
    p99_limit_ms=10.0,
    seed=5,
)


class Server:
    """Answers with a p99 that is a function of the rate, and notes what it was asked."""

    def __init__(self, p99_ms: Callable[[float], float]) -> None:
        self.p99_ms = p99_ms
        self.loads: list[ServerLoad] = []

    def __call__(self, load: ServerLoad) -> LoadRun:
        self.loads.append(load)
        p99 = self.p99_ms(load.rate_per_second)
        return LoadRun(
            batch_size=1,
            rows_per_query=1,
            num_queries=load.num_queries,
            seconds=1.0,
            p50_ms=p99 / 4,
            p90_ms=p99 / 2,
            p99_ms=p99,
            p999_ms=2 * p99,
            rows_per_second=load.rate_per_second,
        )


def wall_at(capacity: float) -> Callable[[float], float]:
    """Two milliseconds up to the capacity, and a backlog beyond it."""
    return lambda rate: 2.0 if rate <= capacity else 500.0


def queue_of(capacity: float, service_ms: float) -> Callable[[float], float]:
    """Latencies that grow as one over what is left of the capacity."""
    return lambda rate: service_ms / (1 - rate / capacity) if rate < capacity else 1e6


@pytest.mark.parametrize("true", [30.0, 400.0, 990.0, 1500.0])
def test_the_highest_rate_is_found_wherever_it_lies(true: float) -> None:
    server = Server(wall_at(true))
    found = highest_rate(server, 1000.0, PLAN, 10.0)
    assert true / 1.035 <= found.rate_per_second <= true
    assert found.run.p99_ms == 2.0
    assert found.run.rows_per_second == found.rate_per_second


def test_the_limit_decides_and_not_the_capacity() -> None:
    server = Server(queue_of(1000.0, 1.0))
    strict = highest_rate(server, 1000.0, PLAN, 2.0).rate_per_second
    loose = highest_rate(server, 1000.0, PLAN, 20.0).rate_per_second
    assert strict == pytest.approx(500, rel=0.05)
    assert loose == pytest.approx(950, rel=0.05)


def test_every_rate_that_was_tried_is_told_in_order() -> None:
    server = Server(wall_at(400.0))
    found = highest_rate(server, 1000.0, PLAN, 10.0)
    assert [probe.rate_per_second for probe in found.probes] == [
        load.rate_per_second for load in server.loads
    ]
    for probe in found.probes:
        assert probe.kept == (probe.p99_ms <= 10.0) == (probe.rate_per_second <= 400.0)
    kept = [probe.rate_per_second for probe in found.probes if probe.kept]
    assert max(kept) == found.rate_per_second


def test_each_try_has_arrivals_of_its_own() -> None:
    server = Server(wall_at(400.0))
    highest_rate(server, 1000.0, PLAN, 10.0)
    seeds = [load.seed for load in server.loads]
    assert seeds == list(range(5, 5 + len(seeds)))


def test_a_try_may_end_early_but_for_the_lowest_rate() -> None:
    server = Server(lambda _: 500.0)
    with pytest.raises(InputError):
        highest_rate(server, 1000.0, PLAN, 10.0)
    *others, last = server.loads
    assert {load.limit_ms for load in others} == {10.0}
    assert last.limit_ms is None
    assert last.rate_per_second == min(load.rate_per_second for load in server.loads)


def test_a_limit_that_nothing_keeps_names_the_best() -> None:
    server = Server(queue_of(1000.0, 0.12))
    with pytest.raises(
        InputError,
        match=r"no rate keeps p99 under 0.01 ms: the best was 0.12\d* ms at 1\d queries/s",
    ):
        highest_rate(server, 1000.0, PLAN, 0.01)


def test_a_system_that_is_better_than_it_seemed_is_not_searched_for_ever() -> None:
    server = Server(lambda _: 1.0)
    found = highest_rate(server, 100.0, PLAN, 10.0)
    assert 200 <= found.rate_per_second <= 300
    assert all(probe.kept for probe in found.probes)
    assert len(found.probes) < 15


@pytest.mark.parametrize(
    ("rate", "seconds", "least", "queries"),
    [
        (100.0, 10.0, 500, 1000),  # as long as asked for
        (100.0, 1.0, 500, 500),  # longer, for enough of them
        (10.0, 1.0, 500, 10 * MAX_OVERRUN),  # but not for ever
        (0.001, 1.0, 500, 1),
        (1e9, 100.0, 500, 1_000_000),
    ],
)
def test_a_run_has_enough_queries_and_an_end(
    rate: float, seconds: float, least: int, queries: int
) -> None:
    assert num_queries(rate, seconds, least) == queries
