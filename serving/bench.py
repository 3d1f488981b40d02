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
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter_ns

from serving.bench_report import BenchReport, SkippedBatch, SkippedProvider, report_from
from serving.bundle import open_bundle
from serving.environment import describe, peak_memory_bytes
from serving.errors import InputError, ModelError, ProviderError, UsageError
from serving.feeds import fixed_batch, random_feeds
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


def bench(
    model: Path,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = SECONDS,
) -> BenchReport:
    """Time an ONNX file or a bundle on seeded random inputs, in this process.

    `provider` is a key of `serving.session.PROVIDERS`, `threads` the threads within one operator
    (default: the cores this process may use), `seconds` the time spent on each batch size.

    Raises UsageError for senseless arguments, InputError for a model whose inputs cannot be made
    up, and what `serving.bundle.open_bundle` and `serving.session.open_session` raise.
    """
    _check(batch_sizes, seconds, threads)
    environment = describe()
    source = open_bundle(model).model if model.is_dir() else model
    session_ms, session = _create(source, provider, threads)
    runnable, skipped = _split(fixed_batch(session.inputs), batch_sizes)
    first_calls: list[float] = []
    batches: list[Timing] = []
    for batch_size in runnable:
        try:
            first_calls.append(_first_call_ms(session, batch_size))
        except InputError as error:  # too large for the memory, or fixed somewhere inside the graph
            skipped.append(SkippedBatch(batch_size=batch_size, skipped=str(error)))
        else:
            batches.append(_time_batch(session, batch_size, seconds))
    if not batches:
        raise InputError(f"{model}: {skipped[-1].skipped}")
    return BenchReport(
        model=str(model),
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
) -> tuple[BenchReport | SkippedProvider, ...]:
    """Time a model on every provider of the installed wheel, each in a fresh process.

    A provider that cannot run on this machine, or not this model, is a row with its reason; the
    CPU always can, so there its error is raised.
    """
    rows: list[BenchReport | SkippedProvider] = []
    for provider, reason in usable_providers(probe()).items():
        if reason is not None:
            rows.append(SkippedProvider(provider=provider, skipped=reason))
            continue
        try:
            report = bench_in_subprocess(
                model, provider=provider, threads=threads, batch_sizes=batch_sizes, seconds=seconds
            )
        except ProviderError as error:
            rows.append(SkippedProvider(provider=provider, skipped=str(error)))
        else:
            rows.append(report)
    return tuple(rows)


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


def _first_call_ms(session: Session, batch_size: int) -> float:
    feeds = random_feeds(session.inputs, batch_size)
    start = perf_counter_ns()
    session.run(feeds)
    return round((perf_counter_ns() - start) / NS_PER_MS, 3)


def _time_batch(session: Session, batch_size: int, seconds: float) -> Timing:
    feeds = random_feeds(session.inputs, batch_size)
    names = [output.name for output in session.outputs]
    call = functools.partial(session.raw.run, names, feeds)
    return time_calls(call, batch_size=batch_size, seconds=seconds)


def _child_environment() -> dict[str, str]:
    """This process's environment, with the folder that `serving` lies in on the path."""
    home = str(Path(__file__).resolve().parents[1])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


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
