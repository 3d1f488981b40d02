"""Work on several items at a time and give the results in the order of the items.

Only a few items are taken ahead, so that memory does not grow with their number.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ordered_map", "ordered_results"]

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Items for each thread: one in work, and one that waits so that no thread ever does."""


def ordered_map(
    work: Callable[[Item], Result], items: Iterable[Item], *, parallel: int
) -> Iterator[Result]:
    """Give `work(item)` for each of `items`, worked on in `parallel` threads, in their order.

    The items are taken in the caller's thread. What `work` raises is raised here in its place
    among the results; then, and when the caller stops early, the items that wait are dropped.
    """
    if parallel == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(parallel) as pool:
        yield from ordered_results(pool, work, items, parallel=parallel)


def ordered_results(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], *, parallel: int
) -> Iterator[Result]:
    """The same with a pool of the caller's, of threads or of processes, that has `parallel`."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == AHEAD * parallel:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for one in waiting:
            one.cancel()
