"""MLflow: what a run holds, how later stages find it, and that its absence stops nothing."""

import logging
import multiprocessing
import os
import signal
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from project import Project, files_in

from pipeline import tracking
from pipeline.records import read
from pipeline.records.train import TrainReport
from pipeline.stages.export import export
from pipeline.stages.parity import parity
from pipeline.stages.train import train
from pipeline.tracking.background import in_background
from pipeline.tracking.figures import learning_curve
from pipeline.tracking.store import load_mlflow


def tracked_training(project: Project, folder: Path) -> TrainReport:
    return train(
        project.data,
        folder / "model.safetensors",
        files_in(folder, "train"),
        folder / "plots",
        experiment=project.experiment,
        device="cpu",
        track=True,
    )


@pytest.mark.slow
def test_a_run_holds_a_training_and_what_later_stages_add(exported: Project, store: Path) -> None:
    report = tracked_training(exported, store)
    client = MlflowClient(tracking.store_uri())
    run = client.get_run(report.mlflow_run_id or "")
    assert run.info.status == "FINISHED"
    assert run.data.params["train.lr"] == str(exported.experiment.train.lr)
    assert run.data.params["model.name"] == "cnn"
    assert run.data.metrics["test_accuracy"] == report.accuracy
    losses = [point.value for point in client.get_metric_history(run.info.run_id, "loss")]
    assert losses == [epoch.loss for epoch in report.history]
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "digits"
    assert report.data_sha256.startswith(data.dataset.digest)
    assert run.data.tags["ferry.weights_sha256"] == report.weights_sha256
    assert run.data.tags["ferry.git_revision"] == report.git_revision
    figures = [entry.path for entry in client.list_artifacts(run.info.run_id, "figures")]
    assert figures == ["figures/confusion_matrix.png", "figures/learning_curve.png"]
    # The folder of params.yaml holds everything, and its path is absolute.
    assert run.info.artifact_uri.startswith((store / "mlruns").as_uri())
    assert report.tracking_seconds > 0
    export(
        store / "model.safetensors",
        store / "train.json",
        exported.data,
        store / "model.onnx",
        files_in(store, "export"),
        experiment=exported.experiment,
    )
    parity(
        store / "model.safetensors",
        {"fp32": store / "model.onnx"},
        exported.data,
        files_in(store, "parity"),
        experiment=exported.experiment,
    )
    (experiment,) = [one for one in client.search_experiments() if one.name == "digits-cnn"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == report.mlflow_run_id
    assert run.info.status == "FINISHED"
    assert run.data.tags["ferry.gate.fp32"] == "passed"
    assert run.data.metrics["parity.fp32.flips"] == 0
    models = {
        model.name: model for model in client.search_logged_models([experiment.experiment_id])
    }
    assert set(models) == {"pytorch", "fp32"}
    folder = Path(mlflow.artifacts.download_artifacts(models["fp32"].model_uri))
    assert (folder / "model.onnx").read_bytes() == (store / "model.onnx").read_bytes()
    signature = mlflow.models.get_model_info(models["fp32"].model_uri).signature
    assert signature.inputs.inputs[0].shape == (-1, 8, 8, 1)
    assert signature.inputs.inputs[0].type == np.dtype("uint8")
    text = (folder / "requirements.txt").read_text()
    assert "onnxruntime-gpu==" in text
    assert "\nonnxruntime==" not in f"\n{text}"
    pickles = [path for path in (store / "mlruns").rglob("*") if path.suffix in {".pkl", ".pth"}]
    assert pickles == []


def test_weights_that_no_run_trained_get_a_restored_run_once(store: Path) -> None:
    for _ in range(2):
        with tracking.run_of_weights("digits-cnn", "ab" * 32, track=True) as tracker:
            tracker.log_metrics({"x": 1.0})
    client = MlflowClient(tracking.store_uri())
    (experiment,) = [one for one in client.search_experiments() if one.name == "digits-cnn"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["ferry.restored"] == "true"
    assert run.info.run_name == "digits-cnn (restored)"


def test_a_stopped_run_is_marked_and_gone_on_with(store: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        tracking.run_of_training("digits-cnn", None, track=True) as tracker,
    ):
        raise KeyboardInterrupt
    client = MlflowClient(tracking.store_uri())
    identifier = tracker.run_id or ""
    assert client.get_run(identifier).info.status == "KILLED"
    with tracking.run_of_training("digits-cnn", identifier, track=True) as again:
        assert again.run_id == identifier
    assert client.get_run(identifier).info.status == "FINISHED"
    with tracking.run_of_training("digits-cnn", "0" * 32, track=True) as other:
        assert other.run_id not in (None, identifier)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/none/mlflow.db"])
def test_without_a_store_the_training_is_complete_and_a_warning_says_so(
    trained: Project,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    uri: str,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        report = tracked_training(trained, store)
    assert report.mlflow_run_id is None
    plain = read(TrainReport, trained.details("train"), "ferry train")
    assert report.weights_sha256 == plain.weights_sha256
    assert read(TrainReport, store / "train.json", "ferry train").accuracy == plain.accuracy
    (warning,) = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert warning.startswith("MLflow did not record anything: ")
    assert "\n" not in warning


def test_what_could_not_be_recorded_is_named(
    store: Path, trained: Project, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = read(TrainReport, trained.details("train"), "ferry train")

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mlflow, "log_figure", full)
    with (
        caplog.at_level(logging.WARNING, logger="pipeline"),
        tracking.run_of_training("digits-cnn", None, track=True) as tracker,
    ):
        tracker.log_figure(learning_curve(report.history), "learning_curve.png")
        tracker.log_metrics({"kept": 3.0})
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "MLflow did not record learning_curve.png: " in warning
    assert "No space left on device" in warning
    run = MlflowClient(tracking.store_uri()).get_run(tracker.run_id or "")
    assert run.data.metrics["kept"] == 3.0


def test_after_three_failures_nothing_more_is_tried(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def fail(*_args: object, **_kwargs: object) -> None:
        calls.append(1)
        raise ConnectionError("gone")

    with (
        caplog.at_level(logging.WARNING, logger="pipeline"),
        tracking.run_of_training("digits-cnn", None, track=True) as tracker,
    ):
        monkeypatch.setattr(mlflow, "log_metrics", fail)
        for step in range(10):
            tracker.log_metrics({"x": 1.0}, step=step)
        monkeypatch.undo()
    assert len(calls) == tracking.MAX_FAILURES


@pytest.mark.slow
def test_a_process_of_its_own_records_the_same(trained: Project, store: Path) -> None:
    with in_background(wanted=True):
        report = tracked_training(trained, store)
    client = MlflowClient(tracking.store_uri())
    run = client.get_run(report.mlflow_run_id or "")
    assert run.info.status == "FINISHED"
    assert run.data.params["train.lr"] == str(trained.experiment.train.lr)
    losses = [point.value for point in client.get_metric_history(run.info.run_id, "loss")]
    assert losses == [epoch.loss for epoch in report.history]
    (data,) = run.inputs.dataset_inputs
    assert report.data_sha256.startswith(data.dataset.digest)
    assert run.data.tags["ferry.weights_sha256"] == report.weights_sha256
    figures = [entry.path for entry in client.list_artifacts(run.info.run_id, "figures")]
    assert figures == ["figures/confusion_matrix.png", "figures/learning_curve.png"]
    assert tracking.ELSEWHERE == []
    plain = read(TrainReport, trained.details("train"), "ferry train")
    assert report.weights_sha256 == plain.weights_sha256


def test_ctrl_c_does_not_end_it_while_it_begins(store: Path) -> None:
    with in_background(wanted=True):
        (child,) = multiprocessing.active_children()
        os.kill(child.pid or 0, signal.SIGINT)
        with tracking.run_of_training("digits-cnn", None, track=True) as tracker:
            pass
    assert tracker.run_id is not None


def test_a_process_that_dies_stops_no_training(
    trained: Project, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with in_background(wanted=True), caplog.at_level(logging.WARNING, logger="pipeline"):
        (child,) = multiprocessing.active_children()
        child.kill()
        report = tracked_training(trained, store)
    (warning,) = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert warning == "MLflow did not record all: its process died"
    assert report.mlflow_run_id is None
    assert (store / "model.safetensors").is_file()


def test_a_mistake_leaves_no_process(store: Path) -> None:
    with pytest.raises(ValueError, match="a mistake"), in_background(wanted=True):
        raise ValueError("a mistake")
    assert multiprocessing.active_children() == []


def test_no_tracking_imports_no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("MLflow was asked for")

    monkeypatch.setattr(tracking, "load_mlflow", never)
    with tracking.run_of_training("digits-cnn", None, track=False) as tracker:
        tracker.log_metrics({"x": 1.0})
        tracker.log_parameters({"a": 1})
    assert tracker.run_id is None
    assert tracker.seconds == 0


def test_the_store_is_the_users_own_if_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    assert tracking.store_uri() == "http://tracking.example:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.store_uri() == f"sqlite:///{Path.cwd()}/mlflow.db"


def test_usage_statistics_are_off_unless_the_user_says_otherwise() -> None:
    load_mlflow()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
