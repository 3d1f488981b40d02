"""`ferry train EXPERIMENT`: fit the experiment's model and keep the weights of its best epoch.

Checkpoints on the way let a killed training go on where it was; MLflow records the run, and its
absence never stops one. `dvc plots` draws its history, and which class was taken for which.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline import datasets, tracking
from pipeline.config import layout, params
from pipeline.config.experiment import Experiment
from pipeline.network.graph import build_graph
from pipeline.records import ReportFiles, ready, write
from pipeline.records.ready import Split
from pipeline.records.train import Epoch, TrainReport, best_of
from pipeline.stages.page import figures
from pipeline.tracking import WEIGHTS_TAG, Tracker
from pipeline.training import checkpoint, distributed
from pipeline.training.batches import DeviceRows, Evaluation, evaluate
from pipeline.training.loop import TrainingLoop
from pipeline.training.setup import PreparedTraining, prepare
from serving.errors import UsageError
from serving.files import dump_json, read_record, sha256_of_bytes, write_bytes, write_text
from serving.machine.environment import git_revision, this_machine

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_CHECKPOINTS = 1.0
"""Epochs may be shorter than it takes to keep them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outputs:
    """The files that a training writes."""

    weights: Path
    report: ReportFiles
    plots: Path
    checkpoint: Path


def train(
    data: Path,
    weights: Path,
    files: ReportFiles,
    plots: Path,
    *,
    experiment: Experiment,
    device: str | None = None,
    track: bool = True,
) -> TrainReport:
    """Fit the experiment's model on the training rows and keep the weights of its best epoch.

    `data` is the preprocessed data set; `weights` (safetensors), the report in `files` and the
    folder `plots` (history.csv, confusion.csv) are written. `device` overrides the experiment's.
    Among several processes, as torchrun starts them, the first one writes and all return its
    report.

    Raises ConfigError for settings that do not fit, before any data is read; MissingInputError and
    IntegrityError for the data and for the weights to begin with; UsageError for a device that is
    not there; and DivergedError when the loss is not a number.
    """
    params.check(experiment)
    state = weights.with_name(layout.checkpoint(experiment.name).name)
    outputs = _Outputs(weights=weights, report=files, plots=plots, checkpoint=state)
    with distributed.join(choose_device(device or experiment.train.device)) as team:
        kept = checkpoint.read(state)
        training = prepare(data, weights, experiment, team, state=kept)
        if not team.leads:
            _fit(training, outputs, Tracker())
            return read_record(TrainReport, json.loads(team.share(b"")), str(files.details))
        _sweep(outputs)
        _log(training)
        with tracking.run_of_training(experiment.name, training.run_id, track=track) as tracker:
            tracker.log_parameters(_flat(asdict(experiment)))
            rows = ready.open_split(data, "train")
            tracker.log_data(datasets.get(experiment.dataset), training.manifest, rows)
            del rows  # else they would stay mapped
            _fit(training, outputs, tracker)
            report = _finish(training, ready.open_split(data, "test"), outputs, tracker)
        report = replace(report, tracking_seconds=tracker.seconds)
        write(report, files)
        state.unlink(missing_ok=True)
        team.share(dump_json(report).encode())
    return report


def choose_device(wanted: str) -> torch.device:
    """The device of "auto", "cpu" or "cuda"; UsageError for CUDA where there is none."""
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise UsageError("device cuda was asked for and torch finds none; `ferry doctor` says more")
    return torch.device("cuda" if has_cuda and wanted != "cpu" else "cpu")


def confusion(split: Split, predicted: Tensor | None, classes: int) -> tuple[tuple[int, ...], ...]:
    """Count the rows of each actual class (first index) by their predicted class.

    `predicted` is int64 [rows]; where no class is predicted there is nothing to count: ().
    """
    if predicted is None:
        return ()
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (split.labels, predicted.numpy()), 1)
    return tuple(tuple(row) for row in matrix.tolist())


def history_csv(history: Sequence[Epoch]) -> str:
    """A line per epoch below the names of its fields; empty where a value is None."""
    names = [field.name for field in fields(Epoch)]
    rows = [",".join(_cell(getattr(epoch, name)) for name in names) for epoch in history]
    return "\n".join([",".join(names), *rows]) + "\n"


def confusion_csv(split: Split, predicted: Tensor | None, labels: Sequence[str]) -> str:
    """A line per row with the names of its actual and its predicted class, if one is predicted."""
    rows = []
    if predicted is not None:
        pairs = zip(split.labels.tolist(), predicted.tolist(), strict=True)
        rows = [f"{labels[actual]},{labels[answer]}" for actual, answer in pairs]
    return "\n".join(["actual,predicted", *rows]) + "\n"


def _sweep(outputs: _Outputs) -> None:
    """Remove what a killed training had begun to write."""
    report = outputs.report
    for path in (outputs.weights, outputs.checkpoint, report.details, report.metrics):
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            left.unlink()


def _log(training: PreparedTraining) -> None:
    """Say what is not as in a training from scratch."""
    loop, begun = training.loop, training.transfer
    if begun:
        taken, left = ", ".join(begun.layers_taken), ", ".join(begun.layers_left) or "none"
        logger.info("%s takes %s from %s; at random: %s", loop.name, taken, begun.experiment, left)
    if loop.history:
        logger.info("%s goes on after epoch %d", loop.name, len(loop.history))


def _fit(training: PreparedTraining, outputs: _Outputs, tracker: Tracker) -> None:
    """Run the epochs that are left, and keep what is done as often as it is worth the time."""
    loop = training.loop
    rows, logged, kept = loop.steps * loop.batch_size, -math.inf, -math.inf
    kept_epochs = len(loop.history)
    # Without a terminal the bar is silent, and the log has a line now and then.
    with tqdm(
        total=rows * loop.epochs,
        initial=rows * len(loop.history),
        unit=" rows",
        disable=None if loop.team.leads else True,
    ) as bar:
        while not loop.ended:
            bar.set_description(f"{loop.name} {len(loop.history) + 1}/{loop.epochs}", refresh=False)
            epoch = loop.run_epoch(bar)
            if not loop.team.leads:
                continue
            now = time.monotonic()
            if bar.disable and (loop.ended or now - logged > SECONDS_BETWEEN_LINES):
                logged = now
                logger.info("%s", _line(loop, epoch))
            if loop.ended or now - kept > SECONDS_BETWEEN_CHECKPOINTS:
                tracker.log_epochs(loop.history[kept_epochs:])
                kept_epochs = len(loop.history)
                kept_state = loop.checkpoint(training.fingerprint, tracker.run_id)
                checkpoint.save(outputs.checkpoint, kept_state)
                kept = time.monotonic()


def _line(loop: TrainingLoop, epoch: Epoch) -> str:
    right = epoch.validation_accuracy
    reached = f"loss {epoch.validation_loss:.4f}" if right is None else f"{right:.2%}"
    return (
        f"{loop.name} {epoch.epoch}/{loop.epochs}: loss {epoch.loss:.4f}, "
        f"validation {reached}, {epoch.rows_per_second:,.0f} rows/s"
    )


def _finish(
    training: PreparedTraining, test: Split, outputs: _Outputs, tracker: Tracker
) -> TrainReport:
    """Evaluate the kept weights as they are served, on the CPU; write all but the report."""
    weights = {key: value.cpu().contiguous() for key, value in training.loop.best.items()}
    graph = build_graph(training.experiment, training.manifest)
    graph.load_state_dict(weights)
    result = evaluate(graph, DeviceRows(graph, test, torch.device("cpu")))
    content = safetensors.torch.save(weights)
    report = _report(training, test, result, sha256_of_bytes(content), tracker.run_id)
    _record(tracker, report)
    write_bytes(outputs.weights, content)
    write_text(outputs.plots / "history.csv", history_csv(report.history))
    write_text(
        outputs.plots / "confusion.csv", confusion_csv(test, result.predicted, report.labels)
    )
    return report


def _report(
    training: PreparedTraining,
    test: Split,
    result: Evaluation,
    weights_sha256: str,
    run_id: str | None,
) -> TrainReport:
    loop, experiment = training.loop, training.experiment
    seconds = sum(epoch.seconds for epoch in loop.history)
    best = best_of(loop.history)
    labels = training.manifest.labels if result.predicted is not None else ()
    return TrainReport(
        experiment=experiment.name,
        dataset=experiment.dataset,
        accuracy=result.accuracy,
        loss_name=experiment.train.loss,
        loss=result.loss,
        validation_accuracy=best.validation_accuracy,
        validation_loss=best.validation_loss,
        parameters=sum(weight.numel() for weight in loop.graph.parameters()),
        epochs=experiment.epochs,
        stopped_after=len(loop.history) if loop.stopped else None,
        best_epoch=best.epoch,
        seconds=seconds,
        rows_per_second=len(loop.history) * loop.steps * loop.batch_size / seconds,
        tracking_seconds=0.0,
        device=loop.team.device.type,
        threads=torch.get_num_threads(),
        processes=loop.team.size,
        seed=experiment.train.seed,
        data_sha256=ready.digest(training.manifest),
        weights_sha256=weights_sha256,
        init_from=training.transfer,
        machine=_machine(),
        git_revision=git_revision(),
        mlflow_run_id=run_id,
        labels=labels,
        history=tuple(loop.history),
        confusion=confusion(test, result.predicted, len(labels)),
    )


def _machine() -> str:
    here = this_machine("cpu")
    return f"{here.processor}, {here.allowed_cores} cores, {' '.join(here.flags)}"


def _record(tracker: Tracker, report: TrainReport) -> None:
    reached = {"test_loss": report.loss, "test_accuracy": report.accuracy}
    tracker.log_metrics({key: value for key, value in reached.items() if value is not None})
    tags = {WEIGHTS_TAG: report.weights_sha256, "ferry.git_revision": report.git_revision}
    tracker.log_tags(tags | {"ferry.dataset": report.dataset})
    tracker.log_figure(figures.learning_curve(report.history), "learning_curve.png")
    if report.confusion:
        matrix = figures.confusion_matrix(report.confusion, report.labels)
        tracker.log_figure(matrix, "confusion_matrix.png")


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested settings by their path, as in params.yaml."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _cell(value: float | None) -> str:
    return "" if value is None else str(value)
