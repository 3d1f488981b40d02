"""All that the stages left in `metrics/E`, read back for the table and the report.

What was measured on other weights than those of the last training is not shown beside it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pipeline.records import read
from pipeline.records.benchmark import BenchmarkReport
from pipeline.records.bundle import BundleReport
from pipeline.records.evaluate import EvaluateReport
from pipeline.records.parity import ParityReport
from pipeline.records.quantize import QuantizeReport
from pipeline.records.train import TrainReport

__all__ = ["Measured", "read_measured"]

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is known of one experiment; None for a stage that has not run on these weights."""

    training: TrainReport
    inside: EvaluateReport | None
    parity: ParityReport | None = None
    quantized: QuantizeReport | None = None
    """Of the ONNX file that was compared, and of no other."""
    benchmark: BenchmarkReport | None = None
    shipped: BundleReport | None = None


def read_measured(metrics: Path, experiment: str) -> Measured | None:
    """Read the files of `metrics`/`experiment`; None for an experiment that is not trained.

    Raises IntegrityError for a file that is not what its stage writes.
    """
    folder = metrics / experiment
    training = _read(TrainReport, folder / "train.json")
    if training is None:
        return None
    inside = _read(EvaluateReport, folder / "evaluate.json")
    if inside is not None and inside.weights_sha256 != training.weights_sha256:
        inside = None
    parity = _read(ParityReport, folder / "parity.json")
    if parity is None or parity.weights_sha256 != training.weights_sha256:
        return Measured(training=training, inside=inside)
    quantized = _read(QuantizeReport, folder / "quantize.json")
    if quantized is not None and quantized.model_sha256 != parity.variants["fp32"].sha256:
        quantized = None
    proven = Measured(training=training, inside=inside, parity=parity, quantized=quantized)
    benchmark = _read(BenchmarkReport, folder / "benchmark.json")
    if benchmark is None or benchmark.weights_sha256 != training.weights_sha256:
        return proven
    shipped = _read(BundleReport, folder / "bundle.json")
    return replace(proven, benchmark=benchmark, shipped=shipped)


def _read(record: type[Record], path: Path) -> Record | None:
    return read(record, path, f"ferry {path.stem} {path.parent.name}") if path.exists() else None
