"""`ferry train EXPERIMENT`: fit the experiment's model and keep the weights of its best epoch.

Checkpoints on the way let a killed training go on where it was; MLflow records the run, and its
absence never stops one. `dvc plots` draws its history, and which class was taken for which.
"""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline import tracking
from pipeline.config import fitting, layout, params
from pipeline.config.experiment import Experiment
from pipeline.config.yamlfile import dump_value
from pipeline.models.parts.graph import build_graph, save_weights
from pipeline.records import ReportFiles, ready, record, write
from pipeline.records.published import machine_of
from pipeline.records.ready import Split
from pipeline.records.train import Epoch, TargetQuality, TrainReport, best_of
from pipeline.tracking import Tracker, figures
from pipeline.tracking.journal import WEIGHTS_TAG, new_run_id
from pipeline.training import checkpoint, distributed
from pipeline.training.batches import DeviceRows, Evaluation, evaluate, target_qualities
from pipeline.training.loop import TrainingLoop
from pipeline.training.setup import PreparedTraining, prepare
from serving.files import csv_text, dump_json, sha256_of_bytes, write_bytes, write_text
from serving.machine.environment import git_revision, this_machine

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_CHECKPOINTS = 1.0
"""Epochs may be shorter than it takes to keep them."""


def train(
    data: Path,
    weights: Path,
    files: ReportFiles,
    plots: Path,
    *,
    experiment: Experiment,
    device: str | None = None,
    overrides: Mapping[str, str] | None = None,
    track: bool = True,
) -> TrainReport:
    """Fit the experiment's model on the training rows and keep the weights of its best epoch.

    `data` is the preprocessed data set; `weights` (safetensors), the report in `files` and the
    folder `plots` (history.csv, confusion.csv) are written. `device` overrides the experiment's.
    `overrides` are the settings that the experiment has for this run alone, which are recorded.
    Among several processes, as torchrun starts them, the first one writes and all return its
    report.

    Raises ConfigError for settings that do not fit, before any data is read; MissingInputError and
    IntegrityError for the data and for the weights to begin with; UsageError for a device that is
    not there; and DivergedError when the loss is not a number.
    """
    fitting.check(experiment)
    fitting.check(experiment, ready.open_manifest(data))
    state = weights.with_name(layout.checkpoint(experiment.name).name)
    with distributed.join(distributed.choose_device(device or experiment.train.device)) as team:
        kept = checkpoint.read(state)
        training = prepare(data, weights, experiment, team, state=kept)
        if not team.leads:
            _fit(training, state, Tracker(None))
            shared: TrainReport = team.share(None)
            return shared
        _log(training)
        run_id = _run_id(training, state) if track else None
        with (
            _interruptible(training, state),
            tracking.run_of_training(experiment.name, run_id, track=track) as tracker,
        ):
            settings = params.leaves(asdict(experiment))
            tracker.log_parameters(
                {".".join(keys): value for keys, value in settings if value != {}}
            )
            tracker.log_artifact(dump_json(experiment).encode(), "params.json")
            if overrides:
                tracker.log_tags({"ferry.set": " ".join(map("=".join, overrides.items()))})
            tracker.log_data(training.manifest, "train", "training")
            _fit(training, state, tracker)
            report = _finish(training, ready.open_split(data, "test"), weights, plots, tracker)
        report = replace(
            report,
            tracking_seconds=tracker.seconds,
            run_id=tracker.run_id,
            overrides=overrides or {},
        )
        write(report, files)
        state.unlink(missing_ok=True)
        team.share(report)
    return report


def confusion(split: Split, predicted: Tensor | None, classes: int) -> tuple[tuple[int, ...], ...]:
    """Count the rows of each actual class (first index) by their predicted class.

    `predicted` is int64 [rows]; where no class is predicted there is nothing to count: ().
    """
    if predicted is None:
        return ()
    counts = np.bincount(split.labels * classes + predicted.numpy(), minlength=classes**2)
    return tuple(tuple(row) for row in counts.reshape(classes, classes).tolist())


def _log(training: PreparedTraining) -> None:
    """Say what is not as in a training from scratch."""
    loop, begun = training.loop, training.transfer
    if begun:
        taken, left = ", ".join(begun.layers_taken), ", ".join(begun.layers_left) or "none"
        logger.info("%s takes %s from %s; at random: %s", loop.name, taken, begun.experiment, left)
    if teacher := training.teaching:
        reached = f"validation {teacher.validation_accuracy:.2%}"
        logger.info("%s learns from %s, %s", loop.name, teacher.experiment, reached)
    if loop.batch_size < loop.config.batch_size:
        logger.info(
            "%s trains on all %d rows at once, batch_size asks for %d",
            *(loop.name, loop.batch_size, loop.config.batch_size),
        )
    if loop.history:
        logger.info("%s goes on after epoch %d", loop.name, len(loop.history))


@contextlib.contextmanager
def _interruptible(training: PreparedTraining, state: Path) -> Iterator[None]:
    """Say after Ctrl-C where the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        kept = checkpoint.load(checkpoint.read(state), training.fingerprint)
        loop, epochs = training.loop, len(kept.history) if kept else 0
        where = f"after epoch {epochs} of {loop.epochs}" if epochs else "from its beginning"
        logger.info("%s was interrupted; the same command goes on %s", loop.name, where)
        raise


def _run_id(training: PreparedTraining, state: Path) -> str:
    """The run that an interrupted training began, or that of this one.

    It is kept before it begins, for a training that is killed in its first epoch goes on with it.
    """
    if training.run_id:
        return training.run_id
    run_id = new_run_id()
    checkpoint.save(state, training.loop.checkpoint(training.fingerprint, run_id))
    return run_id


def _fit(training: PreparedTraining, state: Path, tracker: Tracker) -> None:
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
                # A run that goes on without being recorded is still the one that was begun.
                run_id = tracker.run_id or training.run_id
                checkpoint.save(state, loop.checkpoint(training.fingerprint, run_id))
                kept = time.monotonic()


def _line(loop: TrainingLoop, epoch: Epoch) -> str:
    right = epoch.validation_accuracy
    reached = f"loss {epoch.validation_loss:.4f}" if right is None else f"{right:.2%}"
    return (
        f"{loop.name} {epoch.epoch}/{loop.epochs}: loss {epoch.loss:.4f}, "
        f"validation {reached}, {epoch.rows_per_second:,.0f} rows/s"
    )


def _finish(
    training: PreparedTraining, test: Split, weights: Path, plots: Path, tracker: Tracker
) -> TrainReport:
    """Evaluate the kept weights as they are served, on the CPU; write all but the report."""
    best = {key: value.cpu().contiguous() for key, value in training.loop.best.items()}
    graph = build_graph(training.experiment, training.manifest)
    graph.load_state_dict(best)
    result = evaluate(graph, DeviceRows(graph, test, torch.device("cpu")))
    names = training.manifest.targets
    targets = target_qualities(graph, test, names) if names else ()
    content = save_weights(best, training.experiment)
    report = _report(training, test, result, targets, sha256_of_bytes(content))
    _record(tracker, report)
    write_bytes(weights, content)
    record(weights, report.weights_sha256)
    columns = [field.name for field in fields(Epoch)]
    write_text(plots / "history.csv", csv_text(columns, map(astuple, report.history)))
    classes = []
    if result.predicted is not None:
        pairs = zip(test.labels.tolist(), result.predicted.tolist(), strict=True)
        classes = [(report.labels[actual], report.labels[answer]) for actual, answer in pairs]
    write_text(plots / "confusion.csv", csv_text(("actual", "predicted"), classes))
    return report


def _report(
    training: PreparedTraining,
    test: Split,
    result: Evaluation,
    targets: tuple[TargetQuality, ...],
    weights_sha256: str,
) -> TrainReport:
    loop, experiment = training.loop, training.experiment
    seconds = sum(epoch.seconds for epoch in loop.history)
    best = best_of(loop.history)
    labels = training.manifest.labels if result.predicted is not None else ()
    settings = params.training_settings(experiment)
    return TrainReport(
        experiment=experiment.name,
        dataset=experiment.dataset,
        accuracy=result.accuracy,
        loss_name=experiment.train.loss,
        loss=result.loss,
        targets=targets,
        validation_accuracy=best.validation_accuracy,
        validation_loss=best.validation_loss,
        parameters=sum(weight.numel() for weight in loop.graph.parameters()),
        epochs=experiment.epochs,
        settings={key: dump_value(value) for key, value in settings.items()},
        overrides={},
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
        teacher=training.teaching,
        machine=machine_of(this_machine("cpu")),
        git_revision=git_revision(),
        run_id=None,
        labels=labels,
        history=tuple(loop.history),
        confusion=confusion(test, result.predicted, len(labels)),
    )


def _record(tracker: Tracker, report: TrainReport) -> None:
    tracker.log_metrics(report.headline)
    if teacher := report.teacher:
        tracker.log_tags({"ferry.teacher": f"{teacher.experiment} {teacher.weights_sha256}"})
    tracker.log_tags(
        {
            "mlflow.runName": f"{report.experiment} · {report.reached} · {report.short_id}",
            "ferry.dataset": report.dataset,
            WEIGHTS_TAG: report.weights_sha256,
        }
    )
    tracker.log_figure(figures.learning_curve(report.history), "learning_curve.png")
    if report.confusion:
        matrix = figures.confusion_matrix(report.confusion, report.labels)
        tracker.log_figure(matrix, "confusion_matrix.png")
