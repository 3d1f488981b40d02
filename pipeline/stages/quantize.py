"""`ferry quantize`: search the recipe that makes a model smaller or faster, and not worse.

A variant is made with the best recipe inside both budgets: what accuracy it may lose, on rows that
are not the test's, and how fast it must be beside fp32 on this machine. Where there is none, fp32
ships and the report says why. A recipe gives the same bytes of the same inputs everywhere; which
one is best depends on speeds that are measured, so `recipes` in params.yaml may name it.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from pipeline import tracking
from pipeline.config import layout
from pipeline.config.experiment import Experiment, ParityConfig, QuantizeConfig, Variant
from pipeline.exporting import onnxmodel
from pipeline.exporting.onnxmodel import load_foreign
from pipeline.proof.rows import Rows, open_rows, rows_of_split
from pipeline.quantization import recipes
from pipeline.quantization.apply import Quantizer
from pipeline.quantization.judging import Judge
from pipeline.quantization.recipes import Recipe
from pipeline.quantization.search import Training, search
from pipeline.records import ReportFiles, check_recorded, ready, record, record_of, write
from pipeline.records.quantize import QuantizeReport, Search, VariantFile
from pipeline.tracking import figures
from pipeline.tracking.figures import pareto, tries_csv
from serving.errors import InputError, UsageError
from serving.files import resolved, sha256_of_bytes, write_bytes, write_json, write_text
from serving.machine.environment import describe
from serving.measuring.feeds import fixed_batch
from serving.runtime.classes import Task
from serving.runtime.session import Session, open_session
from serving.runtime.tensors import TensorInfo

logger = logging.getLogger(__name__)
VARIANTS: tuple[Variant, ...] = ("fp16", "int8")
STEM = "model"
"""How the files of an experiment's variants begin."""
FEWEST_ROWS = 2
SNR_MARGIN_DB = 1.0
"""Of margin to the gate of an experiment, which parity holds on other rows."""


def quantize(
    model: Path,
    data: Path,
    folder: Path,
    files: ReportFiles,
    plots: Path,
    *,
    experiment: Experiment,
    track: bool = True,
) -> QuantizeReport:
    """Write the variants of `model` that are inside both budgets to `folder`: model.int8.onnx, ...

    `data` is the preprocessed data set: its training rows are calibrated on, its validation rows
    judged on. The trained weights lie beside `model`; they are read only where `qat_epochs` asks
    for training. The trace goes to `files` and to `plots` (tries.csv and pareto.svg).

    Raises MissingInputError, IntegrityError, ModelError, and ConfigError for recipes that do not
    exist.
    """
    config, gates = experiment.quantize, experiment.parity
    recipes.check(config.recipes, f"experiments.{experiment.name}.quantize.recipes")
    check_recorded(model, f"export@{experiment.name}")
    original = onnxmodel.load(model, f"ferry export {experiment.name}")
    session = open_session(model, threads=1)
    info = session.inputs[0]

    def trained(recipe: Recipe) -> onnx.ModelProto:
        from pipeline.quantization.qat import trained_again

        weights = model.with_name(layout.weights(experiment.name).name)
        return trained_again(original, weights, data, recipe, experiment=experiment)

    job = QuantizationJob(
        name=experiment.name,
        model=original,
        calibration=calibration_rows(data, info, config, experiment.name),
        judged=judging_rows(data, info),
        variants=[variant for variant in VARIANTS if variant not in config.skip],
        config=config,
        min_snr_db=asked_snr_db(gates, SNR_MARGIN_DB),
        training=trained if config.qat_epochs else None,
    )
    report = run(job, folder)
    for variant in VARIANTS:
        path = folder / f"{STEM}.{variant}.onnx"
        if made := report.variants.get(variant):
            record(path, made.sha256)
        else:
            record_of(path).unlink(missing_ok=True)
    write_text(plots / "tries.csv", tries_csv(report))
    title = f"{experiment.name}: what each recipe lost and won"
    write_text(plots / "pareto.svg", figures.as_svg(pareto(report), title) + "\n")
    write(report, files)
    _record(report, files, session, folder, job.judged, track=track)
    return report


def quantize_file(
    model: Path,
    rows: str,
    folder: Path,
    *,
    config: QuantizeConfig,
    variants: Sequence[Variant],
    min_snr_db: Mapping[Variant, float | None],
    task: Task | None = None,
    shared: Mapping[str, str] | None = None,
) -> QuantizeReport:
    """Write the `variants` of any ONNX file that are inside both budgets to `folder`.

    They are called as the file, with the variant before `.onnx`, beside `quantize.json`, the trace.
    The model's inputs and outputs stay as they are. `rows` is what `open_rows` takes: at most half
    of them, up to `calibration_rows`, are calibrated on and the others judged on. Without labels,
    agreement with fp32's decisions takes the place of accuracy. `min_snr_db` is what is asked of
    each variant's signal-to-noise ratio, `task` the user's word of what the model tells, and
    `shared` are inputs that are the same for all rows, as `open_session` takes them.

    Raises MissingInputError, InputError for rows that the model does not take and for fewer than
    two, ModelError for a file that ferry cannot run, UnknownNameError for a recipe that does not
    exist, and UsageError for a folder in which a variant would replace the model itself.
    """
    original = load_foreign(model)
    session = open_session(model, threads=1, shared=shared)
    for variant in variants:
        if resolved(folder / f"{model.stem}.{variant}.onnx") == resolved(model):
            raise UsageError(f"{model} would be replaced by its own variant; name another --output")
    batch = fixed_batch(session.inputs)
    opened = replace(open_rows(rows, session.inputs), shared=session.shared)
    calibration, judged = _halves(opened, config, batch or 1)
    job = QuantizationJob(
        name=model.name,
        model=original,
        calibration=calibration,
        judged=judged,
        variants=variants,
        config=replace(config, skip={}),
        min_snr_db=min_snr_db,
        task=task,
        batch=batch,
    )
    report = run(job, folder, model.stem)
    write_json(folder / "quantize.json", report)
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationJob:
    """A model, the rows that it is calibrated and judged on, and what its variants may cost."""

    name: str
    model: onnx.ModelProto
    calibration: Rows
    judged: Rows
    variants: Sequence[Variant]
    """Those to search, and no others."""
    config: QuantizeConfig
    min_snr_db: Mapping[Variant, float | None] = field(default_factory=dict)
    """What is asked of each variant's signal-to-noise ratio; nothing where it is not said."""
    task: Task | None = None
    """What the model tells, where nothing else says it."""
    batch: int | None = None
    """The one batch size that the model takes, or None where any will do."""
    training: Training | None = None
    """The last resort."""


def run(job: QuantizationJob, folder: Path, stem: str = STEM) -> QuantizeReport:
    """Search all variants of a job, and write those that were found: STEM.int8.onnx, ...

    Variants of an earlier run that kept more are removed. Raises UnknownNameError for a recipe that
    does not exist, before anything is measured.
    """
    start = time.perf_counter()
    for name in job.config.recipes:
        recipes.parse(name)
    searches: dict[str, Search] = {}
    contents: dict[str, bytes] = {}
    if job.variants:
        quantizer = Quantizer(job.model, job.calibration, job.batch)
        judge = Judge(quantizer, job.judged, job.config, job.min_snr_db, job.task)
        for variant in [one for one in VARIANTS if one in job.variants]:
            searches[variant], contents[variant] = search(judge, variant, job.training)
    kept = {name: content for name, content in contents.items() if content}
    fp32 = job.model.SerializeToString(deterministic=True)
    report = QuantizeReport(
        experiment=job.name,
        model_sha256=sha256_of_bytes(fp32),
        goal=job.config.goal,
        judged_on=job.judged.name,
        rows=len(job.judged) if job.variants else 0,
        calibration_rows=len(job.calibration) if "int8" in job.variants else 0,
        calibration_rows_asked=job.config.calibration_rows,
        machine=describe().processor,
        threads=1,
        seconds=time.perf_counter() - start,
        variants={
            name: VariantFile(
                recipe=searches[name].chosen or "",
                bytes=len(content),
                sha256=sha256_of_bytes(content),
                size_ratio=len(content) / len(fp32),
            )
            for name, content in kept.items()
        },
        skipped={
            **job.config.reasons,
            **{name: one.reason for name, one in searches.items() if name not in kept},
        },
        searches=searches,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for variant in VARIANTS:
        path = folder / f"{stem}.{variant}.onnx"
        if variant in kept:
            write_bytes(path, kept[variant])
        else:
            path.unlink(missing_ok=True)
    return report


def asked_snr_db(gates: ParityConfig, margin: float = 0.0) -> dict[Variant, float | None]:
    """What parity's gates ask of the signal-to-noise ratio of each variant, and a margin."""
    asked = {name: gates.gate(name).min_snr_db for name in VARIANTS}
    return {name: None if one is None else one + margin for name, one in asked.items()}


def calibration_rows(data: Path, info: TensorInfo, config: QuantizeConfig, name: str) -> Rows:
    """Rows drawn from the training split with the experiment's seed, all where there are fewer."""
    train = rows_of_split(data, "train", info)
    count = min(config.calibration_rows, len(train))
    if count < config.calibration_rows:
        logger.info(
            "%s: calibrates on all %d rows of %s, calibration_rows asks for %d",
            *(name, count, train.name, config.calibration_rows),
        )
    drawn = np.random.default_rng(config.seed).choice(len(train), count, replace=False)
    return _chosen(train, drawn, f"{train.name}, drawn")


def judging_rows(data: Path, info: TensorInfo) -> Rows:
    """The validation rows, or the training rows of a data set without; the test set is parity's."""
    validation = ready.open_manifest(data).arrays["validation_inputs.npy"]
    return rows_of_split(data, "validation" if validation.shape[0] else "train", info)


def _halves(rows: Rows, config: QuantizeConfig, batch: int) -> tuple[Rows, Rows]:
    """Rows to calibrate on, and the others, to judge on; of a fixed batch at least one each."""
    least = max(FEWEST_ROWS, 2 * batch)
    if len(rows) < least:
        raise InputError(
            f"{rows.name} holds {len(rows)} rows; quantization needs {least} or more, half to "
            f"calibrate on and half to judge on"
        )
    count = min(config.calibration_rows, len(rows) // 2)
    count = max(count - count % batch, batch)
    order = np.random.default_rng(config.seed).permutation(len(rows))
    return (
        _chosen(rows, order[:count], f"{rows.name}, to calibrate on"),
        _chosen(rows, order[count:], f"{rows.name}, to judge on"),
    )


def _chosen(rows: Rows, indices: npt.NDArray[np.int64], name: str) -> Rows:
    """Some of the rows, in their own order."""
    ordered = np.sort(indices)
    labels = None if rows.labels is None else rows.labels[ordered]
    return replace(rows, name=name, inputs=rows.take(ordered), labels=labels)


def _record(
    report: QuantizeReport,
    files: ReportFiles,
    session: Session,
    folder: Path,
    rows: Rows,
    *,
    track: bool,
) -> None:
    (example,) = rows.slice(0, 2).values()
    weights = session.metadata[f"{onnxmodel.METADATA}weights_sha256"]
    with tracking.run_of_weights(report.experiment, weights, track=track) as tracker:
        for variant, found in report.searches.items():
            tracker.log_tags({f"ferry.quantize.{variant}": found.chosen or "refused"})
        for variant, made in report.variants.items():
            path = folder / f"{STEM}.{variant}.onnx"
            signature = session.inputs, session.outputs
            tracker.log_model(variant, path, made.sha256, example, signature)
            tracker.log_metrics({f"variants/{variant}/bytes": made.bytes}, of_model=variant)
        if report.searches:
            tracker.log_figure(pareto(report), "quantize.png")
        tracker.log_report(files)
