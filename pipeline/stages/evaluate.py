"""`ferry evaluate EXPERIMENT`: a look inside of the trained network.

Whether it is as sure as it is right, what it looks for and at, where it is wrong, and what is left
of it under attack; of a reconstruction how well it draws, and whether it knows strange images; of
a regression what it predicts beside what is actual.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from pipeline import tracking
from pipeline.config.experiment import Experiment
from pipeline.errors import ConfigError
from pipeline.models.insight.pictures import (
    CAPTIONS,
    Pictures,
    TrainedNetwork,
    pictures_of_classifier,
    pictures_of_reconstruction,
)
from pipeline.models.insight.quality import (
    BATCH,
    Redrawn,
    answer,
    auc,
    calibrate,
    class_accuracy,
    draw_predicted,
    draw_residuals,
    fitting,
    mistakes,
    most_confident,
    quantiles,
    redraw,
    residuals_of,
    worst,
)
from pipeline.models.insight.robustness import attack
from pipeline.models.parts.graph import MeanSquaredError, Regression, load_graph
from pipeline.records import ReportFiles, ready, write
from pipeline.records.evaluate import (
    Classes,
    EvaluateReport,
    Outliers,
    Reconstruction,
    Residuals,
)
from pipeline.tracking.figures import as_svg
from serving.files import sha256_of_file, write_text
from serving.runtime.cores import allowed_cores

NO_PIXELS = {
    "table": "a strength is a part of the brightest pixel, and a table has none",
    "text": "a word cannot change a little",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Insight:
    """What was measured, the pictures of it, and why something was not."""

    pictures: Pictures
    classes: Classes | None = None
    reconstruction: Reconstruction | None = None
    targets: dict[str, Residuals] = field(default_factory=dict)
    skipped: dict[str, str]


def evaluate(
    weights: Path,
    data: Path,
    against: Path,
    files: ReportFiles,
    pictures: Path,
    *,
    experiment: Experiment,
    track: bool = True,
) -> EvaluateReport:
    """Look inside of the network of `weights`, on the CPU, with the test rows of `data`.

    `against` is the preprocessed data set `experiment.evaluate.against`, which a reconstruction
    must tell from its own. Writes its report to `files`, and the folder `pictures` of SVG files.

    Raises MissingInputError and IntegrityError for the files, and ConfigError for an `against`
    without images.
    """
    torch.set_num_threads(allowed_cores())
    manifest = ready.open_manifest(data)
    graph = load_graph(weights, experiment, manifest)
    graph.requires_grad_(False)
    network = TrainedNetwork(graph=graph, manifest=manifest, test=ready.open_split(data, "test"))
    match graph.head:
        case MeanSquaredError():
            found = _reconstruction(network, against, experiment)
        case Regression():
            found = _regression(network)
        case _:
            found = _classes(network, experiment)
    figures = {name: one for name, one in found.pictures.items() if isinstance(one, Figure)}
    missing = {name: one for name, one in found.pictures.items() if isinstance(one, str)}
    report = EvaluateReport(
        experiment=experiment.name,
        dataset=experiment.dataset,
        rows=len(network.test.labels),
        weights_sha256=sha256_of_file(weights),
        classes=found.classes,
        reconstruction=found.reconstruction,
        pictures={name: CAPTIONS[name] for name in figures},
        targets=found.targets,
        skipped=found.skipped | missing,
    )
    _write(pictures, report, figures)
    write(report, files)
    _record(report, files, figures, track=track)
    return report


def _classes(network: TrainedNetwork, experiment: Experiment) -> Insight:
    test, labels, config = network.test, network.manifest.labels, experiment.evaluate
    answers = answer(network.graph, test)
    robustness, skipped = None, {}
    if network.manifest.kind != "image":
        skipped["attacks"] = NO_PIXELS[network.manifest.kind]
    elif not config.strengths:
        skipped["attacks"] = "evaluate.strengths holds none"
    else:
        robustness = attack(network.graph, test, config, experiment.train.seed)
    classes = Classes(
        accuracy=float((answers.predicted == answers.labels).mean()),
        class_accuracy=class_accuracy(answers, labels),
        calibration=calibrate(answers.probabilities, answers.labels),
        robustness=robustness,
        confident_mistakes=mistakes(answers, most_confident(answers), test, labels),
        worst_mistakes=mistakes(answers, worst(answers), test, labels),
    )
    pictures = pictures_of_classifier(network, answers, classes)
    return Insight(pictures=pictures, classes=classes, skipped=skipped)


def _reconstruction(network: TrainedNetwork, against: Path, experiment: Experiment) -> Insight:
    own = redraw(network.graph, network.test.inputs)
    other, outliers, name = None, None, experiment.evaluate.against
    skipped = {"attacks": "no class is answered"}
    if name is None or name == experiment.dataset:
        skipped["outliers"] = "evaluate.against names no other data set"
    else:
        other = _redraw_outliers(network, against, experiment)
        outliers = Outliers(
            dataset=name,
            rows=len(other.errors),
            mean_error=float(other.errors.mean()),
            auc=auc(own.errors, other.errors),
        )
    found = Reconstruction(
        mean_error=float(own.errors.mean()), quantiles=quantiles(own.errors), outliers=outliers
    )
    pictures = pictures_of_reconstruction(network, own, other, found)
    return Insight(pictures=pictures, reconstruction=found, skipped=skipped)


def _regression(network: TrainedNetwork) -> Insight:
    (answered,) = network.graph.answer(network.test.inputs, BATCH)
    predicted, actual = answered.double().numpy(), network.test.labels.astype(np.float64)
    names = network.manifest.targets
    targets = {
        name: residuals_of(predicted[:, index], actual[:, index])
        for index, name in enumerate(names)
    }
    pictures = {
        "predicted": draw_predicted(names, predicted, actual),
        "residuals": draw_residuals(names, predicted, actual),
    }
    skipped = {"attacks": "no class is answered"}
    return Insight(pictures=pictures, targets=targets, skipped=skipped)


def _redraw_outliers(network: TrainedNetwork, against: Path, experiment: Experiment) -> Redrawn:
    kind = ready.open_manifest(against).kind
    if kind != "image":
        raise ConfigError(
            f"experiments.{experiment.name}.evaluate.against must be a data set of images, got "
            f"{experiment.evaluate.against}, which has {kind} rows"
        )
    images = ready.open_split(against, "test").inputs
    return redraw(network.graph, fitting(images, network.row))


def _write(folder: Path, report: EvaluateReport, figures: Mapping[str, Figure]) -> None:
    """Write each figure, and remove what an earlier look left that is not made any more."""
    for name, figure in figures.items():
        title = f"{report.experiment}: {report.pictures[name]}"
        write_text(folder / f"{name}.svg", as_svg(figure, title) + "\n")
    for name in CAPTIONS.keys() - figures.keys():
        (folder / f"{name}.svg").unlink(missing_ok=True)


def _record(
    report: EvaluateReport, files: ReportFiles, figures: Mapping[str, Figure], *, track: bool
) -> None:
    with tracking.run_of_weights(report.experiment, report.weights_sha256, track=track) as tracker:
        tracker.log_metrics(report.headline)
        tracker.log_report(files)
        for name, figure in figures.items():
            tracker.log_figure(figure, f"{name}.png")
