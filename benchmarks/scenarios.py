"""How ferry's scenarios compare with MLPerf's load generator on a real model, beside the aim.

Run: python benchmarks/scenarios.py [MODEL.onnx]      (after `dvc repro export@cifar10-resnet8`)

Both engines load the same session in turns, whose order is drawn from a seed. A ratio is ferry's
figure over loadgen's, pair by pair. loadgen calls back into Python for each query, which takes some
microseconds: on a model that answers as fast, those are a real difference.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.console import table
from serving.measuring.onnx_subject import OnnxSubject
from serving.measuring.pairing import orders, ratio_of_turns
from serving.measuring.scenarios.records import Run
from serving.measuring.scenarios.scenarios import ENGINES
from serving.measuring.scenarios.system import Engine, System
from serving.measuring.timing import warm_up
from serving.runtime.settings import SessionSettings

MODEL = Path("models/cifar10-resnet8/model.onnx")
PAIRS = 9
SECONDS = 2.0
BATCH_SIZE = 32
AIM = 0.03
SEED = 1


@dataclass(frozen=True)
class Scenario:
    """What is compared."""

    name: str
    run: Callable[[Engine, System], Run]
    figures: tuple[str, ...]
    judged: str
    """The figure that the aim is for."""


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
)


def main() -> None:
    """Print a line for each figure."""
    model = Path(sys.argv[1]) if len(sys.argv) > 1 else MODEL
    settings = SessionSettings(threads=1)
    subject = OnnxSubject(model, "cpu", None)
    subject.start(settings)
    system = System(subject, settings, BATCH_SIZE)
    print(f"{model}, {PAIRS} pairs of {SECONDS:g} s on one thread")
    rows = [line for scenario in SCENARIOS for line in lines(scenario, system)]
    print(table(("what", "ferry", "loadgen", "ferry / loadgen", "aim", "met"), rows))


def lines(scenario: Scenario, system: System) -> Iterator[tuple[str, ...]]:
    """The rows of the table for one scenario."""
    runs: dict[str, list[Run]] = {name: [] for name in ENGINES}
    for size in (1, BATCH_SIZE):
        warm_up(system.call(size), SECONDS)
    for order in orders(list(ENGINES), PAIRS, np.random.default_rng(SEED)):
        for name in order:
            runs[name].append(scenario.run(ENGINES[name], system))
    for figure in scenario.figures:
        ours, theirs = ([getattr(run, figure) for run in runs[name]] for name in ENGINES)
        ratio = ratio_of_turns(ours, theirs, seed=SEED)
        met = "yes" if abs(ratio.median - 1) <= AIM else "NO"
        judged = figure == scenario.judged
        yield (
            f"{scenario.name} {figure}",
            f"{np.median(ours):.4g}",
            f"{np.median(theirs):.4g}",
            f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})",
            "1.00 ± 0.03" if judged else "",
            met if judged else "",
        )


if __name__ == "__main__":
    main()
