"""Short trainings for tests: without MLflow, on the CPU, into a folder of their own."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from project import files_in

from pipeline.config import layout
from pipeline.config.experiment import AugmentConfig, Experiment, Params, SearchSpace
from pipeline.records.train import TrainReport
from pipeline.stages.train import train
from pipeline.training.loop import TrainingLoop

OFF = AugmentConfig(translate=0, rotate=0, scale=0, flip=False, cutout=0)


def run(root: Path, experiment: Experiment, folder: Path) -> TrainReport:
    return train(
        root / layout.ready(experiment.dataset),
        folder / "model.safetensors",
        files_in(folder, "train"),
        folder / "plots",
        experiment=experiment,
        device="cpu",
        track=False,
    )


def with_train(experiment: Experiment, **settings: Any) -> Experiment:
    """Change settings of the training loop, and `epochs`."""
    epochs = settings.pop("epochs", experiment.epochs)
    return replace(experiment, epochs=epochs, train=replace(experiment.train, **settings))


def stop_after(epochs: int, patch: pytest.MonkeyPatch) -> None:
    """Let the next training be interrupted after so many epochs."""
    original = TrainingLoop.run_epoch

    def stopping(loop: TrainingLoop, bar: Any) -> object:
        if len(loop.history) == epochs:
            raise KeyboardInterrupt
        return original(loop, bar)

    patch.setattr(TrainingLoop, "run_epoch", stopping)


def searching(params: Params, search: Mapping[str, SearchSpace], epochs: int = 1) -> Experiment:
    """digits-mlp with 8 hidden units and that search section."""
    base = params.experiment("digits-mlp")
    settings = {**base.model.settings, "hidden": (8,)}
    model = replace(base.model, settings=settings)
    return replace(base, epochs=epochs, model=model, search=dict(search))
