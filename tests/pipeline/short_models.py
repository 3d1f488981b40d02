"""Bundles of published architectures that were trained for a moment, on a part of the real data.

What they answer is bad, but they are as large as the published ones, and decide by real margins.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from filelock import FileLock
from project import files_in
from training import run

from pipeline.config import layout
from pipeline.config.experiment import Experiment, Params
from pipeline.quantization.apply import Quantizer
from pipeline.quantization.recipes import parse
from pipeline.records import read, ready
from pipeline.records.train import TrainReport
from pipeline.stages.export import export
from pipeline.stages.preprocess import preprocess
from pipeline.stages.pull import pull
from pipeline.stages.quantize import calibration_rows
from serving.bundles.bundle import Gate, ModelOrigin
from serving.bundles.golden import hardest
from serving.bundles.writing import BundleContents, write_bundle
from serving.runtime.session import open_session

ROWS = {"validation": 500, "test": 1000}
CALIBRATION = 256
# fp32 as the gate of parity allows; kernels of integers give the same sums everywhere.
GOLDEN_DIFF = {"fp32": 1e-4, "int8": 1e-2}


@dataclass(frozen=True)
class Short:
    """How an experiment is trained for a moment."""

    train_rows: int
    int8: str | None
    """The recipe; None for fp32 alone."""


SHORT = {
    "mnist-tiny": Short(train_rows=10_000, int8="static-u8s8-raw-reduced"),
    "cifar10-resnet8": Short(train_rows=3000, int8="static-u8s8-raw-reduced"),
    "rt-lstm": Short(train_rows=3000, int8=None),
}
MIRRORED = {"mnist-tiny": "mnist", "cifar10-resnet8": "cifar10", "rt-lstm": "rt-polarity"}
"""The folder of each one's official files in a mirror."""


def short_bundle(shared: Path, params: Params, name: str, variant: str) -> Path:
    """The bundle of a variant, `bundles/NAME.VARIANT` of the folder `shared`, made first.

    Skips the test where no mirror has the official files. Processes that test side by side make
    each model once.
    """
    mirror = os.environ.get("FERRY_MIRROR", "")
    if not mirror or not (Path(mirror) / MIRRORED[name]).is_dir():
        pytest.skip(f"FERRY_MIRROR names no mirror with {MIRRORED[name]}")
    shared.mkdir(exist_ok=True)
    with FileLock(shared / f"{name}.lock"):
        folder = shared / "bundles" / f"{name}.{variant}"
        if not folder.is_dir():
            _make(shared, params, name, mirror)
    return folder


def _make(root: Path, params: Params, name: str, mirror: str) -> None:
    short, experiment = SHORT[name], replace(params.experiment(name), epochs=1)
    data = root / layout.ready(experiment.dataset)
    raw = root / layout.raw(experiment.dataset)
    pull(raw, name=experiment.dataset, mirrors=(), mirror=mirror)
    preprocess(raw, data, name=experiment.dataset, config=params.dataset(experiment.dataset))
    _cut(data, ROWS | {"train": short.train_rows})
    folder = root / "models" / name
    run(root, experiment, folder)
    models = {"fp32": folder / "model.onnx"}
    weights, details = folder / "model.safetensors", files_in(folder, "train").details
    report = files_in(folder, "export")
    export(weights, details, data, models["fp32"], report, experiment=experiment, track=False)
    if short.int8:
        models["int8"] = folder / "model.int8.onnx"
        _quantize(models["fp32"], models["int8"], data, experiment, short.int8)
    trained = read(TrainReport, details, "a test")
    for variant, model in models.items():
        _bundle(root / "bundles" / f"{name}.{variant}", model, variant, data, trained)


def _cut(data: Path, rows: dict[str, int]) -> None:
    """Leave the first rows of each split alone."""
    manifest = ready.open_manifest(data)
    files = {f"{split}_{kind}.npy": n for split, n in rows.items() for kind in ("inputs", "labels")}
    arrays = {
        name: ready.write_array(data / name, np.load(data / name)[:count])
        for name, count in files.items()
    }
    ready.write_manifest(data, replace(manifest, arrays={**manifest.arrays, **arrays}))


def _quantize(fp32: Path, int8: Path, data: Path, experiment: Experiment, recipe: str) -> None:
    config = replace(experiment.quantize, calibration_rows=CALIBRATION)
    (info,) = open_session(fp32, threads=1).inputs
    rows = calibration_rows(data, info, config, experiment.name)
    onnx.save(Quantizer(onnx.load(fp32), rows).apply(parse(recipe)), int8)


def _bundle(folder: Path, model: Path, variant: str, data: Path, trained: TrainReport) -> None:
    content, test = model.read_bytes(), ready.open_split(data, "test").inputs
    golden, tie = hardest(content, test, 64, trained.labels)
    contents = BundleContents(
        name=trained.experiment,
        variant=variant,
        model=content,
        labels=trained.labels,
        golden_input=golden,
        golden_max_abs_diff=GOLDEN_DIFF[variant],
        golden_tie=tie,
        metrics={},
        parity={"flips": Gate(measured=0, limit=0)},  # a bundle has one; this is not measured
        source=ModelOrigin(
            dataset=trained.dataset,
            weights_sha256=trained.weights_sha256,
            git_revision=trained.git_revision,
            ferry_version=open_session(content, threads=1).metadata["ferry.version"],
        ),
    )
    write_bundle(folder, contents)
