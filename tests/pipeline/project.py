"""Where a tiny experiment's files lie in a test, and what it may cost to quantize it."""

from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import layout
from pipeline.config.experiment import Experiment, GateConfig, MinSpeedup, QuantizeConfig
from pipeline.records import ReportFiles

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
        return layout.models(self.experiment.name, self.root)

    @property
    def quantized(self) -> Path:
        return self.root / layout.quantized(self.experiment.name)

    def details(self, stage: str) -> Path:
        return self.root / layout.details(self.experiment.name, stage)

    def files(self, stage: str) -> ReportFiles:
        files = layout.report_files(self.experiment.name, stage)
        return ReportFiles(details=self.root / files.details, metrics=self.root / files.metrics)

    def plots(self, stage: str) -> Path:
        return self.root / layout.plots(self.experiment.name, stage)


def files_in(folder: Path, stage: str) -> ReportFiles:
    """Both files of a stage's report in one folder, as STAGE.json and STAGE.metrics.json."""
    return ReportFiles(details=folder / f"{stage}.json", metrics=folder / f"{stage}.metrics.json")


def generous(config: QuantizeConfig, *recipes: str) -> QuantizeConfig:
    """Budgets that every machine is inside of, and few recipes, measured for an instant.

    Two unsigned factors: products of a signed one overflow on processors without VNNI.
    """
    return replace(
        config,
        accuracy_loss=100,
        error_increase=1000,
        min_speedup=MinSpeedup(fp16=0.001, int8=0.001),
        batch_sizes=(1,),
        seconds=0.01,
        recipes=recipes or ("half", "static-u8u8-tensor"),
    )


def lenient(gate: GateConfig) -> GateConfig:
    """A gate for int8 of two epochs' training: many rows lie near a tie, and processors differ."""
    return replace(gate, flips=36, accuracy_loss=10, min_snr_db=12)
