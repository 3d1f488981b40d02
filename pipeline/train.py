"""`ferry train EXPERIMENT`: fit the experiment's model and keep the weights of its best epoch.

A checkpoint after each epoch lets a killed training go on where it was; MLflow records the run,
and its absence never stops one.
"""

import logging
import os
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline import checkpoint, datasets, figures, layout, ready, tracking
from pipeline.classifier import Classifier, build_classifier
from pipeline.config import Experiment
from pipeline.errors import UsageError
from pipeline.loop import Epoch, Evaluation, Loop, Rows, evaluate
from pipeline.provenance import git_revision
from pipeline.ready import Manifest, Split
from pipeline.records.train import TrainReport
from pipeline.tracking import WEIGHTS_TAG, Tracker
from serving.files import dump_json, sha256_of_bytes, write_bytes, write_json, write_text
from serving.session import allowed_cores

__all__ = ["choose_device", "train"]

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 5.0


def train(
    data: Path,
    weights: Path,
    metrics: Path,
    plots: Path,
    *,
    experiment: Experiment,
    device: str | None = None,
    track: bool = True,
) -> TrainReport:
    """Fit the experiment's model on the training rows and keep the weights of its best epoch.

    `data` is the preprocessed data set; `weights` (safetensors), `metrics` (JSON) and the folder
    `plots` (history.csv, confusion.csv) are written. `device` overrides the experiment's.

    Raises MissingInputError and IntegrityError for the data, ConfigError for settings that do not
    fit, and DivergedError when the loss is not a number.
    """
    manifest = ready.open_manifest(data)
    rows = ready.open_split(data, "train"), ready.open_split(data, "validation")
    loop = _prepare(rows, manifest, experiment, choose_device(device or experiment.train.device))
    state = weights.with_name(layout.checkpoint(experiment.name).name)
    fingerprint = _fingerprint(experiment, manifest, loop.device)
    found = checkpoint.load(state, fingerprint)
    if found:
        loop.restore(found)
        logger.info("%s goes on after epoch %d", experiment.name, len(loop.history))
    run_id = found.run_id if found else None
    with tracking.run_of_training(experiment.name, run_id, track=track) as tracker:
        tracker.log_parameters(_flat(asdict(experiment)))
        tracker.log_data(datasets.get(experiment.dataset), manifest, rows[0])
        _fit(loop, experiment.epochs, state, fingerprint, tracker)
        content = safetensors.torch.save(_on_cpu(loop.best))
        test = ready.open_split(data, "test")
        result = _test(loop, build_classifier(experiment, manifest), test)
        report = _report(loop, experiment, manifest, result, sha256_of_bytes(content))
        report = replace(
            report,
            confusion=_confusion(test, result, len(manifest.labels)),
            mlflow_run_id=tracker.run_id,
        )
        _record(tracker, report)
    write_bytes(weights, content)
    write_text(plots / "history.csv", _history_csv(loop.history))
    write_text(plots / "confusion.csv", _confusion_csv(test, result, manifest.labels))
    report = replace(report, tracking_seconds=tracker.seconds)
    write_json(metrics, report)
    state.unlink(missing_ok=True)
    return report


def choose_device(wanted: str) -> torch.device:
    """The device of "auto", "cpu" or "cuda"; UsageError for CUDA where there is none."""
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise UsageError("device cuda was asked for and torch finds none; `ferry doctor` says more")
    return torch.device("cuda" if has_cuda and wanted != "cpu" else "cpu")


def _prepare(
    rows: tuple[Split, Split], manifest: Manifest, experiment: Experiment, device: torch.device
) -> Loop:
    """Seed everything, so that two runs on one machine give the same weights, and set up."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Only warned of on CUDA, where some operators have no deterministic form.
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    # No step reads what it did not write, and filling it first would cost a tenth of the time.
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False
    torch.set_num_threads(allowed_cores())
    torch.manual_seed(experiment.train.seed)
    classifier = build_classifier(experiment, manifest).to(device)
    return Loop(classifier, experiment, *rows)


def _fit(loop: Loop, epochs: int, state: Path, fingerprint: str, tracker: Tracker) -> None:
    """Run the epochs that are left, and leave a checkpoint after each."""
    rows, done, told = loop.steps * loop.batch_size, len(loop.history), 0.0
    # Without a terminal the bar is silent, and the log has a line now and then.
    with tqdm(total=rows * epochs, initial=rows * done, unit=" images", disable=None) as bar:
        for number in range(done + 1, epochs + 1):
            bar.set_description(f"{loop.name} {number}/{epochs}")
            epoch = loop.run_epoch(bar)
            if bar.disable and (
                number == epochs or time.monotonic() - told > SECONDS_BETWEEN_LINES
            ):
                told = time.monotonic()
                logger.info("%s", _line(loop.name, epochs, epoch))
            measured = asdict(epoch)
            tracker.log_metrics(measured, step=measured.pop("epoch"))
            checkpoint.save(state, loop.checkpoint(fingerprint, tracker.run_id))


def _line(name: str, epochs: int, epoch: Epoch) -> str:
    return (
        f"{name} {epoch.epoch}/{epochs}: loss {epoch.loss:.3f}, "
        f"validation {epoch.validation_accuracy:.2%}, {epoch.rows_per_second:,.0f} rows/s"
    )


def _test(loop: Loop, classifier: Classifier, test: Split) -> Evaluation:
    """Evaluate the kept weights on the test set, on the CPU, as they will be served."""
    classifier.load_state_dict(_on_cpu(loop.best))
    return evaluate(classifier, Rows(test, torch.device("cpu")))


def _report(
    loop: Loop, experiment: Experiment, manifest: Manifest, result: Evaluation, weights_sha256: str
) -> TrainReport:
    seconds = sum(epoch.seconds for epoch in loop.history)
    best = loop.best_epoch()
    return TrainReport(
        experiment=experiment.name,
        dataset=experiment.dataset,
        accuracy=result.accuracy,
        loss=result.loss,
        validation_accuracy=best.validation_accuracy,
        parameters=sum(weight.numel() for weight in loop.classifier.parameters()),
        epochs=experiment.epochs,
        best_epoch=best.epoch,
        seconds=seconds,
        rows_per_second=len(loop.history) * loop.steps * loop.batch_size / seconds,
        tracking_seconds=0.0,
        device=str(loop.device),
        threads=torch.get_num_threads(),
        seed=experiment.train.seed,
        data_sha256=ready.digest(manifest),
        weights_sha256=weights_sha256,
        git_revision=git_revision(),
        mlflow_run_id=None,
        labels=manifest.labels,
        history=tuple(loop.history),
        confusion=(),
    )


def _record(tracker: Tracker, report: TrainReport) -> None:
    tracker.log_metrics({"test_accuracy": report.accuracy, "test_loss": report.loss})
    tags = {WEIGHTS_TAG: report.weights_sha256, "ferry.git_revision": report.git_revision}
    tracker.log_tags(tags | {"ferry.dataset": report.dataset})
    tracker.log_figure(figures.learning_curve(report.history), "learning_curve.png")
    confusion = figures.confusion_matrix(report.confusion, report.labels)
    tracker.log_figure(confusion, "confusion_matrix.png")


def _fingerprint(experiment: Experiment, manifest: Manifest, device: torch.device) -> str:
    """What a checkpoint must share with a training to be its own."""
    trained = {
        "epochs": experiment.epochs,
        "model": asdict(experiment.model),
        "train": asdict(experiment.train),
        "data": ready.digest(manifest),
        "device": device.type,
        "torch": torch.__version__,
    }
    return sha256_of_bytes(dump_json(trained).encode())


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested settings by their path, as in params.yaml."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _confusion(test: Split, result: Evaluation, classes: int) -> tuple[tuple[int, ...], ...]:
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (test.labels, result.predicted.numpy()), 1)
    return tuple(tuple(row) for row in matrix.tolist())


def _history_csv(history: list[Epoch]) -> str:
    names = [field.name for field in fields(Epoch)]
    rows = [",".join(str(getattr(epoch, name)) for name in names) for epoch in history]
    return "\n".join([",".join(names), *rows]) + "\n"


def _confusion_csv(test: Split, result: Evaluation, labels: tuple[str, ...]) -> str:
    pairs = zip(test.labels.tolist(), result.predicted.tolist(), strict=True)
    rows = [f"{labels[actual]},{labels[predicted]}" for actual, predicted in pairs]
    return "\n".join(["actual,predicted", *rows]) + "\n"
