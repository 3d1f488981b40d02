"""How far one epoch gets the convolutional network on MNIST, and in what time.

Run: python benchmarks/first_epoch.py        (after `ferry pull mnist` and `ferry preprocess mnist`)

The experiment mnist-cnn with a single epoch and without augmentation, over three seeds. Aim: 99.0 %
of the test set in at most 10 seconds of training on two cores.
"""

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from pipeline.config import layout, params
from pipeline.config.experiment import AugmentConfig
from pipeline.records import ReportFiles
from pipeline.stages.train import train

SEEDS = (1, 2, 3)


def main() -> None:
    """Train once per seed and print the medians."""
    experiment = params.load().experiment("mnist-cnn")
    plain = AugmentConfig(translate=0, rotate=0, scale=0, flip=False, cutout=0)
    reports = []
    for seed in SEEDS:
        settings = replace(experiment.train, augment=plain, seed=seed)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            reports.append(
                train(
                    layout.ready("mnist"),
                    folder / "model.safetensors",
                    ReportFiles(details=folder / "train.json", metrics=folder / "metrics.json"),
                    folder / "plots",
                    experiment=replace(experiment, epochs=1, train=settings),
                    track=False,
                )
            )
        print(f"seed {seed}: {reports[-1].accuracy:.2%} in {reports[-1].seconds:.1f} s")
    accuracy = statistics.median(report.accuracy for report in reports)
    seconds = statistics.median(report.seconds for report in reports)
    print(f"median: {accuracy:.2%} in {seconds:.1f} s    aim 99.00% in 10 s")


if __name__ == "__main__":
    main()
