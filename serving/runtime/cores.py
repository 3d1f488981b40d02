"""How many cores a process may use, how it works on several items, and how a helper of it ends.

ONNX Runtime itself ignores affinity and quotas, and more threads than cores make every figure
worse, so each session and each training asks here.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future
    from multiprocessing.process import BaseProcess


def allowed_cores() -> int:
    """The cores that this process may use: its affinity, cut by a container's quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    quota = quota_cores()
    return max(1, min(cores, int(quota))) if quota else cores


def quota_cores(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """The cores that a version 2 control group grants, or None where it sets no limit."""
    try:
        limit, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)


Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Items for each thread: one in work, and one that waits so that the thread need not."""


def ordered_map(
    work: Callable[[Item], Result], items: Iterable[Item], *, parallel: int
) -> Iterator[Result]:
    """Give `work(item)` for each of `items`, worked on in `parallel` threads, in their order.

    A few items are taken ahead, in the caller's thread. What `work` raises is raised here, in its
    place; then, and when the caller stops early, the items that wait are dropped.
    """
    if parallel == 1:
        yield from map(work, items)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(parallel) as pool:
        yield from ordered_results(pool, work, items, parallel=parallel)


def ordered_results(
    pool: "Executor", work: Callable[[Item], Result], items: Iterable[Item], *, parallel: int
) -> Iterator[Result]:
    """As `ordered_map`, in a pool of the caller's that has `parallel` threads or processes."""
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


def start_without_ctrl_c(process: "BaseProcess") -> None:
    """Start a process that Ctrl-C, which reaches the whole group, does not end, from its birth."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)


def end_with_parent() -> None:
    """End this process of `multiprocessing` when its parent is gone, even if that was killed."""
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
