"""`ferry bundle EXPERIMENT`: make the folder that is deployed, of the best variant that passed.

Nothing unproven ships: a variant without a passed gate, or one whose file is not the one that was
compared and timed, is never chosen.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline import tracking
from pipeline.bundling.gains import gains_over_fp32, on_cpu
from pipeline.bundling.proof import gates_of
from pipeline.bundling.reference import reference_of
from pipeline.config.experiment import BundleConfig, Experiment
from pipeline.errors import GateError
from pipeline.records import ReportFiles, read, ready, write
from pipeline.records.benchmark import BenchmarkReport, BundleReport, Gain
from pipeline.records.parity import ParityReport, VariantParity
from pipeline.records.train import TrainReport
from serving.bundles.bundle import ModelOrigin
from serving.bundles.reference import Reference
from serving.bundles.writing import BundleContents, write_bundle
from serving.errors import IntegrityError
from serving.files import require, sha256_of_bytes
from serving.runtime.session import open_session


def bundle(
    models: Mapping[str, Path],
    data: Path,
    details: Path,
    folder: Path,
    files: ReportFiles,
    *,
    experiment: Experiment,
    track: bool = True,
) -> BundleReport:
    """Write the bundle `folder` of the best of `models`.

    `details` is the folder of the experiment's train.json, parity.json and benchmark.json, `data`
    the preprocessed data set that the golden rows and the statistics of `reference.json` come from.
    Its own report goes to `files`.

    Raises MissingInputError, GateError when fp32 did not pass its gate, and IntegrityError when a
    file is not the one that was measured.
    """
    trained = read(TrainReport, details / "train.json", f"ferry train {experiment.name}")
    parity = read(ParityReport, details / "parity.json", f"ferry parity {experiment.name}")
    timed = read(BenchmarkReport, details / "benchmark.json", f"ferry benchmark {experiment.name}")
    gains = _gains(parity, timed, experiment.bundle.goal)
    variant, reason = choose(gains, experiment.bundle)
    proven = parity.variants[variant]
    content = _proven_bytes(models[variant], proven, timed, variant)
    contents = BundleContents(
        name=experiment.name,
        variant=variant,
        model=content,
        labels=trained.labels,
        golden_input=np.array(
            ready.open_split(data, "test").inputs[: experiment.bundle.golden_rows]
        ),
        golden_max_abs_diff=_golden_limit(proven),
        metrics=_metrics(trained, proven),
        parity=gates_of(proven),
        source=_source(experiment, trained, content),
        reference=_reference(models[variant], data),
    )
    manifest = write_bundle(folder, contents)
    report = BundleReport(
        experiment=experiment.name,
        variant=variant,
        reason=reason,
        goal=experiment.bundle.goal,
        gains=gains,
        bytes=sum(path.stat().st_size for path in folder.iterdir()),
        digest=manifest.digest,
    )
    write(report, files)
    with tracking.run_of_weights(experiment.name, trained.weights_sha256, track=track) as tracker:
        tracker.log_tags({"ferry.bundle": manifest.digest, "ferry.bundle_variant": variant})
    return report


def choose(gains: Mapping[str, Gain], config: BundleConfig) -> tuple[str, str]:
    """The variant to ship, and why: the best by the goal, if it is enough better than fp32.

    `gains` has each variant that passed its gate. One counts as better only if the whole interval
    of its gain is, and the best of those must be `min_gain` times as good.
    """
    better = {
        name: gain
        for name, gain in gains.items()
        if name != "fp32" and gain.low > 1 and gain.times >= config.min_gain
    }
    if better:
        best = max(better, key=lambda name: better[name].times)
        return best, f"{_describe(better[best])} times as good as fp32 in {config.goal}"
    others = ", ".join(
        f"{name} {_describe(gain)}" for name, gain in gains.items() if name != "fp32"
    )
    message = f" ({others} times as good)" if others else ""
    return "fp32", f"no other variant is {config.min_gain:g} times better in {config.goal}{message}"


def _source(experiment: Experiment, trained: TrainReport, content: bytes) -> ModelOrigin:
    return ModelOrigin(
        dataset=experiment.dataset,
        weights_sha256=trained.weights_sha256,
        git_revision=trained.git_revision,
        ferry_version=open_session(content, threads=1).metadata["ferry.version"],
    )


def _reference(model: Path, data: Path) -> Reference:
    """Of the rows that the model was fitted to, and of its answers to rows that it was not."""
    return reference_of(
        model,
        ready.open_split(data, "train").inputs,
        held_out=ready.open_split(data, "validation").inputs,
        data=data.name,
    )


def _describe(gain: Gain) -> str:
    if gain.low == gain.high:
        return f"{gain.times:.2f}"
    return f"{gain.times:.2f} [{gain.low:.2f} to {gain.high:.2f}]"


def _gains(parity: ParityReport, timed: BenchmarkReport, goal: str) -> dict[str, Gain]:
    if not parity.variants["fp32"].passed:
        raise GateError(
            f"{parity.experiment} fp32 did not pass its gate: "
            f"{', '.join(parity.variants['fp32'].failures)}"
        )
    if timed.bench.partial:
        raise IntegrityError(
            f"{timed.experiment}: benchmark.json is of an interrupted run; "
            f"`ferry benchmark {timed.experiment}` measures it anew"
        )
    passed = [name for name, variant in parity.variants.items() if variant.passed]
    return gains_over_fp32(timed, passed, goal)


def _proven_bytes(path: Path, proven: VariantParity, timed: BenchmarkReport, variant: str) -> bytes:
    content = require(path, f"dvc repro quantize@{timed.experiment}").read_bytes()
    found = sha256_of_bytes(content)
    for stage, recorded in (
        ("parity", proven.sha256),
        ("benchmark", on_cpu(timed, variant)[0].sha256 or ""),
    ):
        if found != recorded:
            raise IntegrityError(
                f"{path} has sha256 {found[:12]}…, but {stage}.json is about {recorded[:12]}…; "
                f"`dvc repro {stage}@{timed.experiment}` measures it anew"
            )
    return content


def _metrics(trained: TrainReport, proven: VariantParity) -> dict[str, float]:
    """How good the shipped variant is; of a reconstruction, how good the weights are."""
    if proven.accuracy is None:
        return {trained.loss_name: trained.loss}
    return {"accuracy": proven.accuracy}


def _golden_limit(proven: VariantParity) -> float:
    """How far off a device may be: as far as the gate allows, else as far as was measured."""
    if proven.limits.max_abs_diff is not None:
        return proven.limits.max_abs_diff
    return max(proven.max_abs_diff, proven.max_probability_diff or 0.0)
