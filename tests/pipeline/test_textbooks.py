"""The classic systems, each through training, export, quantization and parity on small rows."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from project import Project, generous

from pipeline.config import layout
from pipeline.config.experiment import Experiment, ModelConfig, Params
from pipeline.records.parity import ParityReport
from pipeline.records.ready import DatasetManifest, write_array, write_manifest
from pipeline.records.train import TrainReport
from pipeline.stages.export import export
from pipeline.stages.parity import parity
from pipeline.stages.preprocess import preprocess, vocabulary
from pipeline.stages.pull import pull
from pipeline.stages.quantize import quantize
from pipeline.stages.train import train
from serving.runtime.session import open_session

pytestmark = pytest.mark.slow


def embedded(root: Path, params: Params, dataset: str) -> None:
    """Preprocess a data set that comes inside of installed packages."""
    raw = root / layout.raw(dataset)
    pull(raw, name=dataset, mirrors=())
    settings = params.dataset(dataset)
    preprocess(raw, root / layout.ready(dataset), name=dataset, config=settings)


def prepared(root: Path, dataset: str, inputs: np.ndarray, labels: np.ndarray, kind: str) -> None:
    """Write rows as a preprocessed data set that has the same rows in each split."""
    folder = root / layout.ready(dataset)
    arrays = {}
    for split in ("train", "validation", "test"):
        arrays[f"{split}_inputs.npy"] = write_array(folder / f"{split}_inputs.npy", inputs)
        arrays[f"{split}_labels.npy"] = write_array(folder / f"{split}_labels.npy", labels)
    channels = inputs.shape[-1] if kind == "image" else 0
    manifest = DatasetManifest(
        dataset=dataset,
        kind=kind,  # type: ignore[arg-type]
        labels=tuple(str(label) for label in range(int(labels.max()) + 1)),
        class_counts={},
        mean=(127.0,) * channels,
        std=(64.0,) * channels,
        seed=1,
        vocabulary=vocabulary(inputs) if kind == "text" else (),
        arrays=arrays,
    )
    write_manifest(folder, manifest)


def trained(root: Path, experiment: Experiment) -> TrainReport:
    project = Project(root, experiment)
    return train(
        project.data,
        project.weights,
        project.files("train"),
        project.plots("train"),
        experiment=experiment,
        device="cpu",
        track=False,
    )


def proven(root: Path, experiment: Experiment) -> ParityReport:
    """Export, quantize and compare."""
    project = Project(root, experiment)
    export(
        project.weights,
        project.details("train"),
        project.data,
        project.models["fp32"],
        project.files("export"),
        experiment=experiment,
        track=False,
    )
    quantize(
        project.models["fp32"],
        project.data,
        project.quantized,
        project.files("quantize"),
        project.plots("quantize"),
        experiment=experiment,
        track=False,
    )
    return parity(
        project.weights,
        project.models,
        project.data,
        project.files("parity"),
        experiment=experiment,
        track=False,
    )


def changed(experiment: Experiment, epochs: int, **settings: object) -> Experiment:
    """The experiment with other settings of its model, and of quantization what a test can do."""
    model = ModelConfig(
        name=experiment.model.name, settings={**experiment.model.settings, **settings}
    )
    recurrent = (
        "dynamic-reduced"
        if experiment.model.name.endswith(("lstm", "gru"))
        else "static-u8s8-reduced"
    )
    few = replace(generous(experiment.quantize, "half", recurrent), calibration_rows=16)
    # How far int8 is off after so few epochs depends on the processor.
    gates = experiment.parity.int8
    if gates.flips is not None:  # else no class is predicted that could flip
        gates = replace(gates, flips=10**6, accuracy_loss=100)
    parity = replace(experiment.parity, int8=replace(gates, min_snr_db=None))
    return replace(experiment, epochs=epochs, model=model, quantize=few, parity=parity)


def test_one_unit_cannot_learn_xor(params: Params, tmp_path: Path) -> None:
    embedded(tmp_path, params, "xor")
    report = trained(tmp_path, params.experiment("xor-linear"))
    assert report.accuracy is not None
    assert report.accuracy < 1
    assert report.history[-1].loss == pytest.approx(np.log(2), abs=2e-3)


def test_two_hidden_units_learn_xor_from_several_seeds(params: Params, tmp_path: Path) -> None:
    embedded(tmp_path, params, "xor")
    experiment = params.experiment("xor-mlp")
    assert experiment.model.settings["hidden"] == [2]
    wrong = [
        seed
        for seed in range(1, 4)
        if trained(
            tmp_path, replace(experiment, train=replace(experiment.train, seed=seed))
        ).accuracy
        != 1
    ]
    assert wrong == []
    report = proven(tmp_path, experiment)
    assert report.passed
    assert set(report.variants) == {"fp32"}


def test_two_moons_are_told_apart(params: Params, tmp_path: Path) -> None:
    embedded(tmp_path, params, "moons")
    experiment = params.experiment("moons-mlp")
    report = trained(tmp_path, experiment)
    assert report.accuracy is not None
    assert report.accuracy >= 0.97
    assert proven(tmp_path, experiment).passed
    session = open_session(Project(tmp_path, experiment).models["fp32"])
    (features,) = session.inputs
    assert (features.name, features.dtype, features.shape) == ("features", "float32", ("batch", 2))


SENTENCES = {0: ["a dull film", "not  good at all", "bad ."], 1: ["a fine film", "good !", "café"]}


def sentences() -> tuple[np.ndarray, np.ndarray]:
    pairs = [(text, label) for label, texts in SENTENCES.items() for text in texts * 8]
    return np.array([text for text, _ in pairs]), np.array([label for _, label in pairs])


def test_sentences_are_learnt_and_the_graph_takes_strings(params: Params, tmp_path: Path) -> None:
    prepared(tmp_path, "rt_polarity", *sentences(), "text")
    small: Mapping[str, object] = {"vocabulary": 16, "length": 6, "embedding": 8, "hidden": [8, 4]}
    text = params.experiment("rt-lstm")
    settings = replace(text.train, batch_size=8, ema=0.0, weight_decay=0.0, lr=0.02)
    experiment = replace(changed(text, 12, **small, dropout=0.0, word_dropout=0.0), train=settings)
    report = trained(tmp_path, experiment)
    assert report.accuracy == 1
    found = proven(tmp_path, experiment)
    assert found.passed
    assert found.variants["fp32"].flips == 0
    session = open_session(Project(tmp_path, experiment).models["fp32"])
    rows = np.array(["good !", "bad .", "", "of words it has never seen " * 40], dtype=object)
    answers = session.run({"text": rows})
    assert answers["probabilities"].argmax(1)[:2].tolist() == [1, 0]
    np.testing.assert_allclose(answers["probabilities"].sum(1), 1, rtol=1e-6)
    alone = session.run({"text": rows[3:]})
    np.testing.assert_allclose(alone["logits"][0], answers["logits"][3], atol=1e-6)


def blobs(count: int, side: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Images whose class is the half that is bright."""
    generator = np.random.default_rng(2)
    labels = np.arange(count) % 2
    images = generator.integers(0, 60, (count, side, side, channels), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, : side // 2] += np.uint8(120 * label)
        image[:, side // 2 :] += np.uint8(120 * (1 - label))
    return images, labels.astype(np.int64)


def test_an_autoencoder_draws_its_rows_again(params: Params, tmp_path: Path) -> None:
    prepared(tmp_path, "mnist", *blobs(96, 8, 1), "image")
    experiment = changed(params.experiment("mnist-autoencoder"), 30, widths=[8, 8])
    experiment = replace(experiment, train=replace(experiment.train, batch_size=16, lr=0.01))
    report = trained(tmp_path, experiment)
    assert report.accuracy is None
    assert report.labels == report.confusion == ()
    best = min(report.history, key=lambda epoch: epoch.validation_loss)
    assert (report.best_epoch, report.validation_loss) == (best.epoch, best.validation_loss)
    assert report.loss < 0.01
    found = proven(tmp_path, experiment)
    assert found.passed
    assert found.output == "reconstruction"
    images, _ = blobs(5, 8, 1)
    project = Project(tmp_path, experiment)
    answers = open_session(project.models["fp32"]).run({"images": images})
    drawn = answers["reconstruction"]
    by_hand = np.square(drawn - images.astype(np.float32) / 255).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(answers["error"], by_hand, rtol=1e-4)


def test_the_design_for_a_gpu_trains_a_shortened_epoch_anywhere(
    params: Params, tmp_path: Path
) -> None:
    """Its own settings and a narrow network, on made-up rows: it need not learn CIFAR-10 here."""
    images, labels = blobs(64, 32, 3)
    prepared(tmp_path, "cifar10", images, labels, "image")
    experiment = params.experiment("cifar10-fast")
    experiment = replace(
        changed(experiment, 2, widths=[8, 16, 16]),
        train=replace(experiment.train, batch_size=16, lr=0.2),
    )
    report = trained(tmp_path, experiment)
    assert report.history[-1].loss < report.history[0].loss
    export_only = replace(
        experiment,
        quantize=replace(experiment.quantize, skip={"fp16": "large", "int8": "large"}),
        parity=replace(experiment.parity, batch_sizes=(1, 16)),
    )
    assert proven(tmp_path, export_only).passed
