import threading
import time
from collections.abc import Iterator

import pytest

from serving.runtime.cores import AHEAD, ordered_map


@pytest.mark.parametrize("parallel", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(parallel: int) -> None:
    def work(item: int) -> int:
        time.sleep(0.001 * (7 - item % 7))  # later ones end earlier
        return item * item

    assert list(ordered_map(work, range(50), parallel=parallel)) == [n * n for n in range(50)]
    assert list(ordered_map(work, [], parallel=parallel)) == []


def test_several_items_are_in_work_at_a_time() -> None:
    together = threading.Barrier(3)

    def work(item: int) -> int:
        together.wait(20)  # passes only if three are here
        return item

    assert list(ordered_map(work, range(9), parallel=3)) == list(range(9))


def test_few_items_are_taken_ahead() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    for result in ordered_map(lambda item: item, items(), parallel=2):
        assert len(taken) - result <= AHEAD * 2
    assert len(taken) == 1000


def test_one_at_a_time_takes_none_ahead_and_needs_no_thread() -> None:
    threads = set()
    taken = []

    def work(item: int) -> int:
        threads.add(threading.current_thread())
        return item

    results = ordered_map(work, (taken.append(item) or item for item in range(10)), parallel=1)
    assert next(results) == 0
    assert taken == [0]
    assert threads == {threading.main_thread()}


def test_what_fails_fails_in_its_place() -> None:
    done = []

    def work(item: int) -> int:
        if item == 5:
            raise ValueError("item 5")
        done.append(item)
        return item

    results = ordered_map(work, range(1000), parallel=2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="item 5"):
        next(results)
    assert len(done) < 20


def test_what_fails_in_the_items_ends_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        list(ordered_map(lambda item: item, items(), parallel=2))
    assert threading.active_count() == before


def test_a_caller_who_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    results = ordered_map(lambda item: item, iter(range(10**9)), parallel=3)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before
