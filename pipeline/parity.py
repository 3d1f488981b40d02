"""`ferry parity EXPERIMENT`: prove that every ONNX variant answers as the trained weights do.

The whole test set goes through PyTorch and through each variant at several batch sizes; a variant
outside its gate fails the stage, and the report is written all the same.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import onnxmodel, ready, tracking
from pipeline.config import Experiment, GateConfig
from pipeline.divergence import first_divergence
from pipeline.errors import ConfigError, IntegrityError, ParityError
from pipeline.graph import Graph, load_graph
from pipeline.ready import Split
from pipeline.records.parity import Limits, ParityReport, VariantParity
from serving.files import require, sha256_of_file, write_json
from serving.session import Session, open_session

__all__ = ["Answers", "compare", "parity", "reference_answers"]

Floats = npt.NDArray[np.float32]
REFERENCE_BATCH = 256
RELATIVE_FLOOR = 0.01
"""Values below this part of the largest one are not divided by: their ratios say nothing."""
PROBABILITIES = "probabilities"
DIGITS = 9
"""Of an accuracy loss: beyond them a difference of two shares is rounding, and no loss."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model gave for some rows."""

    values: Floats
    """float32 [rows, ...]: logits, or the pixels of reconstructions."""
    predicted: npt.NDArray[np.int64] | None
    """The class of each row, int64 [rows]; None where no class is predicted."""


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

    Raises ConfigError for gates that do not fit, ParityError when a gate is not met, after the
    report is written to `metrics`, and IntegrityError when a model was not exported from `weights`.
    """
    _check_gates(experiment)
    graph = load_graph(weights, experiment, ready.open_manifest(data))
    test = ready.open_split(data, "test")
    digest = sha256_of_file(weights)
    sessions = {name: _open(path, digest, experiment) for name, path in models.items()}
    reference = reference_answers(graph, test.inputs)
    variants = {}
    for name, session in sessions.items():
        gate = experiment.parity.gate(name)
        measured = compare(session, reference, test, experiment.parity.batch_sizes, gate)
        if not measured.passed:
            measured = _explained(measured, graph, models[name], test)
        variants[name] = measured
    report = ParityReport(
        experiment=experiment.name,
        dataset=experiment.dataset,
        rows=len(test.labels),
        passed=all(variant.passed for variant in variants.values()),
        output=graph.head.outputs[0],
        torch_accuracy=_accuracy(reference, test),
        weights_sha256=digest,
        variants=variants,
        skipped=experiment.quantize.reasons,
    )
    write_json(metrics, report)
    _record(report, track=track)
    _refuse_failures(report, metrics)
    return report


def reference_answers(graph: Graph, rows: npt.NDArray[Any]) -> Answers:
    """PyTorch's answers to raw rows, on the CPU."""
    outputs = graph.answer(rows, REFERENCE_BATCH)
    named = zip(graph.head.outputs, outputs, strict=True)
    return _joined([{name: output.numpy() for name, output in named}])


def compare(
    session: Session, reference: Answers, test: Split, batch_sizes: Sequence[int], gate: GateConfig
) -> VariantParity:
    """Compare a session's answers with the reference's.

    Each row is asked at every batch size; the figures are those of the worst one.
    """
    answers = [_answers(session, test.inputs, size) for size in batch_sizes]
    errors = _largest([np.abs(answer.values - reference.values) for answer in answers])
    floor = RELATIVE_FLOOR * float(np.abs(reference.values).max())
    relative = errors / np.maximum(np.abs(reference.values), floor)
    accuracy = _lowest([_accuracy(answer, test) for answer in answers])
    highest, lowest = (_largest([sign * answer.values for answer in answers]) for sign in (1, -1))
    measured = VariantParity(
        passed=True,
        accuracy=accuracy,
        flips=_flips(answers, reference),
        accuracy_loss=_loss(_accuracy(reference, test), accuracy),
        max_abs_diff=float(errors.max()),
        max_abs_at=_place(errors),
        max_rel_diff=float(relative.max()),
        max_rel_at=_place(relative),
        mean_abs_diff=float(errors.mean()),
        batch_diff=float((highest + lowest).max()),
        batch_sizes=tuple(batch_sizes),
        limits=Limits(**asdict(gate)),
        failures=(),
        first_divergence=None,
        sha256=session.sha256,
    )
    failures = tuple(_failures(measured, gate, session.outputs[0].name))
    return replace(measured, passed=not failures, failures=failures)


def _check_gates(experiment: Experiment) -> None:
    """Where no class is predicted none can flip; where one is, a gate must say how many may."""
    no_class = experiment.train.loss == "mean_squared_error"
    for variant in ("fp32", "fp16", "int8"):
        gate = experiment.parity.gate(variant)
        for key, limit in (("flips", gate.flips), ("accuracy_loss", gate.accuracy_loss)):
            if (limit is None) != no_class:
                wanted = "null: no class is predicted" if no_class else "a number"
                raise ConfigError(
                    f"experiments.{experiment.name}.parity.{variant}.{key} must be {wanted}, "
                    f"got {limit}"
                )


def _open(path: Path, weights_sha256: str, experiment: Experiment) -> Session:
    session = open_session(require(path, f"dvc repro quantize@{experiment.name}"))
    if session.metadata.get(f"{onnxmodel.METADATA}weights_sha256") != weights_sha256:
        raise IntegrityError(
            f"{path} was not exported from the weights {weights_sha256[:12]}…; "
            f"`dvc repro quantize@{experiment.name}` makes it anew"
        )
    return session


def _batches(rows: npt.NDArray[Any], size: int) -> Iterator[npt.NDArray[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _answers(session: Session, rows: npt.NDArray[Any], batch_size: int) -> Answers:
    name = session.inputs[0].name
    return _joined([session.run({name: batch}) for batch in _batches(rows, batch_size)])


def _joined(parts: Sequence[Mapping[str, Any]]) -> Answers:
    """The answers of some batches; the first output of a graph is the one that is compared."""
    values = np.concatenate([next(iter(part.values())) for part in parts])
    if PROBABILITIES not in parts[0]:
        return Answers(values, None)
    return Answers(values, np.concatenate([part[PROBABILITIES].argmax(1) for part in parts]))


def _accuracy(answers: Answers, test: Split) -> float | None:
    if answers.predicted is None:
        return None
    return float((answers.predicted == test.labels).mean())


def _flips(answers: Sequence[Answers], reference: Answers) -> int | None:
    if reference.predicted is None:
        return None
    return max(int(np.sum(answer.predicted != reference.predicted)) for answer in answers)


def _lowest(accuracies: Sequence[float | None]) -> float | None:
    return min((accuracy for accuracy in accuracies if accuracy is not None), default=None)


def _loss(before: float | None, after: float | None) -> float | None:
    if before is None or after is None:
        return None
    return round(100 * (before - after), DIGITS)


def _largest(arrays: Sequence[Floats]) -> Floats:
    """Element by element, the largest; NaN where there is one."""
    largest: Floats = functools.reduce(np.maximum, arrays)
    return largest


def _place(errors: npt.NDArray[Any]) -> tuple[int, ...]:
    """Where the largest value of [rows, ...] is; a NaN is largest."""
    return tuple(int(axis) for axis in np.unravel_index(int(errors.argmax()), errors.shape))


def _failures(measured: VariantParity, gate: GateConfig, output: str) -> Iterator[str]:
    worst, batch = measured.max_abs_diff, measured.batch_diff
    flips, loss = measured.flips, measured.accuracy_loss
    # Written so that a NaN fails: no comparison with it is true.
    if not worst <= gate.max_abs_diff:
        yield f"{worst:.1e} at {output}{list(measured.max_abs_at)}, limit {gate.max_abs_diff:.1e}"
    if not batch <= gate.batch_diff:
        yield f"{batch:.1e} between batch sizes, limit {gate.batch_diff:.1e}"
    if flips is not None and gate.flips is not None and flips > gate.flips:
        yield f"{flips} flips, limit {gate.flips}"
    if loss is not None and gate.accuracy_loss is not None and loss > gate.accuracy_loss:
        yield f"{loss:.2f} points of accuracy lost, limit {gate.accuracy_loss:.2f}"


def _explained(measured: VariantParity, graph: Graph, path: Path, test: Split) -> VariantParity:
    """Add where a variant that failed leaves the trained model, on its worst row."""
    row = measured.max_abs_at[0]
    model = onnxmodel.load(path, "ferry export")
    worst = test.inputs[row : row + 1]
    found = first_divergence(graph, model, worst, measured.limits.max_abs_diff)
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
            known = {key: values[key] for key in names if values[key] is not None}
            tracker.log_metrics({f"parity.{name}.{key}": float(known[key]) for key in known})
            tracker.log_tags({f"ferry.gate.{name}": "passed" if variant.passed else "failed"})
