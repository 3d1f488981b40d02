"""MLflow in a process of its own, which imports it while a training is prepared and runs.

`ferry train` begins one before it imports PyTorch. What is to be recorded goes there in order, and
nothing but the end of the run waits for it.
"""

import contextlib
import importlib
import logging
import multiprocessing
import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.tracking import ELSEWHERE, Tracker
from pipeline.tracking.models import load_mlflow
from serving.runtime.cores import end_with_parent, start_without_ctrl_c

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.5
"""How often a run that waits looks whether the process still lives."""
END = "end"
"""What the process says when all is recorded."""


@contextlib.contextmanager
def in_background(*, wanted: bool) -> Iterator[None]:
    """Record the training in the block from a process of its own, which begins now."""
    if not wanted:
        yield
        return
    tracker = BackgroundTracker()
    ELSEWHERE.append(tracker)
    try:
        yield
    finally:
        ELSEWHERE.remove(tracker)
        tracker.stop()


class BackgroundTracker(Tracker):
    """Sends everything to another process, where a `Tracker` does it.

    `run_id` is known when the run has begun there, and in any case at the end.
    """

    def __init__(self) -> None:
        super().__init__()
        context = multiprocessing.get_context("spawn")
        self._asked, self._told = context.Queue(), context.Queue()
        queues = (self._asked, self._told)
        self._process = context.Process(target=_serve, args=queues, daemon=True)
        # Ctrl-C is for the training; its end comes here as `finish` does.
        start_without_ctrl_c(self._process)

    def start(self, experiment: str, find: Callable[[Any], str | None]) -> None:
        """Go on with the run that `find` finds in the store, or start one, when MLflow is there."""
        self._asked.put(("start", (experiment, find)))

    def finish(self, status: str) -> None:
        """Wait until all is recorded; the process says what is missing from the run."""
        begin = time.perf_counter()
        self._asked.put(("finish", (status,)))
        while not self._look(SECONDS_BETWEEN_LOOKS):
            if not self._process.is_alive():
                logger.warning("MLflow did not record all: its process died")
                break
        self.seconds += time.perf_counter() - begin

    def stop(self) -> None:
        """End the process; what it has not recorded by now is given up."""
        self._asked.cancel_join_thread()
        self._process.terminate()
        self._process.join()

    def _record(self, what: str, action: str | Callable[..., Any], *given: Any) -> Any:
        self._asked.put(("_record", (what, action, *given)))
        self._look(0)

    def _look(self, seconds: float) -> bool:
        """Wait some seconds for what the process tells; whether it is the end."""
        try:
            told = self._told.get(timeout=seconds)
        except queue.Empty:
            return False
        if told == END:
            return True
        self.run_id = told
        return False


def _serve(asked: "multiprocessing.Queue[Any]", told: "multiprocessing.Queue[Any]") -> None:
    """Do what is asked, in order, until the run is finished."""
    end_with_parent()
    with contextlib.suppress(ImportError):  # which is told when something is to be recorded
        load_mlflow()
        importlib.import_module("matplotlib.backends.backend_agg")  # the figures come last
    tracker, method = Tracker(), ""
    while method != "finish":
        method, given = asked.get()
        getattr(tracker, method)(*given)
        if method == "start":
            told.put(tracker.run_id)
    told.put(END)
