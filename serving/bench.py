"""`ferry bench MODEL`: how fast an ONNX file or a bundle is on this machine, with proof of where.

The library measures in the process that calls it; `bench_in_subprocess` and `bench_providers` give
each measurement a fresh process, so that neither memory nor threads of one leak into another.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy.typing as npt

from serving.bench_report import BenchReport, SkippedBatch, SkippedProvider, report_from
from serving.bundle import open_bundle
from serving.environment import describe, peak_memory_bytes
from serving.errors import InputError, ModelError, ProviderError, UsageError
from serving.feeds import fixed_batch, random_feeds, read_rows, refuse_free_axes, row_feeds
from serving.probe import probe
from serving.session import (
    Session,
    allowed_cores,
    open_session,
    usable_providers,
)
from serving.timing import NS_PER_MS, Timing, time_calls

__all__ = [
    "BATCH_SIZES",
    "BenchReport",
    "SkippedBatch",
    "SkippedProvider",
    "bench",
    "bench_in_subprocess",
    "bench_providers",
]

BATCH_SIZES = (1, 8, 32, 128)
"""What the command sweeps when it is not told."""
SECONDS = 0.5
NUM_SESSIONS = 3

MakeFeeds = Callable[[int], dict[str, npt.NDArray[Any]]]
"""The inputs of a batch of so many rows."""


def bench(
    model: Path,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = SECONDS,
    rows: Path | None = None,
) -> BenchReport:
    """Time an ONNX file or a bundle on seeded random inputs or on `rows`, in this process.

    `provider` is a key of `serving.session.PROVIDERS`, `threads` the threads within one operator
    (default: the cores this process may use), `seconds` the time spent on each batch size. `rows`
    is a `.npy`, `.npz` or `.txt` file, whose first rows are fed, over again to fill a batch.

    Raises UsageError for senseless arguments, InputError for a model whose inputs cannot be made
    up or are not those of `rows`, and what `serving.bundle.open_bundle` and
    `serving.session.open_session` raise.
    """
    _check(batch_sizes, seconds, threads)
    environment = describe()
    source = open_bundle(model).model if model.is_dir() else model
    session_ms, session = _create(source, provider, threads)
    make_feeds = _feeds(model, session, rows, max(batch_sizes))
    runnable, skipped = _split(fixed_batch(session.inputs), batch_sizes)
    first_calls: list[float] = []
    batches: list[Timing] = []
    for batch_size in runnable:
        try:
            first_calls.append(_first_call_ms(session, make_feeds(batch_size)))
        except InputError as error:  # too large for the memory, or fixed somewhere inside the graph
            skipped.append(SkippedBatch(batch_size=batch_size, skipped=str(error)))
        else:
            batches.append(_time_batch(session, make_feeds, batch_size, seconds))
    if not batches:
        raise InputError(f"{model}: {skipped[-1].skipped}")
    return BenchReport(
        model=str(model),
        rows=rows.name if rows else None,
        sha256=session.sha256,
        file_bytes=len(source) if isinstance(source, bytes) else source.stat().st_size,
        provider=provider,
        proof=session.proof,
        share=session.proof.share,
        threads=session.threads,
        session_ms=session_ms,
        first_call_ms=first_calls[0],
        peak_memory_bytes=peak_memory_bytes(),
        batches=tuple(batches),
        skipped=tuple(skipped),
        environment=environment,
    )


def bench_in_subprocess(
    model: Path,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = SECONDS,
    rows: Path | None = None,
) -> BenchReport:
    """Do as `bench` does, in a fresh process that holds nothing but this model.

    Raises UsageError for senseless arguments, ProviderError when another provider than the CPU
    failed and ModelError for anything else that went wrong there; the message is the process's own.
    """
    _check(batch_sizes, seconds, threads)
    command = [sys.executable, "-m", "serving", "bench", str(model), "--json"]
    command += ["--provider", provider, "--seconds", str(seconds)]
    command += ["--threads", str(threads or allowed_cores())]
    command += [f"--batch-size={size}" for size in batch_sizes]
    command += [f"--rows={rows}"] if rows else []
    done = subprocess.run(command, capture_output=True, text=True, env=_child_environment())
    if done.returncode:
        error = ModelError if provider == "cpu" else ProviderError
        raise error(_reason(model, provider, done))
    return report_from(_parsed(done.stdout, provider))


def bench_providers(
    model: Path,
    *,
    threads: int | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = SECONDS,
    rows: Path | None = None,
) -> tuple[BenchReport | SkippedProvider, ...]:
    """Time a model on every provider of the installed wheel, each in a fresh process.

    A provider that cannot run on this machine, or not this model, is a row with its reason; the
    CPU always can, so there its error is raised.
    """
    time_on = functools.partial(
        bench_in_subprocess,
        model,
        threads=threads,
        batch_sizes=batch_sizes,
        seconds=seconds,
        rows=rows,
    )
    found: list[BenchReport | SkippedProvider] = []
    for provider, reason in usable_providers(probe()).items():
        if reason is not None:
            found.append(SkippedProvider(provider=provider, skipped=reason))
            continue
        try:
            found.append(time_on(provider=provider))
        except ProviderError as error:
            found.append(SkippedProvider(provider=provider, skipped=str(error)))
    return tuple(found)


def _check(batch_sizes: Sequence[int], seconds: float, threads: int | None) -> None:
    wrong = [size for size in batch_sizes if size < 1]
    if wrong or not batch_sizes:
        raise UsageError(f"a batch size must be 1 or more, got {wrong[0] if wrong else 'none'}")
    if not 0 < seconds <= 3600:
        raise UsageError(f"seconds must be above 0 and at most 3600, got {seconds:g}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be 1 or more, got {threads}")


def _create(source: Path | bytes, provider: str, threads: int | None) -> tuple[float, Session]:
    """The median time of making a session in milliseconds, and the last one made."""
    times: list[float] = []
    while True:
        start = perf_counter_ns()
        session = open_session(source, provider=provider, threads=threads)
        times.append((perf_counter_ns() - start) / NS_PER_MS)
        if len(times) == NUM_SESSIONS:
            return round(statistics.median(times), 3), session
        del session  # only one lives at a time, or the peak of memory would be that of two


def _split(fixed: int | None, batch_sizes: Sequence[int]) -> tuple[list[int], list[SkippedBatch]]:
    """The batch sizes that the model takes, and the others with their reason."""
    if fixed is None:
        return list(batch_sizes), []
    reason = f"the model takes batches of {fixed} and no other"
    if fixed not in batch_sizes:
        raise InputError(f"{reason}; ask for batch size {fixed}")
    others = [size for size in batch_sizes if size != fixed]
    return [fixed], [SkippedBatch(batch_size=size, skipped=reason) for size in others]


def _feeds(model: Path, session: Session, rows: Path | None, most: int) -> MakeFeeds:
    """What makes the inputs of a batch: from the first rows of a file, or at random."""
    if rows is None:
        refuse_free_axes(session.inputs)
        return functools.partial(random_feeds, session.inputs)
    return functools.partial(
        row_feeds, session.inputs, read_rows(rows, session.inputs, model, most)
    )


def _first_call_ms(session: Session, feeds: dict[str, npt.NDArray[Any]]) -> float:
    start = perf_counter_ns()
    session.run(feeds)
    return round((perf_counter_ns() - start) / NS_PER_MS, 3)


def _time_batch(session: Session, make_feeds: MakeFeeds, batch_size: int, seconds: float) -> Timing:
    names = [output.name for output in session.outputs]
    call = functools.partial(session.raw.run, names, make_feeds(batch_size))
    return time_calls(call, batch_size=batch_size, seconds=seconds)


def _child_environment() -> dict[str, str]:
    """This process's environment, with the folder that `serving` lies in on the path.

    Without the options of `ferry bench` that it may hold: those that count are in the command.
    """
    kept = {name: value for name, value in os.environ.items() if name[:12] != "FERRY_BENCH_"}
    home = str(Path(__file__).resolve().parents[1])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}


def _parsed(stdout: str, provider: str) -> object:
    try:
        return json.loads(stdout)
    except ValueError as error:
        told = " ".join(stdout.split())[:200]
        raise ProviderError(f"{provider} wrote to stdout where JSON was due: {told}") from error


def _reason(model: Path, provider: str, done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"timing {model} on {provider} was killed by signal {-done.returncode}"
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return lines[-1].removeprefix("Error: ")
