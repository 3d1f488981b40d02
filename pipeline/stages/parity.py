"""`ferry parity EXPERIMENT`: prove that every ONNX variant answers as the trained weights do.

The whole test set goes through PyTorch and through each variant in every way it can be run; a
variant outside its gate fails the stage, and the report is written all the same. `compare` holds
any two models against each other.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from pipeline import tracking
from pipeline.config.experiment import Experiment
from pipeline.config.reading import check_gates
from pipeline.proof.differences import DecisionRule
from pipeline.proof.explain import explained
from pipeline.proof.measure import Kept, keep, sample
from pipeline.proof.pair import refuse_failures
from pipeline.proof.prove import ParityPlan, Way, prove
from pipeline.proof.rows import rows_of_split
from pipeline.proof.sides import (
    ModelSide,
    WeightsSide,
    check_alike,
    model_side,
    open_torchscript,
    open_variant,
    open_weights,
)
from pipeline.proof.tables import ulps
from pipeline.records import ReportFiles, ready, write
from pipeline.records.parity import SECOND_EXPORTER, ParityReport, VariantParity
from pipeline.records.ready import DatasetManifest
from pipeline.tracking import figures
from serving.errors import FerryError
from serving.runtime.session import usable_providers

RECORDED = ("accuracy", "r2", "flips", "max_abs_diff", "snr_db")
"""The figures of a variant that MLflow keeps beside the whole report."""


def parity(
    weights: Path,
    models: Mapping[str, Path],
    data: Path,
    files: ReportFiles,
    *,
    experiment: Experiment,
    explain: bool = False,
    track: bool = True,
) -> ParityReport:
    """Compare each variant in `models` with PyTorch over the test set of `data`.

    With `explain` the layer with the largest difference of each is named even where every limit is
    met.

    Raises ConfigError for gates that do not fit, ParityError when a gate is not met, after the
    report is written to `files`, and IntegrityError when a model was not exported from `weights`.
    """
    check_gates(experiment)
    reference = open_weights(weights, data, experiment)
    rows = rows_of_split(data, "test", reference.inputs[0])
    sides = {
        name: open_variant(path, reference.sha256, experiment) for name, path in models.items()
    }
    for side in sides.values():
        check_alike(reference, side)
    rule = DecisionRule(near=2 * (experiment.parity.fp32.max_abs_diff or 0.0), task=rows.task)
    kept = keep(reference, rows, rule)
    # Each with the reason why it cannot be used on this machine, if there is one.
    providers = usable_providers()
    variants = {}
    for name, side in sides.items():
        result = _variant(name, side, reference, kept, rule, providers, experiment=experiment)
        if explain or not result.passed:
            result = explained(result, reference, side, rows)
        variants[name] = result
    report = ParityReport(
        experiment=experiment.name,
        dataset=experiment.dataset,
        rows=len(rows),
        passed=all(variant.passed for variant in variants.values()),
        output=reference.outputs[0].name,
        torch_accuracy=_reference_accuracy(variants),
        weights_sha256=reference.sha256,
        sample_rows=min(experiment.parity.sample_rows, len(rows)),
        variants=variants,
    )
    write(report, files)
    _record(report, ready.open_manifest(data), files, track=track)
    refuse_failures(
        {f"{experiment.name} {name}": one for name, one in variants.items()}, files.details
    )
    return report


def _variant(
    name: str,
    side: ModelSide,
    reference: WeightsSide,
    kept: Kept,
    rule: DecisionRule,
    providers: Mapping[str, str | None],
    *,
    experiment: Experiment,
) -> VariantParity:
    config, count = experiment.parity, len(kept.rows)
    plan = ParityPlan(
        limits=config.gate(name),
        rule=rule,
        batch_sizes=tuple(dict.fromkeys(min(size, count) for size in config.batch_sizes)),
        levels=config.levels,
        sample=sample(count, config.sample_rows, config.seed),
        onnx_reference_rows=config.reference_rows,
        hostile=True,
    )
    ways = [Way(exporter="dynamo", provider="cpu", side=side)]
    for provider, reason in providers.items():
        if provider != "cpu":
            other = reason or _side_or_reason(model_side, side.name, side.content, provider)
            ways.append(Way(exporter="dynamo", provider=provider, side=other))
    if name == "fp32" and SECOND_EXPORTER in config.exporters:
        example = np.array(next(iter(kept.rows.slice(0, 2).values())))
        opset = experiment.export.opset
        second = _side_or_reason(open_torchscript, reference.graph, example, opset)
        ways.append(Way(exporter=SECOND_EXPORTER, provider="cpu", side=second))
    return prove(reference, kept, ways, plan, f"{experiment.name} {name}")


def _side_or_reason(make: Callable[..., ModelSide], *arguments: object) -> ModelSide | str:
    """A side, or why there is none."""
    try:
        return make(*arguments)
    except FerryError as error:
        return str(error)


def _reference_accuracy(variants: Mapping[str, VariantParity]) -> float | None:
    cells = [cell for one in variants.values() for cell in one.run]
    decided = [cell.decisions[0] for cell in cells if cell.decisions]
    whole = max(decided, key=lambda one: one.rows, default=None)
    return whole.reference_accuracy if whole else None


def _record(
    report: ParityReport, manifest: DatasetManifest, files: ReportFiles, *, track: bool
) -> None:
    with tracking.run_of_weights(report.experiment, report.weights_sha256, track=track) as tracker:
        tracker.log_data(manifest, "test", "evaluation")
        for name, variant in report.variants.items():
            measured = {f"variants/{name}/{key}": getattr(variant, key) for key in RECORDED}
            tracker.log_metrics(measured, of_model=name)
        failed = [name for name, variant in report.variants.items() if not variant.passed]
        tracker.log_tags({"ferry.parity": f"failed: {', '.join(failed)}" if failed else "passed"})
        tracker.log_figure(figures.ulp_histogram(ulps(report)), "parity_ulps.png")
        tracker.log_report(files)
