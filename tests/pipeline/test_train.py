"""Training: what it writes, that it repeats, that it goes on, and that it stops when it must."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from project import REPOSITORY, Project, files_in
from safetensors import safe_open
from safetensors.torch import load_file
from training import OFF, run, stop_after, with_train

from pipeline.cli import ferry
from pipeline.config import layout
from pipeline.config.experiment import AugmentConfig, Experiment
from pipeline.errors import ConfigError, DivergedError
from pipeline.records import read
from pipeline.records.ready import Split, open_manifest, open_split
from pipeline.records.train import TrainReport
from pipeline.stages.train import confusion, train
from pipeline.training import checkpoint
from pipeline.training.distributed import choose_device
from pipeline.training.loop import TrainingLoop
from serving.errors import UsageError


def test_the_report_is_about_the_weights_that_were_written(trained: Project) -> None:
    report = read(TrainReport, trained.details("train"), "ferry train")
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
    report = read(TrainReport, trained.details("train"), "ferry train")
    matrix = np.array(report.confusion)
    labels = open_split(trained.data, "test").labels
    assert matrix.sum(1).tolist() == np.bincount(labels, minlength=10).tolist()
    assert report.accuracy == pytest.approx(np.trace(matrix) / len(labels))


def test_a_row_is_counted_at_its_actual_and_its_predicted_class() -> None:
    split = Split(np.zeros((4, 1)), np.array([0, 1, 1, 2]))
    assert confusion(split, torch.tensor([0, 2, 1, 2]), 3) == ((1, 0, 0), (0, 1, 1), (0, 0, 1))
    assert confusion(split, None, 0) == ()


def test_plots_hold_a_row_per_epoch_and_per_test_row(trained: Project) -> None:
    history = list(csv.DictReader((trained.plots("train") / "history.csv").open()))
    confusion = list(csv.DictReader((trained.plots("train") / "confusion.csv").open()))
    report = read(TrainReport, trained.details("train"), "ferry train")
    assert [int(row["epoch"]) for row in history] == [1, 2]
    hits = sum(row["actual"] == row["predicted"] for row in confusion)
    assert hits / len(confusion) == pytest.approx(report.accuracy)


def test_the_same_seed_gives_the_same_weights(trained: Project, tmp_path: Path) -> None:
    again = run(trained.root, trained.experiment, tmp_path)
    first = read(TrainReport, trained.details("train"), "ferry train")
    assert again.weights_sha256 == first.weights_sha256


def test_another_seed_gives_other_weights(trained: Project, tmp_path: Path) -> None:
    other = replace(trained.experiment, train=replace(trained.experiment.train, seed=2))
    first = read(TrainReport, trained.details("train"), "ferry train")
    assert run(trained.root, other, tmp_path).weights_sha256 != first.weights_sha256


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        ("sgd", "onecycle"),
        ("adam", "linear"),
        ("adamw", "cosine"),
        ("rmsprop", "constant"),
        ("muon", "onecycle"),
    ],
)
def test_an_interrupted_training_ends_with_the_same_weights(
    ready: Path,
    tiny: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
    schedule: str,
) -> None:
    changes = AugmentConfig(translate=1, rotate=5, scale=0.1, flip=True, cutout=2)
    settings = {"lr": 1e-3, "momentum": 0.5, "ema": 0.9, "augment": changes, "clip": 1.0}
    experiment = with_train(tiny, epochs=3, optimizer=optimizer, schedule=schedule, **settings)
    check_that_it_goes_on(ready, experiment, tmp_path, monkeypatch)


LBFGS: dict[str, Any] = {
    "optimizer": "lbfgs",
    "schedule": "constant",
    "augment": OFF,
    "weight_decay": 0,
    "momentum": 0,
}


def test_an_interrupted_line_search_ends_with_the_same_weights(
    ready: Path, tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = with_train(tiny, epochs=3, lr=0.5, batch_size=2000, **LBFGS)
    report = check_that_it_goes_on(ready, experiment, tmp_path, monkeypatch)
    assert report.history[-1].loss < report.history[0].loss / 2


def check_that_it_goes_on(
    ready: Path, experiment: Experiment, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> TrainReport:
    whole = run(ready, experiment, folder / "whole")
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            run(ready, experiment, folder / "parts")
    assert (folder / "parts" / "checkpoint.safetensors").exists()
    assert not (folder / "parts" / "model.safetensors").exists()
    resumed = run(ready, experiment, folder / "parts")
    assert resumed.weights_sha256 == whole.weights_sha256
    assert [epoch.loss for epoch in resumed.history] == [epoch.loss for epoch in whole.history]
    return whole


def test_a_training_that_is_interrupted_again_knows_its_run(
    ready: Path, tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stages.train.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    state = tmp_path / "checkpoint.safetensors"
    found = None
    for epochs in (1, 2):
        with monkeypatch.context() as patch:
            stop_after(epochs, patch)
            with pytest.raises(KeyboardInterrupt):
                run(ready, with_train(tiny, epochs=3), tmp_path)
        with safe_open(state, framework="pt") as file:
            fingerprint = json.loads(file.metadata()["ferry"])["fingerprint"]
        found = checkpoint.load(state.read_bytes(), fingerprint)
        assert found is not None
        assert len(found.history) == epochs
        if epochs == 1:
            checkpoint.save(state, replace(found, run_id="begun"))
    assert found is not None
    assert found.run_id == "begun"


def test_an_interrupted_training_still_stops_early(
    ready: Path,
    tiny: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "pipeline")
    still = with_train(tiny, epochs=20, optimizer="sgd", lr=1e-30, early_stop=3)
    whole = run(ready, still, tmp_path / "whole")
    assert whole.stopped_after == len(whole.history) == whole.best_epoch + 3 < 20
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        patch.setattr("pipeline.stages.train.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            run(ready, still, tmp_path / "parts")
    said = f"{still.name} was interrupted; the same command goes on after epoch 2 of 20"
    assert said in caplog.messages
    resumed = run(ready, still, tmp_path / "parts")
    assert resumed.stopped_after == whole.stopped_after
    assert resumed.weights_sha256 == whole.weights_sha256


def test_short_epochs_share_a_checkpoint(
    ready: Path, tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    original = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *args: (saved.append(1), original(*args)))
    monkeypatch.setattr("pipeline.stages.train.SECONDS_BETWEEN_CHECKPOINTS", 3600.0)
    report = run(ready, with_train(tiny, epochs=6), tmp_path)
    assert (len(report.history), len(saved)) == (6, 2), "the first and the last"


def test_a_training_with_other_settings_begins_anew(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            run(trained.root, with_train(trained.experiment, lr=0.5), tmp_path)
    first = read(TrainReport, trained.details("train"), "ferry train")
    assert run(trained.root, trained.experiment, tmp_path).weights_sha256 == first.weights_sha256


def test_settings_of_one_run_are_recorded_and_another_model_is_refused_later(
    ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    (tmp_path / "data").symlink_to(ready / "data")
    monkeypatch.chdir(tmp_path)
    given = ["--set", "epochs=1", "--set", "model.hidden=[16]", "--no-track", "--json"]
    done = CliRunner().invoke(ferry, ["train", "digits-mlp", *given])
    report = read(TrainReport, layout.details("digits-mlp", "train"), "ferry train")
    assert report.overrides == {"epochs": "1", "model.hidden": "[16]"}
    assert json.loads(done.stdout)["epochs"] == len(report.history) == 1
    refused = CliRunner().invoke(ferry, ["export", "digits-mlp", "--no-track"])
    assert refused.exit_code == 1
    assert "was trained with model.hidden [16], params.yaml says [128]: " in refused.stderr


def test_what_a_kill_left_half_written_is_swept_away(
    ready: Path, tiny: Experiment, tmp_path: Path
) -> None:
    for name in ("model.safetensors", "checkpoint.safetensors", "train.json"):
        (tmp_path / f".{name}.00000000.tmp").write_bytes(b"half")
    (tmp_path / "mine.tmp").write_bytes(b"half")
    run(ready, with_train(tiny, epochs=1), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine.tmp",
        "model.safetensors",
        "model.safetensors.sha256",
        "plots",
        "train.json",
        "train.metrics.json",
    ]


def test_settings_that_do_not_fit_are_refused_before_data_is_read(
    tiny: Experiment, tmp_path: Path
) -> None:
    wrong = with_train(tiny, loss="mean_squared_error")
    with pytest.raises(ConfigError, match=r"digits-cnn\.train\.loss: mean_squared_error"):
        run(tmp_path / "nowhere", wrong, tmp_path)


def test_a_line_search_that_diverges_is_told(ready: Path, tiny: Experiment, tmp_path: Path) -> None:
    wild = with_train(tiny, lr=1e30, epochs=4, batch_size=300, **LBFGS)
    wild = replace(wild, model=replace(wild.model, settings={**wild.model.settings, "dropout": 0}))
    with pytest.raises(DivergedError, match=r"epoch \d, step \d of 4, learning rate 1.00e\+30"):
        run(ready, wild, tmp_path)


def test_a_loss_that_is_no_number_stops_the_training(
    ready: Path, tiny: Experiment, tmp_path: Path
) -> None:
    wild = with_train(tiny, optimizer="sgd", lr=1e30, momentum=0.9)
    with pytest.raises(DivergedError, match=r"epoch 1, step \d+ of 19, learning rate .*train\.lr"):
        run(ready, wild, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "train.json").exists()


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
        files_in(tmp_path, "train"),
        tmp_path / "plots",
        experiment=replace(tiny, epochs=10),
        device="cuda",
        track=False,
    )
    assert report.device == "cuda"
    assert report.accuracy > 0.9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_no_step_on_cuda_waits_for_the_device(
    ready: Path, tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TrainingLoop._step

    def strictly(loop: TrainingLoop, *arguments: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            original(loop, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(TrainingLoop, "_step", strictly)
    changes = AugmentConfig(translate=1, rotate=5, scale=0.1, flip=True, cutout=2)
    experiment = with_train(tiny, augment=changes, clip=1.0, ema=0.9, device="cuda")
    report = train(
        ready / layout.ready("digits"),
        tmp_path / "model.safetensors",
        files_in(tmp_path, "train"),
        tmp_path / "plots",
        experiment=experiment,
        track=False,
    )
    assert len(report.history) == 2
