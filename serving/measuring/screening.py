"""Find the few best of many candidates, cheaply: all of them in one process, in halvings.

The candidates are all settings and batch sizes that make sense, ONNX Runtime's own settings always
among them, so that the choice is never under those. Successive halving (Jamieson and Talwalkar
2016) takes a short look at each, a longer one at the best third, and so on until a few are left. A
process for each would cost more than its measurement.

Run by `serving.measuring.subject`: python -m serving.measuring.screening
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from serving.bundles.profiles import Goal, in_words
from serving.errors import FerryError, ModelError, UsageError
from serving.measuring.onnx_subject import OnnxSubject
from serving.measuring.rounds import Log
from serving.measuring.subject import Started, SubjectProcess, SubjectSpec, serve
from serving.runtime.settings import GPU_PROVIDERS, ConvSearch, SessionSettings, check_settings

BATCH_SIZES = (1, 4, 8, 16, 32, 64, 128, 256)
"""For throughput; beyond, a batch outgrows the caches and gains nothing more."""
LOOK_SECONDS = 0.02
"""The first look at a candidate; each later one is longer by KEPT_OF."""
KEPT_OF = 3
"""One of so many goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run a model: settings and a batch size."""

    settings: SessionSettings
    batch_size: int

    def ms_per_row(self, p50_ms: float) -> float:
        """The time of a call over the rows that are in work meanwhile, of all calls at a time."""
        return p50_ms / (self.batch_size * self.settings.parallel)

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
    shapes = _on_gpu(goal, cores) if provider in GPU_PROVIDERS else _on_cpu(goal, cores)
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
    return [*(2**n for n in range((most - 1).bit_length())), most]


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
    reduced = (False, True) if allow_reduced_precision else (False,)
    for nhwc, search, tf32, fp16 in itertools.product((False, True), searches, reduced, reduced):
        tuned = replace(settings, nhwc=nhwc, conv_search=search, tf32=tf32, fp16=fp16)
        if _knows(provider, tuned):
            yield tuned


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


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateTrial:
    """What the screening saw of a candidate."""

    candidate: Candidate
    looks: int
    """How often it was looked at; the last look counts."""
    p50_ms: float | None
    """Of one call; None for one that cannot be run."""
    skipped: str | None
    """Why it cannot be run."""

    @property
    def cost(self) -> float:
        """What candidates are ranked by: milliseconds per row, endless for one that cannot run."""
        return self.candidate.ms_per_row(self.p50_ms) if self.p50_ms else float("inf")


def screen(
    spec: SubjectSpec, grid: Sequence[Candidate], *, keep: int, log: Log
) -> tuple[CandidateTrial, ...]:
    """Look at all of `grid`, longer and longer at the best, until `keep` are left.

    Best first: those that went further before those left behind, what cannot be run last.
    """
    found: dict[Candidate, CandidateTrial] = {}
    left, looks = list(grid), 0
    with _ScreeningProcess(spec) as process:
        while not looks or len(left) > keep:
            looks += 1
            seconds = LOOK_SECONDS * KEPT_OF ** (looks - 1)
            for number, candidate in enumerate(left, start=1):
                log(f"look {looks}, {number} of {len(left)}: {candidate.describe()}")
                found[candidate] = process.look(candidate, seconds, looks)
            ranked = sorted(left, key=lambda one: found[one].cost)
            kept = set(ranked[: max(keep, -(-len(left) // KEPT_OF))])
            # In the order of the grid, which opens a session once for all that share it.
            left = [one for one in left if one in kept and not found[one].skipped]
    return tuple(sorted(found.values(), key=lambda one: (bool(one.skipped), -one.looks, one.cost)))


class _ScreeningProcess:
    """The process that looks, started anew when a candidate ends it."""

    def __init__(self, spec: SubjectSpec) -> None:
        self._spec = spec
        self._process = SubjectProcess(spec)
        self._settings: SessionSettings | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    def look(self, candidate: Candidate, seconds: float, looks: int) -> CandidateTrial:
        p50_ms, skipped = None, None
        try:
            if candidate.settings != self._settings:
                self._process.start(candidate.settings)
                self._settings = candidate.settings
            p50_ms = self._process.ask("glance", batch_size=candidate.batch_size, seconds=seconds)
        except FerryError as error:
            skipped = str(error)
            self._settings = None
            if isinstance(error, ModelError):  # as it is when the process has died
                self._process.close()
                self._process = SubjectProcess(self._spec)
        return CandidateTrial(candidate=candidate, looks=looks, p50_ms=p50_ms, skipped=skipped)


class ScreenedSubject(OnnxSubject):
    """A model that is opened often and briefly: once, and not again to bind its memory."""

    def start(self, settings: SessionSettings) -> Started:
        """Make the session, or keep the one that differs in nothing but `binding`."""
        session = self.session
        if session and replace(session.settings, binding=settings.binding) == settings:
            session = replace(session, settings=settings)
        else:
            self.session = None  # only one lives at a time
            session = self.open(settings)
        self.session = session
        return self.started(session, ready_ms=0.0)  # that is not what is asked for here


if __name__ == "__main__":
    serve(ScreenedSubject.of)
