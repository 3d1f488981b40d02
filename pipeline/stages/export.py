"""`ferry export EXPERIMENT`: write the trained model as one ONNX graph, raw rows in, answer out.

The same weights give the same bytes wherever the checkout lies; what the file says of itself is
taken from the training's own record.
"""

import json
import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import tracking
from pipeline.config import layout
from pipeline.config.experiment import Experiment
from pipeline.errors import ConfigError
from pipeline.exporting import onnxmodel, tokenizer
from pipeline.exporting.exporter import to_onnx, traced
from pipeline.models.parts.graph import Graph, load_graph
from pipeline.records import ReportFiles, read, ready, record, write
from pipeline.records.ready import Kind
from pipeline.records.train import TrainReport
from serving.errors import IntegrityError, ModelError
from serving.files import sha256_of_bytes, sha256_of_file
from serving.runtime.session import open_session

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was written."""

    experiment: str
    bytes: int
    sha256: str
    opset: int
    ir_version: int
    nodes: int
    seconds: float
    weights_sha256: str

    @property
    def headline(self) -> Mapping[str, float]:
        """The size of the file."""
        return {"bytes": self.bytes}


def export(
    weights: Path,
    trained: Path,
    data: Path,
    model: Path,
    files: ReportFiles,
    *,
    experiment: Experiment,
    track: bool = True,
) -> ExportReport:
    """Export the experiment's weights to `model` and add it to the MLflow run that trained them.

    `trained` is the training's `train.json` and `data` the preprocessed data set. The report of the
    export goes to `files`.
    Raises ConfigError for settings that do not fit, MissingInputError, IntegrityError when the
    weights are not the ones of `trained`, and ModelError when the file is not what ferry promises.
    """
    manifest = ready.open_manifest(data)
    _check_opset(experiment, manifest.kind)
    graph = load_graph(weights, experiment, manifest)
    facts = _facts(weights, trained, experiment)
    if manifest.features:
        facts["features"] = manifest.features
    example = ready.open_split(data, "test").inputs[:2]
    start = time.perf_counter()
    made = to_onnx(graph, example, experiment.export.opset)
    onnxmodel.set_metadata(made, facts)
    onnxmodel.check(made, experiment.export.opset)
    seconds = time.perf_counter() - start
    content = onnxmodel.save(made, model)
    report = ExportReport(
        experiment=experiment.name,
        bytes=len(content),
        sha256=sha256_of_bytes(content),
        opset=experiment.export.opset,
        ir_version=made.ir_version,
        nodes=len(made.graph.node),
        seconds=seconds,
        weights_sha256=str(facts["weights_sha256"]),
    )
    record(model, report.sha256)
    write(report, files)
    _record(model, graph, np.array(example), report, track=track)
    return report


def _check_opset(experiment: Experiment, kind: Kind) -> None:
    opset = experiment.export.opset
    if kind == "text" and opset < tokenizer.FIRST_OPSET:
        raise ConfigError(
            f"experiments.{experiment.name}.export.opset must be {tokenizer.FIRST_OPSET} or more, "
            f"which brought the operator that splits sentences, got {opset}"
        )


def _facts(weights: Path, trained: Path, experiment: Experiment) -> dict[str, object]:
    """What the model says of itself; all of it follows from the training."""
    again = f"ferry train {experiment.name}"
    record = read(TrainReport, trained, again)
    found = sha256_of_file(weights)
    if found != record.weights_sha256:
        raise IntegrityError(
            f"{weights} has sha256 {found[:12]}…, but {trained} is about "
            f"{record.weights_sha256[:12]}…; `{again}` makes both anew"
        )
    told: dict[str, object] = {"labels": record.labels} if record.labels else {}
    if record.targets:
        names = [one.target for one in record.targets]
        told = {"task": "regression", "targets": names, "r2": json.dumps(record.r2)}
    return {
        "version": metadata.version("onnx-ferry"),
        "experiment": experiment.name,
        "dataset": experiment.dataset,
        "variant": "fp32",
        **told,
        "accuracy": json.dumps(record.accuracy),
        "loss": json.dumps(record.loss),
        "git_revision": record.git_revision,
        "data_sha256": record.data_sha256,
        "weights_sha256": found,
    }


def _record(
    model: Path,
    graph: Graph,
    example: np.ndarray[Any, Any],
    report: ExportReport,
    *,
    track: bool,
) -> None:
    session = open_session(model, threads=1)
    signature = session.inputs, session.outputs
    weights = report.weights_sha256
    with tracking.run_of_weights(report.experiment, weights, track=track) as tracker:
        # PyTorch knows no strings, so that its graph is not what is served of a text.
        if track and graph.kind != "text":
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "pytorch.pt2"
                try:
                    torch.export.save(traced(graph, example), path)
                except ModelError as error:
                    logger.warning("MLflow will lack the model of PyTorch: %s", error)
                else:
                    tracker.log_model(path.stem, path, weights, example, signature)
        variant = layout.VARIANTS[0]
        tracker.log_model(variant, model, report.sha256, example, signature)
        tracker.log_metrics({f"variants/{variant}/bytes": report.bytes}, of_model=variant)
