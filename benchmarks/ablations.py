"""What the choices in a training are worth, each on the validation rows, from the same seed.

Run: python benchmarks/ablations.py mnist-tiny --minutes 3      (after `ferry teach mnist-tiny`)
     python benchmarks/ablations.py mnist-tiny --minutes 3 --publish docs/results

The first line is the training of params.yaml; each other one changes one thing. All get the same
minutes, so that a change which makes an epoch slower gets fewer epochs. The test rows are never
read. Of 5,000 validation rows, 5 are 0.1 points: smaller differences say nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from benching import Line, parser, show

from pipeline.config import layout, params
from pipeline.config.experiment import Experiment
from pipeline.training import loop as training_loop
from pipeline.training.distributed import Team
from pipeline.training.loop import TrainingLoop
from pipeline.training.setup import prepare
from pipeline.training.tuning.search import apply
from serving.errors import FerryError

PROBE = 4096
"""Rows that the speed is measured on."""
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a training does otherwise."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """By their path below the experiment."""
    rebuild: Callable[[TrainingLoop], None] | None = None
    """For what is no setting, because it did not earn its place."""


LABELS = {"labels alone": Change(settings={"train.teacher": None})}
CHANGES: dict[str, dict[str, Change]] = {
    "mnist-tiny": {
        **LABELS,
    },
    "cifar10-resnet8": {
        **LABELS,
        "all epochs at full size": Change(settings={"train.sides": ()}),
    },
    "cifar10-cnn": {},
}


def main() -> None:
    """Print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("experiment", choices=[*CHANGES])
    arguments.add_argument("--minutes", type=float, default=3.0, help="of each training")
    arguments.add_argument("--only", action="append", help="these changes alone")
    given = arguments.parse_args()
    experiment = params.load().experiment(given.experiment)
    chosen = {"as in params.yaml": Change(), **CHANGES[given.experiment]}
    lines = []
    for what, change in chosen.items():
        if given.only and what not in given.only:
            continue
        lines.append(Line(what, reached(experiment, change, given.minutes), "", None))
        print(f"{what}: {lines[-1].reached}", flush=True)
    show(lines, given.publish, subject=experiment.name)


def reached(experiment: Experiment, change: Change, minutes: float) -> str:
    """The validation accuracy after so many minutes of training steps."""
    original = training_loop.augment
    try:
        changed = apply(experiment, change.settings)
        epochs = max(1, round(minutes * 60 / seconds_of_an_epoch(changed, change)))
        loop = loop_of(replace(changed, epochs=epochs), change)
        while not loop.ended:
            loop.run_epoch()
    except FerryError as error:
        return f"failed: {error}"
    finally:
        training_loop.augment = original
    last = loop.history[-1]
    return f"{last.validation_accuracy:.2%}, loss {last.validation_loss:.4f}, {epochs} epochs"


def loop_of(experiment: Experiment, change: Change) -> TrainingLoop:
    """A loop that is ready to run."""
    data, weights = layout.ready(experiment.dataset), layout.weights(experiment.name)
    loop = prepare(data, weights, experiment, Team(device=CPU)).loop
    if change.rebuild:
        change.rebuild(loop)
    return loop


def seconds_of_an_epoch(experiment: Experiment, change: Change) -> float:
    """Of the training steps, by some rows at each third of the epochs."""
    loop = loop_of(replace(experiment, epochs=3), change)
    rows = len(loop.train_rows)
    few = loop.train_rows
    few.inputs, few.labels = few.inputs[:PROBE], few.labels[:PROBE]
    loop.steps = PROBE // loop.batch_size
    loop.run_epoch()  # the first steps allocate
    loop.history.clear()
    return sum(loop.run_epoch().seconds for _ in range(3)) / 3 * rows / PROBE


if __name__ == "__main__":
    main()
