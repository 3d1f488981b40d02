"""What `ferry bench --tune` chooses, beside the best of the whole grid, and how long it takes.

Run: python benchmarks/tuner.py [MODEL.onnx ...]        (after `dvc repro export@digits-cnn`)

The grid is measured as a careful person would: for each candidate a new process, warm-up, half a
second. Its best and the tuner's choice are then measured against each other, in turns: figures of
two separate runs would differ by what the machine did meanwhile.
"""

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

from benching import Line, parser, show

from serving.bundles.profiles import Goal
from serving.console import progress
from serving.errors import FerryError
from serving.measuring.pairing import PairedRatio
from serving.measuring.rounds import Log
from serving.measuring.screening import Candidate
from serving.measuring.subject import SubjectProcess, SubjectSpec
from serving.measuring.timing import Timing
from serving.measuring.tuner import (
    SelectionPlan,
    SessionTuneReport,
    TuneOptions,
    as_text,
    grid_of,
    measure_best,
    spec_of,
    tune,
)

MODELS = (Path("models/cifar10-resnet8/model.onnx"), Path("models/digits-cnn/model.onnx"))
GOALS: tuple[Goal, ...] = ("latency", "throughput")
SECONDS = 0.5
QUALITY, TIME_PART = 0.97, 0.2


def main() -> None:
    """Print what was chosen of each model for each goal, and the table of aims."""
    arguments = parser(__doc__)
    arguments.add_argument("models", nargs="*", type=Path, metavar="MODEL.onnx")
    given = arguments.parse_args()
    models = given.models or [path for path in MODELS if path.exists()]
    lines = [line for model in models for goal in GOALS for line in of_goal(model, goal)]
    show(lines, given.publish)


def of_goal(model: Path, goal: Goal) -> Iterator[Line]:
    """Tune, measure the whole grid, and compare the two winners."""
    options = TuneOptions(goal=goal, seconds=SECONDS)
    with progress() as log:
        report = tune(model, options, log=log)
        best, seconds = exhaustive(model, options, log)
        quality = against(spec_of(model, options), best, report, log)
    print(as_text(report))
    print(f"best of the grid: {best.describe()}, found in {seconds:.0f} s\n")
    name = f"{model.parent.name}, {goal}"
    reached = f"{quality.median:.3f} ({quality.low:.3f} to {quality.high:.3f})"
    aim = f"at least {QUALITY}"
    yield Line(f"{name}: choice over the grid's best", reached, aim, quality.median >= QUALITY)
    part = report.seconds / seconds
    reached = f"{part:.3f} ({report.seconds:.1f} s of {seconds:.1f} s)"
    yield Line(
        f"{name}: part of the grid's time", reached, f"at most {TIME_PART}", part <= TIME_PART
    )
    own = report.over_defaults
    reached = f"{own.median:.2f} ({own.low:.2f} to {own.high:.2f})"
    yield Line(f"{name}: over ONNX Runtime's own", reached, "at least 1", own.median >= 1)


def exhaustive(model: Path, options: TuneOptions, log: Log) -> tuple[Candidate, float]:
    """The best of the grid by the full measurement of each candidate, and the seconds it took."""
    start = perf_counter()
    grid, spec = grid_of(model, options), spec_of(model, options)
    costs: dict[Candidate, float] = {}
    for number, candidate in enumerate(grid, start=1):
        log(f"the grid: {number} of {len(grid)}: {candidate.describe()}")
        try:
            costs[candidate] = candidate.ms_per_row(measured(spec, candidate).p50_ms)
        except FerryError:
            continue  # the tuner's report says why
    return min(costs, key=lambda one: costs[one]), perf_counter() - start


def measured(spec: SubjectSpec, candidate: Candidate) -> Timing:
    """Measure one candidate in a process of its own."""
    with SubjectProcess(spec) as worker:
        worker.start(candidate.settings)
        worker.ask("prepare", batch_size=candidate.batch_size, seconds=SECONDS)
        worker.ask("turn", seconds=SECONDS)
        return worker.timing()


def against(spec: SubjectSpec, best: Candidate, report: SessionTuneReport, log: Log) -> PairedRatio:
    """How fast the tuner's choice is, as a part of the grid's best."""
    choice = Candidate(settings=report.settings, batch_size=report.batch_size)
    plan = SelectionPlan(
        most=1,
        seconds=4 * SECONDS,
        slowest_ms=report.p50_ms,
        memory_limit_bytes=None,
        seed=report.seed,
    )
    (measured,) = measure_best(spec, [choice], best, plan, log).measured
    return measured.over_defaults


if __name__ == "__main__":
    main()
