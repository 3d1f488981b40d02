"""`ferry parity EXPERIMENT`: prove that every ONNX variant answers as the trained weights do.

The whole test set goes through PyTorch and through each variant at several batch sizes; a variant
outside its gate fails the stage, and the report is written all the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline import layout, onnxmodel, ready, tracking
from pipeline.classifier import Classifier, load_classifier
from pipeline.config import Experiment, GateConfig
from pipeline.divergence import first_divergence
from pipeline.errors import IntegrityError, ParityError
from pipeline.ready import Split
from pipeline.records.parity import Limits, ParityReport, VariantParity
from serving.files import require, sha256_of_file, write_json
from serving.session import Session, open_session

__all__ = ["compare", "parity", "reference_logits"]

Floats = npt.NDArray[np.float32]
REFERENCE_BATCH = 256
RELATIVE_FLOOR = 0.01
"""Logits below this part of the largest one are not divided by: their ratios say nothing."""
DIGITS = 9
"""Of an accuracy loss: beyond them a difference of two shares is rounding, and no loss."""


def parity(
    weights: Path,
    models: Mapping[str, Path],
    data: Path,
    metrics: Path,
    *,
    experiment: Experiment,
    track: bool = True,
) -> ParityReport:
    """Compare each variant in `models` with PyTorch over the test set of `data`.

    Raises ParityError when a gate is not met, after the report is written to `metrics`, and
    IntegrityError when a model was not exported from `weights`.
    """
    classifier = load_classifier(weights, experiment, ready.open_manifest(data))
    test = ready.open_split(data, "test")
    digest = sha256_of_file(weights)
    sessions = {name: _open(path, digest, experiment) for name, path in models.items()}
    reference = reference_logits(classifier, test.inputs)
    variants = {}
    for name, session in sessions.items():
        gate = experiment.parity.gate(name)
        measured = compare(session, reference, test, experiment.parity.batch_sizes, gate)
        if not measured.passed:
            measured = _explained(measured, classifier, models[name], test)
        variants[name] = measured
    report = ParityReport(
        experiment=experiment.name,
        dataset=experiment.dataset,
        rows=len(test.labels),
        passed=all(variant.passed for variant in variants.values()),
        torch_accuracy=_accuracy(reference, test),
        weights_sha256=digest,
        variants=variants,
    )
    write_json(metrics, report)
    _record(report, track=track)
    _refuse_failures(report, metrics)
    return report


def reference_logits(classifier: Classifier, images: npt.NDArray[Any]) -> Floats:
    """PyTorch's logits, float32 [rows, classes], of images uint8 [rows, H, W, C], on the CPU."""
    parts = []
    with torch.inference_mode():
        for rows in _batches(images, REFERENCE_BATCH):
            logits, _ = classifier(torch.from_numpy(rows.copy()))
            parts.append(logits.numpy())
    return np.concatenate(parts)


def compare(
    session: Session, reference: Floats, test: Split, batch_sizes: Sequence[int], gate: GateConfig
) -> VariantParity:
    """Compare a session's logits with the reference's, float32 [rows, classes].

    Each row is asked at every batch size; the figures are those of the worst one.
    """
    answers = np.stack([_logits(session, test.inputs, size) for size in batch_sizes])
    errors = np.abs(answers - reference)
    floor = RELATIVE_FLOOR * float(np.abs(reference).max())
    relative = errors / np.maximum(np.abs(reference), floor)
    flips = (answers.argmax(2) != reference.argmax(1)).sum(1)
    accuracy = min(_accuracy(answer, test) for answer in answers)
    measured = VariantParity(
        passed=True,
        accuracy=accuracy,
        flips=int(flips.max()),
        accuracy_loss=round(100 * (_accuracy(reference, test) - accuracy), DIGITS),
        max_abs_diff=float(errors.max()),
        max_abs_at=_place(errors),
        max_rel_diff=float(relative.max()),
        max_rel_at=_place(relative),
        mean_abs_diff=float(errors.mean()),
        batch_diff=float(np.ptp(answers, axis=0).max()),
        batch_sizes=tuple(batch_sizes),
        limits=Limits(**asdict(gate)),
        failures=(),
        first_divergence=None,
        sha256=session.sha256,
    )
    failures = tuple(_failures(measured, gate))
    return replace(measured, passed=not failures, failures=failures)


def _open(path: Path, weights_sha256: str, experiment: Experiment) -> Session:
    again = "ferry export" if path.name == layout.MODEL_FILES["fp32"] else "ferry quantize"
    session = open_session(require(path, f"{again} {experiment.name}"))
    if session.metadata.get(f"{onnxmodel.METADATA}weights_sha256") != weights_sha256:
        raise IntegrityError(
            f"{path} was not exported from the weights {weights_sha256[:12]}…; "
            f"`dvc repro quantize@{experiment.name}` makes it anew"
        )
    return session


def _batches(rows: npt.NDArray[Any], size: int) -> Iterator[npt.NDArray[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _logits(session: Session, images: npt.NDArray[Any], batch_size: int) -> Floats:
    name = session.inputs[0].name
    parts = [session.run({name: rows})["logits"] for rows in _batches(images, batch_size)]
    return np.concatenate(parts)


def _accuracy(logits: Floats, test: Split) -> float:
    return float((logits.argmax(1) == test.labels).mean())


def _place(errors: npt.NDArray[Any]) -> tuple[int, int]:
    """Row and column of the largest value of [batch sizes, rows, classes]; a NaN is largest."""
    _, row, column = np.unravel_index(int(errors.argmax()), errors.shape)
    return int(row), int(column)


def _failures(measured: VariantParity, gate: GateConfig) -> Iterator[str]:
    row, column = measured.max_abs_at
    worst, batch, loss = measured.max_abs_diff, measured.batch_diff, measured.accuracy_loss
    # Written so that a NaN fails: no comparison with it is true.
    if not worst <= gate.max_abs_diff:
        yield f"{worst:.1e} at logits[{row}, {column}], limit {gate.max_abs_diff:.1e}"
    if not batch <= gate.batch_diff:
        yield f"{batch:.1e} between batch sizes, limit {gate.batch_diff:.1e}"
    if measured.flips > gate.flips:
        yield f"{measured.flips} flips, limit {gate.flips}"
    if loss > gate.accuracy_loss:
        yield f"{loss:.2f} points of accuracy lost, limit {gate.accuracy_loss:.2f}"


def _explained(
    measured: VariantParity, classifier: Classifier, path: Path, test: Split
) -> VariantParity:
    """Add where a variant that failed leaves the trained model, on its worst row."""
    row, _ = measured.max_abs_at
    model = onnxmodel.load(path, "ferry export")
    found = first_divergence(classifier, model, test.inputs[row], measured.limits.max_abs_diff)
    return replace(measured, first_divergence=found)


def _refuse_failures(report: ParityReport, metrics: Path) -> None:
    told = []
    for name, variant in report.variants.items():
        if not variant.passed:
            where = variant.first_divergence
            place = f"; first divergence at {where.node}" if where else ""
            told.append(f"{report.experiment} {name}: {', '.join(variant.failures)}{place}")
    if told:
        raise ParityError(f"{'; '.join(told)}; see {metrics}")


def _record(report: ParityReport, *, track: bool) -> None:
    with tracking.run_of_weights(report.experiment, report.weights_sha256, track=track) as tracker:
        for name, variant in report.variants.items():
            values = asdict(variant)
            names = (
                "accuracy",
                "flips",
                "accuracy_loss",
                "max_abs_diff",
                "max_rel_diff",
                "batch_diff",
            )
            tracker.log_metrics({f"parity.{name}.{key}": float(values[key]) for key in names})
            tracker.log_tags({f"ferry.gate.{name}": "passed" if variant.passed else "failed"})
