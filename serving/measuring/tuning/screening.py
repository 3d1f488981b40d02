"""Find the few best of many candidates, cheaply: all of them in one process, in halvings.

Successive halving (Jamieson and Talwalkar 2016): a short look at each, a longer one at the best
third, and so on until a few are left. A process for each would cost more than its measurement.

Run by `serving.measuring.process`: python -m serving.measuring.tuning.screening
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Self

from serving.errors import FerryError, ModelError
from serving.measuring.onnx_subject import OnnxSubject
from serving.measuring.process import SubjectProcess, SubjectSpec
from serving.measuring.rounds import Log, cores_for
from serving.measuring.subject import Started, serve
from serving.measuring.tuning.candidates import Candidate
from serving.runtime.session import open_session
from serving.runtime.settings import SessionSettings

LOOK_SECONDS = 0.02
"""The first look at a candidate; each later one is longer by KEPT_OF."""
KEPT_OF = 3
"""One of so many goes on."""


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
        return ms_per_row(self.candidate, self.p50_ms) if self.p50_ms else float("inf")


def ms_per_row(candidate: Candidate, p50_ms: float) -> float:
    """The time of a call over the rows that are in work meanwhile, in all calls side by side."""
    return p50_ms / candidate.rows_at_a_time


def screen(
    spec: SubjectSpec, grid: Sequence[Candidate], *, keep: int, log: Log
) -> tuple[CandidateTrial, ...]:
    """Look at all of `grid`, longer and longer at the best, until `keep` are left; best first.

    Those that went further come before those that were left behind. One that cannot be opened or
    run comes last, with its reason.
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
        try:
            p50_ms, skipped = self._measure(candidate, seconds), None
        except FerryError as error:
            p50_ms, skipped = None, str(error)
            self._settings = None
            if isinstance(error, ModelError):  # as it is when the process has died
                self._process.close()
                self._process = SubjectProcess(self._spec)
        return CandidateTrial(candidate=candidate, looks=looks, p50_ms=p50_ms, skipped=skipped)

    def _measure(self, candidate: Candidate, seconds: float) -> float:
        settings = candidate.settings
        if settings != self._settings:
            cores = list(cores_for(settings))
            self._process.ask("start", settings=asdict(settings), cores=cores)
            self._settings = settings
        p50_ms: float = self._process.ask(
            "glance", batch_size=candidate.batch_size, seconds=seconds
        )["p50_ms"]
        return p50_ms


class ScreenedSubject(OnnxSubject):
    """A model that is opened often and briefly: once, and not again to bind its memory."""

    def start(self, settings: SessionSettings) -> Started:
        """Make the session, or keep the one that differs in nothing but `binding`."""
        session = self.session
        if session and replace(session.settings, binding=settings.binding) == settings:
            session = replace(session, settings=settings)
        else:
            self.session = None  # only one lives at a time
            session = open_session(self.content, provider=self.provider, settings=settings)
        self.session = session
        return self.started(session, ready_ms=0.0)  # that is not what is asked for here


def main() -> None:
    """Look at what the parent process asks for."""
    serve(ScreenedSubject.of)


if __name__ == "__main__":
    main()
