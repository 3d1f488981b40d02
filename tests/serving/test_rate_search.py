"""The path of the search for the highest rate: which rates it tries, and what it keeps of them."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from steady import plan

from serving.errors import InputError, ModelError
from serving.measuring.scenarios import (
    MIN_QUERIES,
    ScenarioFigures,
    ScenarioPlan,
    highest_rate,
    num_queries,
)
from serving.measuring.system import LoadRun, ServerLoad
from serving.measuring.timing import MAX_OVERRUN

CAPACITY = 1000.0
LIMIT_MS = 10.0
PLAN = plan("server", seconds=2.0, p99_limit_ms=LIMIT_MS, seed=40)

P99 = Callable[[float], float]


class Server:
    """Serves at once, with a p99 that follows from the rate."""

    def __init__(self, p99_ms: P99) -> None:
        self.p99_ms = p99_ms
        self.loads: list[ServerLoad] = []
        self.runs: list[LoadRun] = []

    def __call__(self, load: ServerLoad) -> LoadRun:
        p99 = self.p99_ms(load.rate_per_second)
        run = LoadRun(
            batch_size=1,
            rows_per_query=1,
            num_queries=load.num_queries,
            seconds=load.num_queries / load.rate_per_second,
            p50_ms=p99,
            p90_ms=p99,
            p99_ms=p99,
            p999_ms=p99,
            rows_per_second=load.rate_per_second,
        )
        self.loads.append(load)
        self.runs.append(run)
        return run


def up_to(highest: float) -> P99:
    """Keeps the limit up to a rate and breaks it beyond."""
    return lambda rate: 1.0 if rate <= highest else 99.0


def search(
    server: Server, asked: ScenarioPlan = PLAN, capacity: float = CAPACITY
) -> ScenarioFigures:
    return highest_rate(server, capacity, asked)


def limited(limit_ms: float) -> ScenarioPlan:
    return replace(PLAN, p99_limit_ms=limit_ms)


def rates(found: ScenarioFigures) -> list[float]:
    return [probe.rate_per_second for probe in found.probes]


def queue_of(capacity: float, service_ms: float) -> P99:
    """Latencies that grow as one over what is left of the capacity."""
    return lambda rate: service_ms / (1 - rate / capacity) if rate < capacity else 1e6


# The path


@pytest.mark.parametrize("capacity", [400.0, 1000.0, 1300.0])
@pytest.mark.parametrize(("limit_ms", "part"), [(2.0, 0.5), (10.0, 0.9), (1.05, 1 - 1 / 1.05)])
def test_the_limit_decides_within_three_percent_whatever_the_capacity_seemed(
    capacity: float, limit_ms: float, part: float
) -> None:
    found = search(Server(queue_of(1000.0, 1.0)), limited(limit_ms), capacity)
    assert 1000 * part / 1.03 <= found.rate_per_second <= 1000 * part
    assert found.p99_ms <= limit_ms
    assert len(found.probes) < 20


def test_upwards_by_fourths_and_then_by_halves() -> None:
    found = search(Server(up_to(1000.0)))
    assert rates(found)[:4] == [750, 937.5, 1171.88, 1048.16]
    assert [probe.kept for probe in found.probes][:4] == [True, True, False, False]


def test_downwards_to_a_fourth_and_then_by_halves() -> None:
    found = search(Server(up_to(100.0)))
    assert rates(found)[:4] == [750, 187.5, 46.875, 93.75]
    assert [probe.kept for probe in found.probes][:4] == [False, False, True, True]


@pytest.mark.parametrize("highest", [11.0, 70.0, 300.0, 751.0, 1234.0, 2500.0])
def test_what_was_found_lies_between_a_rate_kept_and_one_missed(highest: float) -> None:
    found = search(Server(up_to(highest)))
    kept = [probe.rate_per_second for probe in found.probes if probe.kept]
    missed = [probe.rate_per_second for probe in found.probes if not probe.kept]
    assert max(kept) == found.rate_per_second
    assert 1 < min(missed) / found.rate_per_second <= 1.03
    assert len(set(rates(found))) == len(found.probes)  # no rate is tried twice


def test_the_run_is_the_very_one_of_the_rate() -> None:
    server = Server(up_to(300.0))
    found = search(server)
    index = rates(found).index(found.rate_per_second)
    assert found.p99_ms == server.runs[index].p99_ms
    assert found.num_queries == server.runs[index].num_queries
    assert [probe.p99_ms for probe in found.probes] == [run.p99_ms for run in server.runs]


def test_a_p99_that_is_the_limit_keeps_it() -> None:
    exactly = search(Server(lambda rate: LIMIT_MS if rate <= 500 else LIMIT_MS + 1e-9))
    assert 500 / 1.03 <= exactly.rate_per_second <= 500


def test_the_same_answers_give_the_same_search() -> None:
    assert search(Server(up_to(420.0))) == search(Server(up_to(420.0)))


def test_a_faster_server_is_never_given_a_lower_rate() -> None:
    found = [search(Server(up_to(rate))).rate_per_second for rate in range(20, 3000, 97)]
    assert found == sorted(found)


@pytest.mark.parametrize("capacity", [0.5, 37.0, 80_000.0])
def test_no_rate_is_tried_beyond_three_times_the_capacity(capacity: float) -> None:
    found = search(Server(lambda _: 1.0), capacity=capacity)
    assert all(first < second for first, second in itertools.pairwise(rates(found)))
    assert 3 / 1.25 * capacity <= found.rate_per_second < 3 * capacity


def test_an_error_of_the_server_is_not_a_rate_that_was_missed() -> None:
    def breaks(rate: float) -> float:
        if rate < 200:
            raise ModelError("the process has died")
        return 99.0

    server = Server(breaks)
    with pytest.raises(ModelError, match="the process has died"):
        search(server)
    assert [load.rate_per_second for load in server.loads] == [750]


# A limit out of reach


def test_the_best_that_was_reached_need_not_be_at_the_lowest_rate() -> None:
    """A processor that falls asleep between queries answers slowly at low rates."""
    server = Server(lambda rate: 12.5 if 100 < rate < 200 else 40.0)
    with pytest.raises(InputError) as caught:
        search(server)
    assert str(caught.value) == (
        "no rate keeps p99 under 10 ms: the best was 12.5 ms at 188 queries/s"
    )


@pytest.mark.parametrize(
    ("seconds", "lowest"),
    [
        (0.01, CAPACITY / 4),  # a tenth of a second holds no hundred queries below a thousand
        (0.1, MIN_QUERIES / (0.1 * MAX_OVERRUN)),
        (60.0, CAPACITY / 100),
    ],
)
def test_the_lowest_rate_still_has_its_queries_in_time(seconds: float, lowest: float) -> None:
    server = Server(lambda _: 99.0)
    with pytest.raises(InputError, match="no rate keeps p99 under 10 ms: the best was 99 ms"):
        search(server, plan("server", seconds=seconds, p99_limit_ms=LIMIT_MS))
    tried = [load.rate_per_second for load in server.loads]
    assert tried == sorted(tried, reverse=True)
    assert tried[-1] == lowest
    # Only the last may go on when the limit is lost: its p99 is one that an error can tell.
    assert [load.limit_ms for load in server.loads] == [LIMIT_MS] * (len(tried) - 1) + [None]


def test_the_lowest_rate_is_an_answer_too() -> None:
    found = search(Server(up_to(10.2)), plan("server", seconds=60.0, p99_limit_ms=LIMIT_MS))
    assert found.rate_per_second == 10
    assert found.probes[-1].rate_per_second > 10


# How long a probe is


def test_a_number_of_queries_is_whole_and_within_its_bounds() -> None:
    for rate, seconds in itertools.product((0.01, 0.7, 33.3, 1e3, 1e7), (0.01, 1.0, 60.0)):
        count = num_queries(rate, seconds, MIN_QUERIES)
        assert isinstance(count, int)
        assert 1 <= count <= 1_000_000
        assert count <= max(1, rate * seconds * MAX_OVERRUN) + 1
        enough = max(rate * seconds, MIN_QUERIES)
        assert count >= min(enough, rate * seconds * MAX_OVERRUN, 1_000_000)


def test_more_time_never_means_fewer_queries() -> None:
    counts = [num_queries(20.0, seconds, MIN_QUERIES) for seconds in (0.1, 0.5, 1, 5, 10, 100)]
    assert counts == [20, 100, 100, 100, 200, 2000]


def test_part_of_a_query_is_a_whole_one() -> None:
    assert num_queries(100.1, 10.0, MIN_QUERIES) == 1001


def test_a_probe_lasts_thirty_limits_where_that_is_longer() -> None:
    server = Server(up_to(2000.0))
    search(server, limited(100.0))
    for load in server.loads:
        assert load.num_queries == num_queries(load.rate_per_second, 3.0, 500)


def test_a_probe_lasts_as_long_as_was_asked_where_that_is_longer() -> None:
    server = Server(up_to(2000.0))
    search(server)
    for load in server.loads:
        assert load.num_queries == num_queries(load.rate_per_second, PLAN.seconds, 500)


def test_probes_draw_their_arrivals_from_the_seed_of_the_plan() -> None:
    server = Server(up_to(50.0))
    search(server)
    assert [load.seed for load in server.loads] == [
        40 + index for index in range(len(server.loads))
    ]


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
