"""Training: what it writes, that it repeats, that it goes on, and that it stops when it must."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from project import REPOSITORY, Project
from safetensors.torch import load_file

from pipeline import checkpoint, layout
from pipeline.config import AugmentConfig, Experiment
from pipeline.errors import DivergedError, MissingInputError, UsageError
from pipeline.loop import Loop
from pipeline.ready import open_manifest, open_split
from pipeline.records import read
from pipeline.records.train import TrainReport
from pipeline.train import choose_device, train


def run(root: Path, experiment: Experiment, folder: Path) -> TrainReport:
    return train(
        root / layout.ready(experiment.dataset),
        folder / "model.safetensors",
        folder / "train.json",
        folder / "plots",
        experiment=experiment,
        device="cpu",
        track=False,
    )


def test_the_report_is_about_the_weights_that_were_written(trained: Project) -> None:
    report = read(TrainReport, trained.metrics("train"), "ferry train")
    weights = load_file(trained.weights)
    manifest = open_manifest(trained.data)
    assert np.allclose(weights["mean"].numpy().ravel(), manifest.mean)
    assert np.allclose(weights["scale"].numpy().ravel(), 1 / np.array(manifest.std))
    assert report.parameters == sum(
        value.numel() for key, value in weights.items() if key.endswith(("weight", "bias"))
    )
    assert report.epochs == len(report.history) == 2
    assert report.history[1].loss < report.history[0].loss


def test_accuracy_and_confusion_agree_with_the_test_set(trained: Project) -> None:
    report = read(TrainReport, trained.metrics("train"), "ferry train")
    matrix = np.array(report.confusion)
    labels = open_split(trained.data, "test").labels
    assert matrix.sum(1).tolist() == np.bincount(labels, minlength=10).tolist()
    assert report.accuracy == pytest.approx(np.trace(matrix) / len(labels))


def test_plots_hold_a_row_per_epoch_and_per_test_row(trained: Project) -> None:
    history = list(csv.DictReader((trained.plots("train") / "history.csv").open()))
    confusion = list(csv.DictReader((trained.plots("train") / "confusion.csv").open()))
    report = read(TrainReport, trained.metrics("train"), "ferry train")
    assert [int(row["epoch"]) for row in history] == [1, 2]
    hits = sum(row["actual"] == row["predicted"] for row in confusion)
    assert hits / len(confusion) == pytest.approx(report.accuracy)


def test_no_checkpoint_is_left_behind(trained: Project) -> None:
    assert sorted(
        path.name for path in trained.weights.parent.iterdir() if path.suffix != ".onnx"
    ) == ["model.safetensors"]


def test_the_same_seed_gives_the_same_weights(trained: Project, tmp_path: Path) -> None:
    again = run(trained.root, trained.experiment, tmp_path)
    first = read(TrainReport, trained.metrics("train"), "ferry train")
    assert again.weights_sha256 == first.weights_sha256


def test_another_seed_gives_other_weights(trained: Project, tmp_path: Path) -> None:
    other = replace(trained.experiment, train=replace(trained.experiment.train, seed=2))
    first = read(TrainReport, trained.metrics("train"), "ferry train")
    assert run(trained.root, other, tmp_path).weights_sha256 != first.weights_sha256


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("schedule", ["onecycle", "cosine"])
def test_an_interrupted_training_ends_with_the_same_weights(
    ready: Path,
    tiny: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
    schedule: str,
) -> None:
    augmented = AugmentConfig(translate=1, rotate=5, scale=0.1)
    changed = replace(
        tiny.train,
        optimizer=optimizer,  # type: ignore[arg-type]
        schedule=schedule,  # type: ignore[arg-type]
        lr=1e-3,
        momentum=0.5,
        ema=0.9,
        augment=augmented,
    )
    experiment = replace(tiny, epochs=3, train=changed)
    whole = run(ready, experiment, tmp_path / "whole")
    original = Loop.run_epoch

    def stop_in_epoch_two(loop: Loop, bar: object) -> object:
        if len(loop.history) == 1:
            raise KeyboardInterrupt
        return original(loop, bar)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "run_epoch", stop_in_epoch_two)
        with pytest.raises(KeyboardInterrupt):
            run(ready, experiment, tmp_path / "parts")
    assert (tmp_path / "parts" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    resumed = run(ready, experiment, tmp_path / "parts")
    assert resumed.weights_sha256 == whole.weights_sha256
    assert [epoch.loss for epoch in resumed.history] == [epoch.loss for epoch in whole.history]


def test_a_checkpoint_of_other_settings_is_ignored(
    ready: Path, tiny: Experiment, tmp_path: Path
) -> None:
    foreign = checkpoint.Checkpoint(
        fingerprint="another",
        history=[],
        run_id=None,
        model={"x": torch.ones(1)},
        best={},
        average={},
        optimizer={"state": {}, "param_groups": []},
        scheduler={},
    )
    checkpoint.save(tmp_path / "checkpoint.safetensors", foreign)
    assert run(ready, tiny, tmp_path).epochs == 2


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_or_starts_clean(trained: Project, tmp_path: Path) -> None:
    """SIGKILL at growing delays until one run lives long enough to end."""
    text = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    section = text["experiments"]["digits-cnn"]
    section["model"] |= trained.experiment.model.settings
    section["epochs"] = trained.experiment.epochs
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(text))
    (tmp_path / "data").symlink_to(trained.root / "data")
    command = [sys.executable, "-m", "pipeline", "train", "digits-cnn", "--no-track"]
    command += ["--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    for delay in (1.5, 2.0, 2.5, 3.0):
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "metrics/digits-cnn/train.json").read_text())
    wanted = read(TrainReport, trained.metrics("train"), "ferry train")
    assert found["weights_sha256"] == wanted.weights_sha256
    leftovers = [path.name for path in (tmp_path / "models/digits-cnn").iterdir()]
    assert [name for name in leftovers if not name.endswith(".tmp")] == ["model.safetensors"]


def test_a_loss_that_is_no_number_stops_the_training(
    ready: Path, tiny: Experiment, tmp_path: Path
) -> None:
    wild = replace(tiny, train=replace(tiny.train, optimizer="sgd", lr=1e30, momentum=0.9))
    with pytest.raises(DivergedError, match=r"epoch 1, step \d+ of 19, learning rate .*train\.lr"):
        run(ready, wild, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "train.json").exists()


def test_data_that_is_not_there_names_the_command(tmp_path: Path, tiny: Experiment) -> None:
    with pytest.raises(MissingInputError, match="`ferry preprocess digits` makes it"):
        run(tmp_path, tiny, tmp_path)


def test_a_moving_average_is_what_is_kept(ready: Path, tiny: Experiment, tmp_path: Path) -> None:
    plain = run(ready, tiny, tmp_path / "plain")
    averaged = replace(tiny, train=replace(tiny.train, ema=0.99))
    assert run(ready, averaged, tmp_path / "ema").weights_sha256 != plain.weights_sha256


def test_a_batch_larger_than_the_data_still_trains(
    ready: Path, tiny: Experiment, tmp_path: Path
) -> None:
    wide = replace(tiny, epochs=1, train=replace(tiny.train, batch_size=100_000))
    assert len(run(ready, wide, tmp_path).history) == 1


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    if torch.cuda.is_available():
        assert choose_device("auto").type == choose_device("cuda").type == "cuda"
        return
    assert choose_device("auto").type == "cpu"
    with pytest.raises(UsageError, match="ferry doctor"):
        choose_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_training_on_cuda_in_half_precision(ready: Path, tiny: Experiment, tmp_path: Path) -> None:
    report = train(
        ready / layout.ready("digits"),
        tmp_path / "model.safetensors",
        tmp_path / "train.json",
        tmp_path / "plots",
        experiment=replace(tiny, epochs=10),
        device="cuda",
        track=False,
    )
    assert report.device == "cuda"
    assert report.accuracy > 0.9
