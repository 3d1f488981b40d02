"""Measure the few best candidates and ONNX Runtime's own settings in full, and choose among them.

Each has a process of its own, so that its memory is its own too, and they take turns.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import numpy as np

from serving.errors import FerryError, InputError
from serving.files import read_record
from serving.measuring.pairing import PairedRatio, orders, ratio_of_turns
from serving.measuring.process import SubjectProcess, SubjectSpec
from serving.measuring.rounds import Log, cores_for
from serving.measuring.timing import Timing
from serving.measuring.tuning.candidates import Candidate

MIB = 2**20
MIN_ROUNDS, MAX_ROUNDS = 4, 10
CALLS_OF_A_TURN = 7
"""Calls that even the shortest turn makes, for warmth and for the clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionPlan:
    """How many candidates are measured in full, and how."""

    most: int
    """Candidates, besides ONNX Runtime's own settings."""
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
class CandidateMeasurement:
    """What came out for a candidate that was measured in full."""

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
class Selection:
    """What the full measurement found."""

    measured: tuple[CandidateMeasurement, ...]
    """Without the defaults, unless they were among the best anyway."""
    defaults: CandidateMeasurement
    passed_over: tuple[PassedOver, ...]


@dataclass(slots=True, kw_only=True)
class _RunningCandidate:
    """A candidate's process."""

    process: SubjectProcess
    candidate: Candidate
    peak_bytes: int = 0
    gpu_bytes: int | None = None

    def look_at_memory(self) -> None:
        memory = self.process.ask("memory")
        self.peak_bytes, self.gpu_bytes = memory["peak_bytes"], memory["gpu_bytes"]


def measure_best(
    spec: SubjectSpec, ranking: Sequence[Candidate], base: Candidate, plan: SelectionPlan, log: Log
) -> Selection:
    """Measure the first of `ranking` that keep the memory limit against `base`, in turns.

    Raises InputError, with the least that was reached, when none keeps it, and what `base` raises
    when it cannot be run.
    """
    with ExitStack() as stack:
        passed_over: list[PassedOver] = []
        entered = list(_enter(spec, ranking, plan, passed_over, stack, log))
        if not entered:
            raise InputError(_none_left(passed_over, plan.memory_limit_bytes))
        others = [one for one in entered if one.candidate != base]
        first = next((one for one in entered if one.candidate == base), None)
        first = first or _start(spec, base, plan.seconds, stack, log)
        _take_turns([first, *others], plan, log)
        return _results(first, others, passed_over, is_base_in=first in entered, seed=plan.seed)


def choose(
    best_first: Sequence[CandidateMeasurement], own: CandidateMeasurement, limit: int | None
) -> CandidateMeasurement:
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
    spec: SubjectSpec, first: Candidate, second: Candidate, plan: SelectionPlan, log: Log
) -> tuple[CandidateMeasurement, CandidateMeasurement]:
    """Measure two candidates in turns; the ratio of the second is over the first."""
    with ExitStack() as stack:
        pair = [_start(spec, one, plan.seconds, stack, log) for one in (first, second)]
        _take_turns(pair, plan, log)
        found = _results(pair[0], pair[1:], [], is_base_in=False, seed=plan.seed)
        return found.defaults, found.measured[0]


def _enter(
    spec: SubjectSpec,
    ranking: Sequence[Candidate],
    plan: SelectionPlan,
    passed_over: list[PassedOver],
    stack: ExitStack,
    log: Log,
) -> Iterator[_RunningCandidate]:
    """The first of the ranking that run and keep the limit, each in its process."""
    left, entered = list(ranking), 0
    while left and entered < plan.most:
        candidate = left.pop(0)
        try:
            one = _start(spec, candidate, plan.seconds, stack, log)
        except FerryError as error:
            passed_over.append(
                PassedOver(candidate=candidate, reason=str(error), peak_memory_bytes=None)
            )
            continue
        limit = plan.memory_limit_bytes
        if limit is None or one.peak_bytes <= limit:
            entered += 1
            yield one
            continue
        one.process.close()
        reason = f"its peak memory is {_mib(one.peak_bytes)}, the limit {_mib(limit)}"
        passed_over.append(
            PassedOver(candidate=candidate, reason=reason, peak_memory_bytes=one.peak_bytes)
        )
        # More rows with the same settings take no less.
        left = [other for other in left if not _is_larger(other, candidate)]


def _is_larger(one: Candidate, other: Candidate) -> bool:
    return one.settings == other.settings and one.batch_size > other.batch_size


def _start(
    spec: SubjectSpec, candidate: Candidate, seconds: float, stack: ExitStack, log: Log
) -> _RunningCandidate:
    """Start a process and warm it up."""
    log(f"measuring in full: starting {candidate.describe()}")
    process = stack.enter_context(SubjectProcess(spec))
    settings = candidate.settings
    process.ask("start", settings=asdict(settings), cores=list(cores_for(settings)))
    process.ask("prepare", batch_size=candidate.batch_size, seconds=seconds)
    one = _RunningCandidate(process=process, candidate=candidate)
    one.look_at_memory()
    return one


def _take_turns(running: Sequence[_RunningCandidate], plan: SelectionPlan, log: Log) -> None:
    rng = np.random.default_rng(plan.seed)
    names = [str(index) for index in range(len(running))]
    for number, order in enumerate(orders(names, plan.num_rounds, rng), start=1):
        log(f"measuring in full: round {number} of {plan.num_rounds}")
        for name in order:
            running[int(name)].process.ask("turn", seconds=plan.seconds / plan.num_rounds)
    for one in running:
        one.look_at_memory()


def _results(
    base: _RunningCandidate,
    others: Sequence[_RunningCandidate],
    passed_over: Sequence[PassedOver],
    *,
    is_base_in: bool,
    seed: int,
) -> Selection:
    def measurement(one: _RunningCandidate) -> CandidateMeasurement:
        timing = read_record(Timing, one.process.ask("timing"), one.candidate.describe())
        return CandidateMeasurement(
            candidate=one.candidate,
            timing=timing,
            peak_memory_bytes=one.peak_bytes,
            gpu_memory_bytes=one.gpu_bytes,
            over_defaults=_ratio(base_timing, base, timing, one, seed),
        )

    base_timing = read_record(Timing, base.process.ask("timing"), base.candidate.describe())
    defaults = measurement(base)
    return Selection(
        measured=(*([defaults] if is_base_in else []), *map(measurement, others)),
        defaults=defaults,
        passed_over=tuple(passed_over),
    )


def _ratio(
    first: Timing, base: _RunningCandidate, second: Timing, one: _RunningCandidate, seed: int
) -> PairedRatio:
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
