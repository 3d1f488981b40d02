"""Where a tiny experiment's files lie in a test."""

from dataclasses import dataclass
from pathlib import Path

from pipeline import layout
from pipeline.config import Experiment

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Project:
    """A folder with the files of an experiment, as `dvc repro` leaves them."""

    root: Path
    experiment: Experiment

    @property
    def data(self) -> Path:
        return self.root / layout.ready(self.experiment.dataset)

    @property
    def weights(self) -> Path:
        return self.root / layout.weights(self.experiment.name)

    @property
    def models(self) -> dict[str, Path]:
        found = layout.models(self.experiment.name, self.experiment.quantize.skip)
        return {variant: self.root / path for variant, path in found.items()}

    @property
    def quantized(self) -> Path:
        return self.root / layout.quantized(self.experiment.name)

    def metrics(self, stage: str) -> Path:
        return self.root / layout.metrics(self.experiment.name, stage)

    def plots(self, stage: str) -> Path:
        return self.root / layout.plots(self.experiment.name, stage)
