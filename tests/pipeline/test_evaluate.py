"""The look inside as a stage: what it measures, draws, skips and leaves behind."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import safetensors.torch
import torch
from mlflow import MlflowClient
from project import Project, files_in

from pipeline.config.experiment import Experiment, Params
from pipeline.errors import ConfigError
from pipeline.models.insight.pictures import CAPTIONS
from pipeline.models.parts.graph import build_graph
from pipeline.records import read, record
from pipeline.records.evaluate import EvaluateReport, tracked
from pipeline.records.ready import (
    ArrayInfo,
    DatasetManifest,
    open_manifest,
    write_array,
    write_manifest,
)
from pipeline.records.train import TrainReport
from pipeline.stages.evaluate import evaluate
from pipeline.tracking.journal import WEIGHTS_TAG
from pipeline.tracking.store import store_uri
from serving.errors import IntegrityError, MissingInputError
from serving.files import sha256_of_file

OF_IMAGES = {"first_layer", "feature_maps", "mistakes", "saliency", "reliability", "attacks"}


def ready_folder(folder: Path, kind: Any, inputs: np.ndarray, **described: Any) -> Path:
    """A data set whose splits are all the same rows, of classes that take turns."""
    labels = (np.arange(len(inputs)) % 2).astype(np.int64)
    arrays: dict[str, ArrayInfo] = {}
    for split in ("train", "validation", "test"):
        for part, array in (("inputs", inputs), ("labels", labels)):
            name = f"{split}_{part}.npy"
            arrays[name] = write_array(folder / name, array)
    settings = {"mean": (), "std": (), "vocabulary": ()} | described
    manifest = DatasetManifest(
        dataset=folder.name,
        kind=kind,
        labels=("no", "yes"),
        class_counts={},
        seed=1,
        arrays=arrays,
        **settings,
    )
    write_manifest(folder, manifest)
    return folder


def untrained(folder: Path, experiment: Experiment, data: Path) -> Path:
    """Weights as they are drawn."""
    torch.manual_seed(0)
    state = build_graph(experiment, open_manifest(data)).state_dict()
    path = folder / "model.safetensors"
    safetensors.torch.save_file({key: value.contiguous() for key, value in state.items()}, path)
    record(path, sha256_of_file(path))
    return path


def look(
    folder: Path, weights: Path, data: Path, experiment: Experiment, against: Path | None = None
) -> EvaluateReport:
    return evaluate(
        weights,
        data,
        against or data,
        files_in(folder, "evaluate"),
        folder / "pictures",
        experiment=experiment,
        track=False,
    )


def drawn(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "pictures").iterdir()}


@pytest.fixture(scope="module")
def few(tiny: Experiment) -> Experiment:
    config = replace(tiny.evaluate, strengths=(0.1, 0.3), rows=60, steps=3)
    return replace(tiny, evaluate=config)


@pytest.fixture(scope="module")
def looked(
    trained: Project, few: Experiment, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EvaluateReport, Path]:
    folder = tmp_path_factory.mktemp("looked")
    return look(folder, trained.weights, trained.data, few), folder


def test_a_classifier_of_images(looked: tuple[EvaluateReport, Path], trained: Project) -> None:
    report, folder = looked
    training = read(TrainReport, trained.details("train"), "ferry train")
    assert report.classes is not None
    assert report.classes.accuracy == pytest.approx(training.accuracy)
    assert report.weights_sha256 == training.weights_sha256
    assert set(report.pictures) == drawn(folder) == OF_IMAGES
    for name in report.pictures:
        picture = ET.parse(folder / "pictures" / f"{name}.svg").getroot()
        assert picture.attrib["aria-label"] == f"digits-cnn: {CAPTIONS[name]}"
    assert report.skipped == {}
    assert report.reconstruction is None
    assert set(report.classes.class_accuracy) == set(training.labels)
    counts = np.array(training.confusion)
    assert list(report.classes.class_accuracy.values()) == pytest.approx(
        list(counts.diagonal() / counts.sum(axis=1))
    )
    assert sum(one.rows for one in report.classes.calibration.bins) == report.rows


def test_it_comes_back_from_its_file(looked: tuple[EvaluateReport, Path]) -> None:
    report, folder = looked
    assert read(EvaluateReport, folder / "evaluate.json", "ferry evaluate") == report


def test_attacks_are_told_in_parts_of_the_largest_pixel(
    looked: tuple[EvaluateReport, Path],
) -> None:
    classes = looked[0].classes
    assert classes is not None
    robustness = classes.robustness
    assert robustness is not None
    assert (robustness.rows, robustness.largest) == (60, 16)
    assert robustness.attacks[-1].accuracy < robustness.accuracy


def test_the_same_weights_give_the_same_bytes(
    looked: tuple[EvaluateReport, Path], trained: Project, few: Experiment, tmp_path: Path
) -> None:
    look(tmp_path, trained.weights, trained.data, few)
    for path in looked[1].rglob("*.*"):
        assert (tmp_path / path.relative_to(looked[1])).read_bytes() == path.read_bytes()


def test_a_picture_that_is_not_made_any_more_goes(
    trained: Project, few: Experiment, tmp_path: Path
) -> None:
    stale = tmp_path / "pictures" / "regions.svg"
    stale.parent.mkdir()
    stale.write_text("<svg/>")
    quiet = replace(few, evaluate=replace(few.evaluate, strengths=()))
    report = look(tmp_path, trained.weights, trained.data, quiet)
    assert not stale.exists()
    assert drawn(tmp_path) == OF_IMAGES - {"attacks"}
    assert "strengths" in report.skipped["attacks"]


def test_a_table_of_two_features(params: Params, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    data = ready_folder(tmp_path / "moons", "table", rows, mean=(0.0, 0.0), std=(1.0, 1.0))
    experiment = params.experiment("moons-mlp")
    report = look(tmp_path, untrained(tmp_path, experiment, data), data, experiment)
    assert drawn(tmp_path) == {"regions", "reliability"}
    assert report.classes is not None
    assert report.classes.robustness is None
    assert set(report.skipped) == OF_IMAGES - {"reliability"}
    assert "table" in report.skipped["attacks"]


def test_a_table_of_more_features_has_no_plane(params: Params, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    data = ready_folder(tmp_path / "moons", "table", rows, mean=(0.0,) * 3, std=(1.0,) * 3)
    experiment = params.experiment("moons-mlp")
    report = look(tmp_path, untrained(tmp_path, experiment, data), data, experiment)
    assert "two features" in report.skipped["regions"]


def test_sentences_are_quoted(params: Params, tmp_path: Path) -> None:
    rows = np.array(["a fine film", "a dull film"] * 12)
    data = ready_folder(tmp_path / "reviews", "text", rows, vocabulary=("a", "film", "fine"))
    experiment = params.experiment("rt-lstm")
    report = look(tmp_path, untrained(tmp_path, experiment, data), data, experiment)
    assert report.classes is not None
    quoted = {one.text for one in report.classes.confident_mistakes}
    assert quoted <= {"a fine film", "a dull film"}
    assert quoted
    assert drawn(tmp_path) == {"reliability"}
    assert "word" in report.skipped["attacks"]


@pytest.fixture
def drawing(params: Params) -> Experiment:
    """An autoencoder of the digits, which must know them from `strange` images."""
    experiment = params.experiment("mnist-autoencoder")
    return replace(
        experiment,
        dataset="digits",
        model=replace(experiment.model, settings=experiment.model.settings | {"widths": [4]}),
        evaluate=replace(experiment.evaluate, against="strange"),
    )


def test_a_reconstruction(trained: Project, drawing: Experiment, tmp_path: Path) -> None:
    bright = np.random.default_rng(0).integers(128, 256, (30, 12, 12, 3), dtype=np.uint8)
    strange = ready_folder(tmp_path / "strange", "image", bright)
    weights = untrained(tmp_path, drawing, trained.data)
    report = look(tmp_path, weights, trained.data, drawing, strange)
    assert report.classes is None
    found = report.reconstruction
    assert found is not None
    assert found.outliers is not None
    assert (found.outliers.dataset, found.outliers.rows) == ("strange", 30)
    # Untrained it draws grey, which bright images are nearer to than the dark digits.
    assert found.outliers.auc < 0.5
    assert found.quantiles["0.01"] <= found.quantiles["0.5"] <= found.quantiles["0.99"]
    assert drawn(tmp_path) == {"first_layer", "feature_maps", "reconstructions", "errors"}
    assert set(report.skipped) == {"attacks", "mistakes", "reliability", "saliency"}
    assert tracked(report) == {"mean_error": found.mean_error, "auc": found.outliers.auc}


def test_a_reconstruction_against_its_own_data(
    trained: Project, drawing: Experiment, tmp_path: Path
) -> None:
    alone = replace(drawing, evaluate=replace(drawing.evaluate, against="digits"))
    report = look(tmp_path, untrained(tmp_path, alone, trained.data), trained.data, alone)
    assert report.reconstruction is not None
    assert report.reconstruction.outliers is None
    assert report.skipped["outliers"] == "evaluate.against names no other data set"


def test_outliers_must_be_images(trained: Project, drawing: Experiment, tmp_path: Path) -> None:
    table = ready_folder(tmp_path / "strange", "table", np.zeros((4, 2), np.float32))
    weights = untrained(tmp_path, drawing, trained.data)
    with pytest.raises(ConfigError, match=r"evaluate\.against must be a data set of images.*table"):
        look(tmp_path, weights, trained.data, drawing, table)
    assert not (tmp_path / "evaluate.json").exists()
    assert not (tmp_path / "pictures").exists()


def test_weights_that_are_missing_or_of_another_network(
    trained: Project, drawing: Experiment, few: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(MissingInputError, match="ferry train digits-cnn"):
        look(tmp_path, tmp_path / "none.safetensors", trained.data, few)
    with pytest.raises(IntegrityError, match="mnist-autoencoder"):
        look(tmp_path, trained.weights, trained.data, drawing)


@pytest.mark.slow
def test_the_run_of_the_weights_gets_it_all(trained: Project, few: Experiment, store: Path) -> None:
    pictures = store / "pictures"
    report = evaluate(
        trained.weights,
        trained.data,
        trained.data,
        files_in(store, "evaluate"),
        pictures,
        experiment=few,
    )
    client = MlflowClient(store_uri())
    (run,) = mlflow.search_runs(experiment_names=[few.name], output_format="list")
    assert run.data.tags[WEIGHTS_TAG] == report.weights_sha256
    assert run.data.metrics["ece"] == pytest.approx(report.headline["ece"], rel=1e-5)
    kept = {Path(entry.path).stem for entry in client.list_artifacts(run.info.run_id, "figures")}
    assert kept == OF_IMAGES
