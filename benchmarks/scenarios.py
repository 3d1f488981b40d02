"""How ferry's scenarios compare with MLPerf's load generator on a real model, beside the aim.

Run: python benchmarks/scenarios.py [MODEL.onnx]      (after `dvc repro export@cifar10-resnet8`)

`mlcommons_loadgen` makes the same loads on the same session, in turns with ferry; a seed draws the
order. A ratio is ferry's figure over LoadGen's, pair by pair. LoadGen calls back into Python for
each query, which takes some microseconds: on a model that answers as fast, those are a real
difference.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from benching import Line, parser, show

from serving.errors import FerryError
from serving.measuring.onnx_subject import OnnxSubject
from serving.measuring.pairing import orders, ratio_of_turns
from serving.measuring.scenarios import (
    MIN_QUERIES,
    run_offline,
    run_server,
    run_stream,
)
from serving.measuring.system import Lane, LoadRun, ServerLoad, System, busy_threads
from serving.measuring.timing import MAX_OVERRUN, NS_PER_MS, NS_PER_S, Call, digits, warm_up
from serving.runtime.settings import SessionSettings

MODEL = Path("models/cifar10-resnet8/model.onnx")
PAIRS = 9
SECONDS = 2.0
BATCH_SIZE = 32
AIM = 0.03
SEED = 1
RATE = 50.0
LOAD = ServerLoad(rate_per_second=RATE, num_queries=int(RATE * SECONDS), seed=SEED, limit_ms=None)

QUICKER = 0.5
"""LoadGen makes queries in advance for calls that are quicker than they seem; none may lack."""
NO_LIMIT_NS = 3600 * NS_PER_S
NUM_SAMPLES = 1024
LOG_MARK = ":::MLLOG "
PERCENTILES = {"p50_ms": "50.00", "p90_ms": "90.00", "p99_ms": "99.00", "p999_ms": "99.90"}

Issue = Callable[[Sequence[int], Sequence[int]], None]
"""Is given the identities of samples, and their indices."""


@dataclass(frozen=True)
class Engine:
    """What makes the load and takes the times; see `serving.measuring.scenarios`."""

    stream: Callable[[System, int, float], LoadRun]
    offline: Callable[[System, float], LoadRun]
    server: Callable[[System, ServerLoad], LoadRun]


@dataclass(frozen=True)
class Scenario:
    """What is compared."""

    name: str
    run: Callable[[Engine, System], LoadRun]
    figures: tuple[str, ...]
    judged: str
    """The figure that the aim is for; "" for none."""


SCENARIOS = (
    Scenario(
        name="single-stream",
        run=lambda engine, system: engine.stream(system, 1, SECONDS),
        figures=("p50_ms", "p90_ms"),
        judged="p90_ms",
    ),
    Scenario(
        name=f"offline, batch {BATCH_SIZE}",
        run=lambda engine, system: engine.offline(system, SECONDS),
        figures=("rows_per_second",),
        judged="rows_per_second",
    ),
    Scenario(
        name=f"server, {RATE:g} queries/s",
        run=lambda engine, system: engine.server(system, LOAD),
        figures=("p50_ms", "p90_ms"),
        judged="",
    ),
)


def main() -> None:
    """Print a line for each figure."""
    arguments = parser(__doc__)
    arguments.add_argument("model", nargs="?", type=Path, default=MODEL, metavar="MODEL.onnx")
    given = arguments.parse_args()
    settings = SessionSettings(threads=1)
    subject = OnnxSubject(given.model, "cpu", None)
    subject.start(settings)
    system = System(subject, settings, BATCH_SIZE)
    print(f"{given.model}, {PAIRS} pairs of {SECONDS:g} s on one thread")
    found = [line for scenario in SCENARIOS for line in lines(scenario, system)]
    show(found, given.publish)


def lines(scenario: Scenario, system: System) -> Iterator[Line]:
    """Ferry's figures of one scenario over LoadGen's, with both."""
    runs: dict[str, list[LoadRun]] = {name: [] for name in ENGINES}
    for size in (1, BATCH_SIZE):
        warm_up(system.call(size), SECONDS)
    for order in orders(list(ENGINES), PAIRS, np.random.default_rng(SEED)):
        for name in order:
            runs[name].append(scenario.run(ENGINES[name], system))
    for figure in scenario.figures:
        ours, theirs = ([getattr(run, figure) for run in runs[name]] for name in ENGINES)
        ratio = ratio_of_turns(ours, theirs, seed=SEED)
        judged = figure == scenario.judged
        yield Line(
            f"{scenario.name} {figure}, ferry over LoadGen",
            f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f}); "
            f"{np.median(ours):.4g} and {np.median(theirs):.4g}",
            "1.00 ± 0.03" if judged else "",
            abs(ratio.median - 1) <= AIM if judged else None,
        )


# MLPerf's load generator as an engine


def load_library() -> Any:
    """The package; FerryError when it is not installed."""
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise FerryError(
            "this comparison needs MLPerf's load generator: pip install mlcommons_loadgen"
        ) from error
    return mlperf_loadgen


def loadgen_stream(system: System, rows: int, seconds: float) -> LoadRun:
    """Ask queries of so many rows one after the other, for about so many seconds."""
    library, call = load_library(), system.call(rows)
    query_ns = system.time_of(call)
    settings = _settings(library, "SingleStream" if rows == 1 else "MultiStream")
    settings.min_duration_ms = max(1, round(seconds * 1000))
    in_time = MAX_OVERRUN * seconds * NS_PER_S / query_ns
    settings.min_query_count = max(1, int(min(MIN_QUERIES, in_time)))
    settings.single_stream_expected_latency_ns = int(query_ns * QUICKER)
    settings.multi_stream_expected_latency_ns = int(query_ns * QUICKER)
    settings.multi_stream_samples_per_query = rows
    settings.multi_stream_target_latency_percentile = 0.9  # of 0.99 it wants 662 queries
    answers = _Answers(library)
    found = _test(library, settings, answers, lambda ids, _: answers.answer(call, ids))
    num_queries = found["result_query_count"]
    seconds = num_queries * found["result_mean_latency_ns"] / NS_PER_S
    return _run(found, seconds, rows_per_query=rows, num_queries=num_queries, batch_size=rows)


def loadgen_offline(system: System, seconds: float) -> LoadRun:
    """Ask for all rows at once: as many as take about so many seconds."""
    library, size = load_library(), system.batch_size
    parallel = system.settings.parallel
    num_calls = max(parallel, round(system.capacity(seconds) * seconds / size))
    num_rows = num_calls * size
    settings = _settings(library, "Offline")
    settings.offline_expected_qps = num_rows / seconds
    settings.min_duration_ms = 0
    settings.min_query_count = num_rows  # it asks for exactly so many, in one query
    found = _threaded(library, settings, system, [size])
    seconds = num_rows / found["result_samples_per_second"]
    return _run(found, seconds, rows_per_query=num_rows, num_queries=1, batch_size=size)


def loadgen_server(system: System, load: ServerLoad) -> LoadRun:
    """Ask queries of one row as they arrive; unlike ferry's, such a run cannot end early."""
    library, size = load_library(), system.batch_size
    settings = _settings(library, "Server")
    settings.server_target_qps = load.rate_per_second
    settings.server_target_latency_ns = NO_LIMIT_NS
    settings.min_duration_ms = 0
    settings.min_query_count = load.num_queries
    settings.schedule_rng_seed = load.seed
    found = _threaded(library, settings, system, range(1, size + 1))
    num_queries = found["result_query_count"]
    seconds = num_queries / found["result_completed_samples_per_sec"]
    return _run(found, seconds, rows_per_query=1, num_queries=num_queries, batch_size=size)


class _Answers:
    """Answers samples and tells loadgen so, which waits for ever for one that is not answered."""

    def __init__(self, library: Any) -> None:
        self._complete = library.QuerySamplesComplete
        self._response = library.QuerySampleResponse
        self._errors: list[Exception] = []

    def answer(self, call: Call, ids: Sequence[int]) -> None:
        """Make the call that answers the samples of these identities."""
        try:
            if not self._errors:
                call()
        except Exception as error:  # noqa: BLE001 - kept for `check`, as C++ called this
            self._errors.append(error)
        response = self._response
        self._complete([response(one, 0, 0) for one in ids])

    def check(self) -> None:
        """Raise what went wrong."""
        if self._errors:
            raise self._errors[0]


def _threaded(library: Any, settings: Any, system: System, sizes: Sequence[int]) -> Any:
    """Run a test whose samples go through a queue to the threads of the system."""
    answers, lanes = _Answers(library), system.lanes(sizes)
    waiting: SimpleQueue[list[int] | None] = SimpleQueue()
    size, most = min(sizes), max(sizes)

    def issue(ids: Sequence[int], indices: Sequence[int]) -> None:
        del indices  # all rows take their turns
        for start in range(0, len(ids), size):
            waiting.put(list(ids[start : start + size]))

    def work(lane: Lane) -> None:
        while (ids := waiting.get()) is not None:
            while len(ids) < most and (more := _at_once(waiting)):
                ids += more
            answers.answer(lane[len(ids)], ids)

    with busy_threads(lanes, work) as begin:
        working = begin()
        try:
            found = _test(library, settings, answers, issue)
        finally:
            for _ in lanes:
                waiting.put(None)
        list(working)
    return found


def _at_once(waiting: SimpleQueue[list[int] | None]) -> list[int] | None:
    """What waits in the queue already, or None."""
    try:
        return waiting.get_nowait()
    except Empty:
        return None


def _settings(library: Any, scenario: str) -> Any:
    settings = library.TestSettings()
    settings.scenario = getattr(library.TestScenario, scenario)
    settings.mode = library.TestMode.PerformanceOnly
    return settings


def _test(library: Any, settings: Any, answers: _Answers, issue: Issue) -> Mapping[str, Any]:
    """Run a test and return the entries of its detailed log, or raise what `answers` met."""
    with tempfile.TemporaryDirectory() as folder:
        logs = library.LogSettings()
        logs.enable_trace = False
        output = library.LogOutputSettings()
        output.outdir = folder
        output.copy_detail_to_stdout = output.copy_summary_to_stdout = False
        logs.log_output = output
        system = library.ConstructFastSUT(issue, _nothing)
        samples = library.ConstructQSL(NUM_SAMPLES, NUM_SAMPLES, _nothing, _nothing)
        try:
            library.StartTestWithLogSettings(system, samples, settings, logs, "")
        finally:
            library.DestroyFastSUT(system)
            library.DestroyQSL(samples)
        answers.check()
        return _entries(Path(folder) / "mlperf_log_detail.txt")


def _entries(log: Path) -> Mapping[str, Any]:
    """The last value of each key; FerryError for a test that did not end as it should."""
    lines = log.read_text(encoding="utf-8").splitlines()
    parsed = [json.loads(line.removeprefix(LOG_MARK)) for line in lines]
    found = {entry["key"]: entry["value"] for entry in parsed}
    if found["num_errors"] or not found["result_min_queries_met"]:
        message = [entry["value"] for entry in parsed if entry["metadata"].get("is_error")]
        raise FerryError(
            f"loadgen did not end its test: {message[0] if message else 'too few queries'}"
        )
    return found


def _run(
    found: Mapping[str, Any],
    seconds: float,
    *,
    rows_per_query: int,
    num_queries: int,
    batch_size: int,
) -> LoadRun:
    percentiles = {
        name: digits(found[f"result_{percentile}_percentile_latency_ns"] / NS_PER_MS)
        for name, percentile in PERCENTILES.items()
    }
    return LoadRun(
        batch_size=batch_size,
        rows_per_query=rows_per_query,
        num_queries=num_queries,
        seconds=digits(seconds),
        rows_per_second=digits(rows_per_query * num_queries / seconds),
        **percentiles,
    )


def _nothing(*_: Any) -> None:
    """Samples need no loading, and no query waits to be flushed."""


ENGINES: Mapping[str, Engine] = {
    "ferry": Engine(stream=run_stream, offline=run_offline, server=run_server),
    "loadgen": Engine(stream=loadgen_stream, offline=loadgen_offline, server=loadgen_server),
}


if __name__ == "__main__":
    main()
