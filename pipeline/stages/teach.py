"""`ferry teach EXPERIMENT`: ask its teacher for the logits that `ferry train` then follows.

Each training row is changed at random in so many ways, the views; the teacher answers each once.
"""

import logging
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.config import fitting
from pipeline.config.experiment import Experiment
from pipeline.errors import ConfigError
from pipeline.models.parts.graph import Graph, load_graph
from pipeline.records import read, ready, record
from pipeline.records.train import Teaching, TrainReport
from pipeline.training import taught
from pipeline.training.batches import EVALUATION_BATCH, DeviceRows, augment, view_draws
from pipeline.training.distributed import choose_device
from serving.errors import IntegrityError
from serving.runtime.cores import allowed_cores

logger = logging.getLogger(__name__)


def teach(
    data: Path,
    teacher: Path,
    trained: Path,
    logits: Path,
    *,
    experiment: Experiment,
    by: Experiment,
    known: TrainReport | None = None,
) -> Teaching:
    """Write the logits of a trained teacher, experiment `by`, for the training rows of its student.

    `data` is the preprocessed data set of both, `teacher` the teacher's weights, `trained` the
    report of its training, and `logits` is written: float16 [views, rows, classes]. A run that was
    killed goes on after its last whole view. `known` is the student's last training, if there was
    one.

    Raises ConfigError for an experiment without a teacher, or with one that is worse than itself;
    MissingInputError for a teacher that is not trained; and IntegrityError for one that was trained
    on other rows, which may have other classes.
    """
    fitting.check(experiment)
    config = fitting.teacher_of(experiment)
    manifest = ready.open_manifest(data)
    report = read(TrainReport, trained, f"ferry train {by.name}")
    _check(report, experiment.name, known, ready.digest(manifest))
    graph = load_graph(teacher, by, manifest)
    teaching = Teaching(
        experiment=by.name,
        weights_sha256=report.weights_sha256,
        validation_accuracy=report.validation_accuracy or 0.0,
        views=config.views,
        augment=asdict(experiment.train.augment),
        data_sha256=report.data_sha256,
    )
    device = choose_device(by.train.device)
    torch.set_num_threads(allowed_cores())
    graph.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
    rows = DeviceRows(graph, ready.open_split(data, "train"), device)
    _answer(graph, rows, experiment, teaching, logits)
    return teaching


def _check(report: TrainReport, student: str, known: TrainReport | None, data_sha256: str) -> None:
    if report.data_sha256 != data_sha256:
        raise IntegrityError(
            f"{report.experiment}, the teacher of {student}, was trained on other rows or classes "
            f"of {report.dataset} than lie there; `ferry train {report.experiment}` trains it anew"
        )
    if known is None or known.data_sha256 != data_sha256:
        return
    own, better = known.validation_accuracy or 0.0, report.validation_accuracy or 0.0
    if own > better:
        raise ConfigError(
            f"experiments.{student}.train.teacher.experiment: {report.experiment} knows less than "
            f"its student: {better:.2%} on the validation rows, {student} {own:.2%}"
        )


def _answer(
    graph: Graph, rows: DeviceRows, experiment: Experiment, teaching: Teaching, path: Path
) -> None:
    """Write the logits of all views, and keep those that are done on the way."""
    partial = path.parent.with_name(f"{path.stem}.partial.safetensors")
    done = _begun(partial, teaching)
    order = torch.arange(len(rows))
    views = [*done]
    with tqdm(
        total=teaching.views * len(rows),
        initial=len(done) * len(rows),
        unit=" rows",
        disable=None,
    ) as bar:
        for view in range(len(done), teaching.views):
            bar.set_description(f"{teaching.experiment} {view + 1}/{teaching.views}", refresh=False)
            if bar.disable:
                logger.info(
                    "%s answers view %d of %d", teaching.experiment, view + 1, teaching.views
                )
            draws = view_draws(len(rows), experiment.train.augment, view).to(rows.device)
            answers = []
            with torch.inference_mode():
                for number, (batch, _) in enumerate(rows.batches(order, EVALUATION_BATCH)):
                    drawn = draws[number * EVALUATION_BATCH : (number + 1) * EVALUATION_BATCH]
                    values = augment(graph.values(batch), experiment.train.augment, drawn)
                    answers.append(graph.network(graph.inputs(values)).cpu().half())
                    bar.update(len(batch))
            views.append(torch.cat(answers))
            taught.save(partial, torch.stack(views), teaching)
    record(path, taught.save(path, torch.stack(views), teaching))
    partial.unlink(missing_ok=True)


def _begun(partial: Path, teaching: Teaching) -> Tensor:
    """The views that a killed run has done; none where it asked for others."""
    try:
        logits, found = taught.load(partial.read_bytes())
    except (OSError, IntegrityError):
        return torch.empty(0)
    return logits if found == teaching else torch.empty(0)
