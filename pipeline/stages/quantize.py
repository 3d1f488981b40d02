"""`ferry quantize`: search the recipe that makes a model smaller or faster, and not worse.

A variant is made with the best recipe inside both budgets: what accuracy it may lose, on rows that
are not the test's, and how fast it must be beside fp32 on this machine. Where there is none, fp32
ships and the report says why. A recipe gives the same bytes of the same inputs everywhere; which
one is best depends on speeds that are measured, so `recipes` in params.yaml may name it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from pipeline import tracking
from pipeline.config import layout
from pipeline.config.experiment import Experiment, QuantizeConfig, Variant
from pipeline.errors import ConfigError
from pipeline.exporting import onnxmodel
from pipeline.exporting.onnxmodel import load_foreign
from pipeline.proof.rows import Rows, open_rows, rows_of_split
from pipeline.quantization import recipes
from pipeline.quantization.recipes import Recipe
from pipeline.quantization.search import VARIANTS, QuantizationJob, Retraining, run
from pipeline.records import ReportFiles, ready, write
from pipeline.records.quantize import QuantizeReport
from pipeline.stages.page import figures
from pipeline.stages.page.figures import pareto, tries_csv
from serving.errors import InputError, UnknownNameError, UsageError
from serving.files import write_json, write_text
from serving.measuring.feeds import fixed_batch
from serving.runtime.session import open_session
from serving.runtime.tensors import TensorInfo

FEWEST_ROWS = 2


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

    Raises MissingInputError, IntegrityError, ModelError, and ConfigError for too few rows and for
    recipes that do not exist.
    """
    config, gates = experiment.quantize, experiment.parity
    _check_recipes(config, experiment.name)
    original = onnxmodel.load(model, f"ferry export {experiment.name}")
    info = open_session(model, threads=1).inputs[0]

    def trained(recipe: Recipe) -> onnx.ModelProto:
        from pipeline.quantization.qat import trained_again

        weights = model.with_name(layout.weights(experiment.name).name)
        return trained_again(original, weights, data, recipe, experiment=experiment)

    found = run(
        QuantizationJob(
            name=experiment.name,
            model=original,
            calibration=calibration_rows(data, info, config, experiment.name),
            judged=judging_rows(data, info),
            variants=[variant for variant in VARIANTS if variant not in config.skip],
            config=config,
            min_snr_db={"fp16": gates.fp16.min_snr_db, "int8": gates.int8.min_snr_db},
            retraining=Retraining(epochs=config.qat_epochs, model=trained)
            if config.qat_epochs
            else None,
        )
    )
    found.write(folder)
    write_text(plots / "tries.csv", tries_csv(found.report))
    title = f"{experiment.name}: what each recipe lost and won"
    write_text(plots / "pareto.svg", figures.as_svg(pareto(found.report), title) + "\n")
    _record(found.report, onnxmodel.metadata(original), track=track)
    write(found.report, files)
    return found.report


def quantize_file(
    model: Path, rows: str, folder: Path, *, config: QuantizeConfig, variants: Sequence[Variant]
) -> QuantizeReport:
    """Write the `variants` of any ONNX file that are inside both budgets to `folder`.

    They are called as the file, with the variant before `.onnx`, beside `quantize.json`, the trace.
    The model's inputs and outputs stay as they are. `rows` is what `open_rows` takes: at most half
    of them, up to `calibration_rows`, are calibrated on and the others judged on. Without labels,
    agreement with fp32's decisions takes the place of accuracy.

    Raises MissingInputError, InputError for rows that the model does not take and for fewer than
    two, ModelError for a file that ferry cannot run, UnknownNameError for a recipe that does not
    exist, and UsageError for a folder in which a variant would replace the model itself.
    """
    original = load_foreign(model)
    session = open_session(model, threads=1)
    for variant in variants:
        if (folder / f"{model.stem}.{variant}.onnx").resolve() == model.resolve():
            raise UsageError(f"{model} would be replaced by its own variant; name another --output")
    batch = fixed_batch(session.inputs)
    calibration, judged = _halves(open_rows(rows, session.inputs), config, batch or 1)
    found = run(
        QuantizationJob(
            name=model.name,
            model=original,
            calibration=calibration,
            judged=judged,
            variants=variants,
            config=replace(config, skip={}),
            batch=batch,
        )
    )
    found.write(folder, model.stem)
    write_json(folder / "quantize.json", found.report)
    return found.report


def calibration_rows(data: Path, info: TensorInfo, config: QuantizeConfig, name: str) -> Rows:
    """Rows drawn from the training split with the experiment's seed, in a fixed order."""
    train = rows_of_split(data, "train", info)
    if config.calibration_rows > len(train):
        raise ConfigError(
            f"experiments.{name}.quantize.calibration_rows must be at most {len(train)}, "
            f"the rows of the training split, got {config.calibration_rows}"
        )
    generator = np.random.default_rng(config.seed)
    drawn = generator.choice(len(train), config.calibration_rows, replace=False)
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
    return Rows(name=name, inputs=rows.take(ordered), labels=labels)


def _check_recipes(config: QuantizeConfig, name: str) -> None:
    for number, recipe in enumerate(config.recipes):
        try:
            recipes.parse(recipe)
        except UnknownNameError as error:
            raise ConfigError(f"experiments.{name}.quantize.recipes.{number}: {error}") from error


def _record(report: QuantizeReport, metadata: dict[str, str], *, track: bool) -> None:
    weights = metadata.get(f"{onnxmodel.METADATA}weights_sha256", "")
    with tracking.run_of_weights(report.experiment, weights, track=track) as tracker:
        for variant, search in report.searches.items():
            tracker.log_tags({f"ferry.quantize.{variant}": search.chosen or "refused"})
            for one in search.tries:
                prefix = f"quantize.{variant}.{one.recipe}"
                found = {"size_ratio": one.size_ratio, "speed": one.speed or None}
                if one.quality:
                    found |= {"loss": one.quality.loss, "flips": one.quality.flips}
                tracker.log_metrics(
                    {f"{prefix}.{key}": value for key, value in found.items() if value is not None}
                )
        if report.searches:
            tracker.log_figure(pareto(report), "quantize.png")
