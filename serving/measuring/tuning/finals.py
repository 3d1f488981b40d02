"""Measure the few best ways to run a model, and ONNX Runtime's own, against each other.

Each has a process of its own, so that its memory is its own too, and they take turns.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import numpy as np

from serving.errors import FerryError, InputError
from serving.files import read_record
from serving.measuring.client import Spec, Worker
from serving.measuring.pairing import PairedRatio, orders, ratio_of_turns
from serving.measuring.rounds import Log, cores_for
from serving.measuring.timing import Timing
from serving.measuring.tuning.candidates import Candidate

MIB = 2**20
MIN_ROUNDS, MAX_ROUNDS = 4, 10
CALLS_OF_A_TURN = 7
"""Calls that even the shortest turn makes, for warmth and for the clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Final:
    """How the last round is run."""

    finalists: int
    seconds: float
    """For each, all turns together."""
    slowest_ms: float
    """Of a call of any of them, roughly: slow ones get fewer turns."""
    memory_limit_bytes: int | None
    seed: int

    @property
    def num_rounds(self) -> int:
        """Turns that each gets; an even number, so that each goes first equally often."""
        fitting = int(1000 * self.seconds / (CALLS_OF_A_TURN * self.slowest_ms))
        return max(MIN_ROUNDS, min(MAX_ROUNDS, fitting // 2 * 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalist:
    """A candidate that was measured in full."""

    candidate: Candidate
    timing: Timing
    peak_memory_bytes: int
    """The most memory that its process ever held, whole."""
    gpu_memory_bytes: int | None
    over_defaults: PairedRatio
    """How many times as many rows per second as with ONNX Runtime's own settings."""

    def keeps(self, memory_limit_bytes: int | None) -> bool:
        """Whether its peak memory is within the limit."""
        return memory_limit_bytes is None or self.peak_memory_bytes <= memory_limit_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedOver:
    """A candidate that was among the best and could not be chosen."""

    candidate: Candidate
    reason: str
    peak_memory_bytes: int | None
    """Where it was the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What the last round found."""

    finalists: tuple[Finalist, ...]
    """Without the defaults, unless they were among the best anyway."""
    defaults: Finalist
    passed_over: tuple[PassedOver, ...]


@dataclass(slots=True, kw_only=True)
class _Entrant:
    """A candidate's process."""

    worker: Worker
    candidate: Candidate
    peak_bytes: int = 0
    gpu_bytes: int | None = None

    def look_at_memory(self) -> None:
        memory = self.worker.ask("memory")
        self.peak_bytes, self.gpu_bytes = memory["peak_bytes"], memory["gpu_bytes"]


def run_finals(
    spec: Spec, ranking: Sequence[Candidate], base: Candidate, final: Final, log: Log
) -> Results:
    """Measure the first of `ranking` that keep the memory limit against `base`, in turns.

    Raises InputError, with the least that was reached, when none keeps it, and what `base` raises
    when it cannot be run.
    """
    with ExitStack() as stack:
        passed_over: list[PassedOver] = []
        entrants = list(_enter(spec, ranking, final, passed_over, stack, log))
        if not entrants:
            raise InputError(_none_left(passed_over, final.memory_limit_bytes))
        others = [one for one in entrants if one.candidate != base]
        first = next((one for one in entrants if one.candidate == base), None)
        first = first or _start(spec, base, final.seconds, stack, log)
        _take_turns([first, *others], final, log)
        return _results(first, others, passed_over, is_base_in=first in entrants, seed=final.seed)


def choose(best_first: Sequence[Finalist], own: Finalist, limit: int | None) -> Finalist:
    """The best that keeps the memory limit; the defaults where it is slower and they keep it too.

    Raises InputError when none keeps it: the turns may have taken more than warming up did.
    """
    keeping = [one for one in best_first if one.keeps(limit)]
    if not keeping:
        least = min(best_first, key=lambda one: one.peak_memory_bytes)
        raise InputError(_none_keeps(limit or 0, least.peak_memory_bytes, least.candidate))
    best = keeping[0]
    return own if best.over_defaults.median < 1 and own.keeps(limit) else best


def compare(
    spec: Spec, first: Candidate, second: Candidate, final: Final, log: Log
) -> tuple[Finalist, Finalist]:
    """Measure two candidates in turns; the ratio of the second is over the first."""
    with ExitStack() as stack:
        pair = [_start(spec, one, final.seconds, stack, log) for one in (first, second)]
        _take_turns(pair, final, log)
        found = _results(pair[0], pair[1:], [], is_base_in=False, seed=final.seed)
        return found.defaults, found.finalists[0]


def _enter(
    spec: Spec,
    ranking: Sequence[Candidate],
    final: Final,
    passed_over: list[PassedOver],
    stack: ExitStack,
    log: Log,
) -> Iterator[_Entrant]:
    """The first of the ranking that run and keep the limit, each in its process."""
    left, entered = list(ranking), 0
    while left and entered < final.finalists:
        candidate = left.pop(0)
        try:
            one = _start(spec, candidate, final.seconds, stack, log)
        except FerryError as error:
            passed_over.append(
                PassedOver(candidate=candidate, reason=str(error), peak_memory_bytes=None)
            )
            continue
        limit = final.memory_limit_bytes
        if limit is None or one.peak_bytes <= limit:
            entered += 1
            yield one
            continue
        one.worker.close()
        reason = f"its peak memory is {_mib(one.peak_bytes)}, the limit {_mib(limit)}"
        passed_over.append(
            PassedOver(candidate=candidate, reason=reason, peak_memory_bytes=one.peak_bytes)
        )
        # More rows with the same settings take no less.
        left = [other for other in left if not _is_larger(other, candidate)]


def _is_larger(one: Candidate, other: Candidate) -> bool:
    return one.settings == other.settings and one.batch_size > other.batch_size


def _start(
    spec: Spec, candidate: Candidate, seconds: float, stack: ExitStack, log: Log
) -> _Entrant:
    """Open a process and warm it up."""
    log(f"finals: starting {candidate.describe()}")
    worker = stack.enter_context(Worker(spec))
    settings = candidate.settings
    worker.ask("start", settings=asdict(settings), cores=list(cores_for(settings)))
    worker.ask("prepare", batch_size=candidate.batch_size, seconds=seconds)
    one = _Entrant(worker=worker, candidate=candidate)
    one.look_at_memory()
    return one


def _take_turns(entrants: Sequence[_Entrant], final: Final, log: Log) -> None:
    rng = np.random.default_rng(final.seed)
    names = [str(index) for index in range(len(entrants))]
    for number, order in enumerate(orders(names, final.num_rounds, rng), start=1):
        log(f"finals: round {number} of {final.num_rounds}")
        for name in order:
            entrants[int(name)].worker.ask("turn", seconds=final.seconds / final.num_rounds)
    for one in entrants:
        one.look_at_memory()


def _results(
    base: _Entrant,
    others: Sequence[_Entrant],
    passed_over: Sequence[PassedOver],
    *,
    is_base_in: bool,
    seed: int,
) -> Results:
    def finalist(one: _Entrant) -> Finalist:
        timing = read_record(Timing, one.worker.ask("timing"), one.candidate.describe())
        return Finalist(
            candidate=one.candidate,
            timing=timing,
            peak_memory_bytes=one.peak_bytes,
            gpu_memory_bytes=one.gpu_bytes,
            over_defaults=_ratio(base_timing, base, timing, one, seed),
        )

    base_timing = read_record(Timing, base.worker.ask("timing"), base.candidate.describe())
    defaults = finalist(base)
    return Results(
        finalists=(*([defaults] if is_base_in else []), *map(finalist, others)),
        defaults=defaults,
        passed_over=tuple(passed_over),
    )


def _ratio(first: Timing, base: _Entrant, second: Timing, one: _Entrant, seed: int) -> PairedRatio:
    """Times per row, as the two may differ in how many rows they have in work at a time."""
    return ratio_of_turns(
        [turn / base.candidate.rows_at_a_time for turn in first.turns_ms],
        [turn / one.candidate.rows_at_a_time for turn in second.turns_ms],
        seed=seed,
    )


def _none_left(passed_over: Sequence[PassedOver], limit: int | None) -> str:
    over = [one for one in passed_over if one.peak_memory_bytes is not None]
    if limit is None or not over:
        return f"none of the best settings can be run: {passed_over[0].reason}"
    least = min(over, key=lambda one: one.peak_memory_bytes or 0)
    return _none_keeps(limit, least.peak_memory_bytes or 0, least.candidate)


def _none_keeps(limit: int, least_bytes: int, least: Candidate) -> str:
    return (
        f"no setting keeps the peak under {_mib(limit)}: the least was {_mib(least_bytes)} with "
        f"{least.describe()}"
    )


def _mib(size: int) -> str:
    return f"{size / MIB:.0f} MiB"
