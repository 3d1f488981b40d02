"""What the choices in a training are worth, each on the validation rows, from the same seed.

Run: python benchmarks/ablations.py mnist-tiny --minutes 3   (after `dvc repro train@mnist-cnn`)
     python benchmarks/ablations.py mnist-tiny --minutes 3 --publish docs/results

The first line is the training of params.yaml; each other one changes one thing. All get the same
minutes, so that a change which makes an epoch slower gets fewer epochs; what a teacher takes comes
on top. What was measured is kept in models/E/ablations: a run that was killed goes on, and two may
share the work with --only. The test rows are never read. Of 5,000 validation rows, 5 are 0.1
points: smaller differences say nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benching import Line, parser, show

from pipeline.config import layout, params
from pipeline.config.experiment import Experiment
from pipeline.stages.teach import teach
from pipeline.training.distributed import Team
from pipeline.training.loop import TrainingLoop
from pipeline.training.setup import prepare
from pipeline.training.tuning.search import apply
from serving.files import dump_json, sha256_of_bytes, write_text

PROBE = 4096
"""Rows that the speed is measured on."""
CPU = torch.device("cpu")
SGD = {"optimizer": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 5e-4}
MUON = {"optimizer": "muon", "lr": 0.02, "momentum": 0.8, "weight_decay": 0.025}
MNIST_TEACHER = {"experiment": "mnist-cnn", "temperature": 1.0, "weight": 0.5, "views": 8}
Settings = Mapping[str, Any]
CHANGES: dict[str, dict[str, Settings]] = {
    "cifar10-resnet8": {
        "labels alone": {"teacher": None},
        "softened by 2": {"teacher.temperature": 2.0},
        "softened by 4": {"teacher.temperature": 4.0},
        "SGD": SGD,
        "all epochs at full size": {"sides": []},
        "no weight decay": {"weight_decay": 0.0},
        "EMA 0.99": {"ema": 0.99},
        "linear schedule": {"schedule": "linear"},
        "gaps of 8 pixels": {"augment.cutout": 8},
        "moved by 2 pixels": {"augment.translate": 2},
    },
    "mnist-tiny": {
        "mnist-cnn for a teacher": {"teacher": MNIST_TEACHER},
        "mnist-cnn for a teacher, softened by 4": {
            "teacher": {**MNIST_TEACHER, "temperature": 4.0, "weight": 0.9}
        },
        "Muon": MUON,
        "EMA 0.998": {"ema": 0.998},
        "labels not smoothed": {"label_smoothing": 0.0},
        "half of the changes": {
            "augment.translate": 1,
            "augment.rotate": 5.0,
            "augment.scale": 0.05,
        },
        "no changes": {"augment.translate": 0, "augment.rotate": 0.0, "augment.scale": 0.0},
    },
    "cifar10-cnn": {
        "mirrored, not moved": {"augment.translate": 0},
        "labels not smoothed": {"label_smoothing": 0.0},
        "Muon": MUON,
        "EMA 0.99": {"ema": 0.99},
    },
}
"""Settings below `train`."""


def main() -> None:
    """Print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("experiment", choices=[*CHANGES])
    arguments.add_argument("--minutes", type=float, default=3.0, help="of each training")
    arguments.add_argument("--only", action="append", help="these changes alone")
    given = arguments.parse_args()
    experiment = params.load().experiment(given.experiment)
    lines = []
    for what, settings in {"as in params.yaml": {}, **CHANGES[given.experiment]}.items():
        if given.only and what not in given.only:
            continue
        changed = apply(experiment, {f"train.{key}": value for key, value in settings.items()})
        line = Line(f"{given.minutes:g} minutes, {what}", known(changed, given.minutes), "", None)
        print(f"{line.what}: {line.reached}", flush=True)
        lines.append(line)
    show(lines, given.publish, subject=experiment.name)


def known(experiment: Experiment, minutes: float) -> str:
    """What `reached` gives, or gave before with the same settings."""
    settings = dump_json([minutes, params.training_settings(experiment)])
    path = folder_of(experiment, settings).with_suffix(".txt")
    if not path.exists():
        write_text(path, reached(experiment, minutes))
    return path.read_text()


def folder_of(experiment: Experiment, depends_on: str) -> Path:
    """Beside the experiment's weights, with a name that says on what its content depends."""
    digest = sha256_of_bytes(depends_on.encode())[:12]
    return layout.weights(experiment.name).parent / "ablations" / digest


def reached(experiment: Experiment, minutes: float) -> str:
    """Validation accuracy and loss after so many minutes of training steps."""
    weights = asked(experiment)
    epochs = max(1, round(minutes * 60 / seconds_of_an_epoch(experiment, weights)))
    loop = loop_of(experiment, weights, epochs)
    while not loop.ended:
        loop.run_epoch()
    last = loop.history[-1]
    return f"{last.validation_accuracy:.2%}, loss {last.validation_loss:.4f}, {epochs} epochs"


def asked(experiment: Experiment) -> Path:
    """Where the weights would go, with what the experiment's teacher answers in a folder beside."""
    name, teacher = experiment.name, experiment.train.teacher
    depends_on = dump_json(
        [teacher and (teacher.experiment, teacher.views), experiment.train.augment]
    )
    folder = folder_of(experiment, depends_on)
    weights = folder / layout.weights(name).name
    logits = folder.joinpath(*layout.taught(name).parts[-2:])
    if teacher and not logits.exists():
        trained = layout.details(teacher.experiment, "train")
        teach(
            layout.ready(experiment.dataset),
            layout.weights(teacher.experiment),
            trained,
            logits,
            experiment=experiment,
            by=params.load().experiment(teacher.experiment),
        )
    return weights


def loop_of(experiment: Experiment, weights: Path, epochs: int) -> TrainingLoop:
    """A loop that is ready to run."""
    data = layout.ready(experiment.dataset)
    return prepare(data, weights, replace(experiment, epochs=epochs), Team(device=CPU)).loop


def seconds_of_an_epoch(experiment: Experiment, weights: Path) -> float:
    """Of the training steps, by some rows in each of the parts that `sides` makes of the epochs."""
    parts = len(experiment.train.sides) + 1
    loop = loop_of(experiment, weights, parts)
    rows, few = len(loop.train_rows), loop.train_rows
    few.inputs, few.labels = few.inputs[:PROBE], few.labels[:PROBE]
    loop.steps = PROBE // loop.batch_size
    loop.run_epoch()  # the first steps allocate
    loop.history.clear()
    return sum(loop.run_epoch().seconds for _ in range(parts)) / parts * rows / PROBE


if __name__ == "__main__":
    main()
