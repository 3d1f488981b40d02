"""`ferry quantize EXPERIMENT`: search the recipe that makes the model smaller or faster, not worse.

A variant is made of the best recipe that is inside both budgets of params.yaml: what accuracy it
may lose, on rows that are no test's, and how fast it must be beside fp32 on this machine. Where
none is, fp32 ships and the metrics say why. Each recipe gives the same bytes of the same inputs;
which one is chosen depends on speeds that are measured, so `recipes` in params.yaml may name it.
"""

from pathlib import Path

import onnx

from pipeline import layout, tracking
from pipeline.config.experiment import Experiment, ParityConfig, QuantizeConfig
from pipeline.errors import ConfigError
from pipeline.exporting import onnxmodel
from pipeline.proof.rows import Rows, rows_of_split
from pipeline.quantization import recipes
from pipeline.quantization.job import Job, Training, chosen_rows, run, write_variants
from pipeline.quantization.recipes import Recipe
from pipeline.quantization.search import Settings
from pipeline.records import ReportFiles, ready, write
from pipeline.records.quantize import Budget, QuantizeReport
from pipeline.stages.page import figures
from pipeline.stages.page.figures import pareto, tries_csv
from serving.errors import UnknownNameError
from serving.files import write_text
from serving.runtime.session import open_session
from serving.runtime.tensors import TensorInfo


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
    config = experiment.quantize
    _check_recipes(config, experiment.name)
    original = onnxmodel.load(model, f"ferry export {experiment.name}")
    info = open_session(model, threads=1).inputs[0]

    def trained(recipe: Recipe) -> onnx.ModelProto:
        from pipeline.quantization.qat import trained_again

        weights = model.with_name(layout.weights(experiment.name).name)
        return trained_again(original, weights, data, recipe, experiment=experiment)

    outcome = run(
        Job(
            name=experiment.name,
            model=original,
            calibration=calibration_rows(data, info, config, experiment.name),
            rows=judging_rows(data, info),
            settings=_settings(config, experiment.parity),
            budgets={
                variant: _budget(config, variant)
                for variant in ("fp16", "int8")
                if variant not in config.skip
            },
            skip=config.reasons,
            training=Training(epochs=config.qat_epochs, model=trained)
            if config.qat_epochs
            else None,
        )
    )
    write_variants(outcome, folder)
    write_text(plots / "tries.csv", tries_csv(outcome.report))
    title = f"{experiment.name}: what each recipe lost and won"
    write_text(plots / "pareto.svg", figures.as_svg(pareto(outcome.report), title) + "\n")
    _record(outcome.report, onnxmodel.metadata(original), track=track)
    write(outcome.report, files)
    return outcome.report


def calibration_rows(data: Path, info: TensorInfo, config: QuantizeConfig, name: str) -> Rows:
    """Rows drawn from the training split with the experiment's seed, in a fixed order."""
    train = rows_of_split(data, "train", info)
    if config.calibration_rows > len(train):
        raise ConfigError(
            f"experiments.{name}.quantize.calibration_rows must be at most {len(train)}, "
            f"the rows of the training split, got {config.calibration_rows}"
        )
    return chosen_rows(train, config.calibration_rows, config.seed, f"{train.name}, drawn")


def judging_rows(data: Path, info: TensorInfo) -> Rows:
    """The validation rows, or the training rows of a data set without; the test set is parity's."""
    validation = ready.open_manifest(data).arrays["validation_inputs.npy"]
    return rows_of_split(data, "validation" if validation.shape[0] else "train", info)


def _check_recipes(config: QuantizeConfig, name: str) -> None:
    for number, recipe in enumerate(config.recipes):
        try:
            recipes.parse(recipe)
        except UnknownNameError as error:
            raise ConfigError(f"experiments.{name}.quantize.recipes.{number}: {error}") from error


def _settings(config: QuantizeConfig, gates: ParityConfig) -> Settings:
    return Settings(
        goal=config.goal,
        batch_sizes=config.batch_sizes,
        seconds=config.seconds,
        seed=config.seed,
        only=config.recipes,
        min_snr_db={"fp16": gates.fp16.min_snr_db, "int8": gates.int8.min_snr_db},
    )


def _budget(config: QuantizeConfig, variant: str) -> Budget:
    return Budget(
        accuracy_loss=config.accuracy_loss,
        error_increase=config.error_increase,
        min_speedup=config.min_speedup.of(variant),
    )


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
