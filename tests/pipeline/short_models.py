"""Bundles of small trained networks: of digits as fp32 and as int8, and of text.

What they answer is bad, but they decide by real margins.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from project import Project, files_in
from training import run, with_train

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

# fp32 as the gate of parity allows; kernels of integers give the same sums everywhere.
GOLDEN_DIFF = {"fp32": 1e-4, "int8": 1e-2}
SMALL_TEXT = {"vocabulary": 1000, "length": 20, "embedding": 16, "hidden": (16,)}
TRAIN_ROWS = 1000


def bundles_of_digits(root: Path, made: Project) -> list[Path]:
    """Bundles of fp32, and of int8 as the recipe for processors without VNNI makes it."""
    data = root / layout.ready(made.experiment.dataset)
    data.parent.mkdir(parents=True, exist_ok=True)
    data.symlink_to(made.data)
    models = {"fp32": made.models["fp32"], "int8": root / "model.int8.onnx"}
    (info,) = open_session(models["fp32"], threads=1).inputs
    rows = calibration_rows(data, info, made.experiment.quantize, made.experiment.name)
    quantizer = Quantizer(onnx.load(models["fp32"]), rows)
    onnx.save(quantizer.apply(parse("static-u8s8-raw-reduced")), models["int8"])
    trained = read(TrainReport, made.details("train"), "a test")
    return [_bundle(root, model, variant, data, trained) for variant, model in models.items()]


def bundle_of_text(root: Path, params: Params, mirror: str) -> Path:
    """A small LSTM, trained for a moment on the first reviews of a mirror."""
    experiment = _small(params.experiment("rt-lstm"))
    data, raw = root / layout.ready(experiment.dataset), root / layout.raw(experiment.dataset)
    pull(raw, name=experiment.dataset, mirrors=(), mirror=mirror)
    preprocess(raw, data, name=experiment.dataset, config=params.dataset(experiment.dataset))
    _cut(data)
    folder = root / "models" / experiment.name
    trained = run(root, experiment, folder)
    model, report = folder / "model.onnx", files_in(folder, "export")
    weights, details = folder / "model.safetensors", files_in(folder, "train").details
    export(weights, details, data, model, report, experiment=experiment, track=False)
    return _bundle(root, model, "fp32", data, trained)


def _small(experiment: Experiment) -> Experiment:
    model = replace(experiment.model, settings={**experiment.model.settings, **SMALL_TEXT})
    return with_train(replace(experiment, model=model), epochs=1)


def _cut(data: Path) -> None:
    """Leave the first rows to train on alone."""
    manifest = ready.open_manifest(data)
    arrays = {
        name: ready.write_array(data / name, np.load(data / name)[:TRAIN_ROWS])
        for name in ("train_inputs.npy", "train_labels.npy")
    }
    ready.write_manifest(data, replace(manifest, arrays={**manifest.arrays, **arrays}))


def _bundle(root: Path, model: Path, variant: str, data: Path, trained: TrainReport) -> Path:
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
    folder = root / "bundles" / f"{trained.experiment}.{variant}"
    write_bundle(folder, contents)
    return folder
