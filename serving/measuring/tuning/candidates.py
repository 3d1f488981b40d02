"""The candidates of `ferry bench --tune`: all settings and batch sizes that make sense.

ONNX Runtime's own settings are always among them, so that the choice is never under those.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from serving.bundles.profiles import Goal, in_words
from serving.errors import UsageError
from serving.runtime.settings import GPU_PROVIDERS, ConvSearch, SessionSettings, check_settings

BATCH_SIZES = (1, 4, 8, 16, 32, 64, 128, 256)
"""For throughput; beyond, a batch outgrows the caches and gains nothing more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run a model: settings and a batch size."""

    settings: SessionSettings
    batch_size: int

    @property
    def rows_at_a_time(self) -> int:
        """Rows that are in work at a time, over all calls side by side."""
        return self.batch_size * self.settings.parallel

    def describe(self) -> str:
        """For instance "threads 1, parallel 2, binding on, batch 16"."""
        return in_words(self.settings, self.batch_size)


def defaults(cores: int) -> SessionSettings:
    """ONNX Runtime's own settings: all cores in one call, spinning, nothing bound."""
    return SessionSettings(threads=cores)


def candidates(
    goal: Goal,
    provider: str,
    batch_sizes: Sequence[int],
    *,
    cores: int,
    bindable: bool,
    allow_reduced_precision: bool,
) -> tuple[Candidate, ...]:
    """The grid, those of one session side by side: only its batch sizes and binding differ.

    A latency is that of one call alone on one batch size, so UsageError for several of these.
    `bindable` is whether memory can be bound to the model at all. tf32 and fp16 change the
    model's arithmetic: they are tried only with `allow_reduced_precision`.
    """
    if goal == "latency" and len(batch_sizes) != 1:
        message = ", ".join(map(str, batch_sizes))
        raise UsageError(f"a latency is that of one batch size, got {message}; name one")
    on_gpu = provider in GPU_PROVIDERS
    shapes = _on_gpu(goal, cores) if on_gpu else _on_cpu(goal, cores)
    tried = [
        bound
        for shape in shapes
        for tuned in _of_provider(shape, provider, allow_reduced_precision)
        for bound in _bindings(tuned, bindable, provider)
    ]
    settings = dict.fromkeys([defaults(cores), *tried])
    return tuple(
        Candidate(settings=one, batch_size=size) for one in settings for size in batch_sizes
    )


def powers_up_to(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    powers = itertools.takewhile(lambda power: power < most, (2**n for n in itertools.count()))
    return [*powers, most]


def _on_cpu(goal: Goal, cores: int) -> Iterator[SessionSettings]:
    """Threads times calls side by side fill the cores and no more."""
    for threads in powers_up_to(cores):
        calls = powers_up_to(cores // threads) if goal == "throughput" else [1]
        for parallel in calls:
            # One thread has no others to wait for it.
            for spinning in (True, False) if threads > 1 else (True,):
                yield SessionSettings(threads=threads, parallel=parallel, spinning=spinning)


def _on_gpu(goal: Goal, cores: int) -> Iterator[SessionSettings]:
    """The processor only starts kernels; a second caller fills the pauses of the first."""
    for parallel in (1, 2) if goal == "throughput" and cores > 1 else (1,):
        yield SessionSettings(threads=1, parallel=parallel)


def _of_provider(
    settings: SessionSettings, provider: str, allow_reduced_precision: bool
) -> Iterator[SessionSettings]:
    """The same with everything that the provider knows and others do not."""
    searches: tuple[ConvSearch, ...] = ("exhaustive", "heuristic")
    knows_search = _knows(provider, SessionSettings(threads=1, conv_search="heuristic"))
    reduced = allow_reduced_precision
    may_tf32 = reduced and _knows(provider, SessionSettings(threads=1, tf32=True))
    may_fp16 = reduced and _knows(provider, SessionSettings(threads=1, fp16=True))
    yield from (
        replace(settings, nhwc=nhwc, conv_search=search, tf32=tf32, fp16=fp16)
        for nhwc in _switch(_knows(provider, SessionSettings(threads=1, nhwc=True)))
        for search in (searches if knows_search else searches[:1])
        for tf32 in _switch(may_tf32)
        for fp16 in _switch(may_fp16)
    )


def _switch(may_be_on: bool) -> tuple[bool, ...]:
    return (False, True) if may_be_on else (False,)


def _knows(provider: str, settings: SessionSettings) -> bool:
    """Whether a provider can be told that."""
    try:
        check_settings(settings, provider)
    except UsageError:
        return False
    return True


def _bindings(
    settings: SessionSettings, bindable: bool, provider: str
) -> Iterator[SessionSettings]:
    """Unbound, bound, and with a captured graph, which one caller at a time can replay."""
    yield settings
    if bindable:
        yield replace(settings, binding=True)
        captured = replace(settings, binding=True, cuda_graph=True)
        if settings.parallel == 1 and _knows(provider, captured):
            yield captured
