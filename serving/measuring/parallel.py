"""Time the same call from several threads at once, as a server with one session would make it."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter_ns

import numpy as np

from serving.timing import Call, Samples, take_samples

__all__ = ["take_parallel_samples"]


def take_parallel_samples(calls: Sequence[Call], seconds: float, *, min_calls: int) -> Samples:
    """Time each of `calls` in a thread of its own for about `seconds`; one alone in this thread."""
    if len(calls) == 1:
        return take_samples(calls[0], seconds, min_calls=min_calls)
    together = threading.Barrier(len(calls) + 1)

    def run(call: Call) -> Samples:
        together.wait()
        return take_samples(call, seconds, min_calls=min_calls)

    with ThreadPoolExecutor(len(calls)) as pool:
        waiting = [pool.submit(run, call) for call in calls]
        together.wait()
        start = perf_counter_ns()
        parts = [one.result() for one in waiting]
        elapsed = perf_counter_ns() - start
    return Samples(
        call_ns=np.concatenate([part.call_ns for part in parts]),
        num_calls=sum(part.num_calls for part in parts),
        elapsed_ns=elapsed,
    )
