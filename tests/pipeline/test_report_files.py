"""The two files of a stage's report: all of it, and the numbers that a person compares."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sample_metrics
from project import files_in

from pipeline.records import StageReport, read, write
from pipeline.records.benchmark import BenchmarkReport, BundleReport
from pipeline.records.evaluate import EvaluateReport
from pipeline.records.parity import ParityReport
from pipeline.records.quantize import VariantFile
from pipeline.records.train import TrainReport
from serving.files import dump_json, read_record

SAMPLES: dict[type, Callable[[str], object]] = {
    TrainReport: sample_metrics.training,
    EvaluateReport: sample_metrics.inside,
    ParityReport: sample_metrics.parity,
    BenchmarkReport: sample_metrics.benchmark,
    BundleReport: sample_metrics.bundle,
}
HEADLINES = {
    TrainReport: {"accuracy": 0.9953, "loss": 0.02},
    EvaluateReport: {"ece": 0.012},
    ParityReport: {
        "accuracy": 0.995,
        "flips": 0,
        "snr_db": 60.0,
        "int8_accuracy": 0.995,
        "int8_flips": 2,
    },
    BenchmarkReport: {"p50_ms": 0.0716, "speedup": 3.0},
    BundleReport: {"bytes": 65000},
}


def sample(record: type) -> StageReport:
    raw = json.loads(dump_json(SAMPLES[record]("mnist-cnn")))
    report: StageReport = read_record(record, raw, "a sample")
    return report


@pytest.mark.parametrize("record", SAMPLES)
def test_the_details_are_all_of_it_and_the_metrics_its_headline(
    record: type, tmp_path: Path
) -> None:
    report, files = sample(record), files_in(tmp_path, "stage")
    write(report, files)
    assert read(record, files.details, "ferry") == report
    assert json.loads(files.metrics.read_text()) == HEADLINES[record]


def test_two_experiments_fit_a_wide_terminal_in_dvc_metrics_show() -> None:
    """A column for each name, as wide as it or as "0.12345", four blanks apart."""
    names = {name for found in HEADLINES.values() for name in found} | {"bytes", "speedup"}
    width = len("metrics/digits-mlp/benchmark.json")
    assert width + sum(4 + max(len(name), 7) for name in names) <= 160


def test_of_quantization_the_smallest_file_that_was_kept_is_told(tmp_path: Path) -> None:
    files = files_in(tmp_path, "quantize")
    nothing = sample_metrics.quantized("mnist-cnn")
    write(nothing, files)
    assert json.loads(files.metrics.read_text()) == {}
    kept = {
        name: VariantFile(recipe=recipe, bytes=size, sha256="0" * 64, size_ratio=size / 1000)
        for name, recipe, size in (("fp16", "half", 500), ("int8", "static-u8s8", 300))
    }
    write(replace(nothing, variants=kept), files)
    assert json.loads(files.metrics.read_text()) == {"bytes": 300, "speedup": 1.7}
