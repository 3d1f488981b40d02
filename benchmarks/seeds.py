"""How good the small models are: mean and range of the test accuracy over three seeds.

Run: python benchmarks/seeds.py mnist-tiny          (after `dvc repro parity@mnist-tiny`)
     python benchmarks/seeds.py mnist-tiny --publish docs/results

The project's own training is the first seed. The others are trained, exported, quantized and proven
in folders of their own, `models/E/seeds/SEED`, with the settings of the first and the same answers
of the teacher; a run that was killed goes on, and a training that is done is not done again. No
setting is chosen by what is found here. int8 in C answers all test rows on this processor.
"""

import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from benching import Line, parser, show
from microcontroller import by_name, c_toolchain

from pipeline.config import layout, params
from pipeline.config.experiment import Experiment
from pipeline.config.yamlfile import dump_value
from pipeline.proof.rows import rows_of_split
from pipeline.records import ReportFiles, read, ready
from pipeline.records.parity import ParityReport
from pipeline.records.train import TrainReport
from pipeline.stages.export import export
from pipeline.stages.parity import parity
from pipeline.stages.quantize import quantize
from pipeline.stages.train import train
from pipeline.targets.c99 import emit
from serving.files import dump_json, read_json, read_record, write_json
from serving.runtime.session import open_session

SEEDS = (1, 2, 3)
AIMS: dict[tuple[str, str], float] = {
    ("cifar10-resnet8", "fp32"): 0.870,
    ("cifar10-resnet8", "int8"): 0.868,
    ("mnist-tiny", "fp32"): 0.9945,
    ("mnist-tiny", "int8 in C"): 0.994,
    ("cifar10-cnn", "fp32"): 0.77,
}
MINUTES = {"cifar10-resnet8": 60, "mnist-tiny": 10}
IN_C = ("mnist-tiny",)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedResult:
    """What the training of one seed reached, on all test rows."""

    experiment: str
    """All its settings, as JSON: those of quantization decide as well."""
    weights_sha256: str
    seconds: float
    """Of the training's steps."""
    accuracy: Mapping[str, float]
    """0 to 1, of "fp32", "int8" and "int8 in C"."""


def main() -> None:
    """Print the table of aims."""
    arguments = parser(__doc__)
    arguments.add_argument("experiment")
    given = arguments.parse_args()
    experiment = params.load().experiment(given.experiment)
    results = [result_of(experiment, seed) for seed in SEEDS]
    show(list(lines(experiment.name, results)), given.publish, subject=experiment.name)


def lines(name: str, results: Sequence[SeedResult]) -> Iterator[Line]:
    """Mean and range of each variant that the first seed has, and the minutes of one training."""
    seeds = f"{name}: {len(results)} seeds"
    for variant in results[0].accuracy:
        found = [one.accuracy[variant] for one in results if variant in one.accuracy]
        mean, aim = statistics.fmean(found), AIMS.get((name, variant))
        reached = f"{mean:.2%} ({min(found):.2%} to {max(found):.2%})"
        if len(found) < len(results):  # what lost more than its budget is not made
            reached, aim = f"{reached}, made of {len(found)}", None
        wanted = f"at least {aim:.2%}" if aim else ""
        yield Line(f"{seeds}, {variant}", reached, wanted, mean >= aim if aim else None)
    # The others may have been trained beside each other.
    minutes, most = results[0].seconds / 60, MINUTES.get(name)
    wanted = f"at most {most}" if most else ""
    met = minutes <= most if most else None
    yield Line(f"{name}: minutes of the first seed's training", f"{minutes:.1f}", wanted, met)


def result_of(experiment: Experiment, seed: int) -> SeedResult:
    """Train, export, quantize and prove with one seed, or read what that gave before."""
    name, own = experiment.name, experiment.train.seed
    if seed == own:
        return measured(experiment, layout.weights(name).parent, None)
    changed = replace(experiment, train=replace(experiment.train, seed=seed))
    folder = layout.weights(name).parent / "seeds" / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / "result.json"
    if known.exists():
        found = read_record(SeedResult, read_json(known), str(known))
        if found.experiment == dump_json(changed):
            return found
    result = measured(changed, folder, layout.taught(name).parent)
    write_json(known, result)
    return result


def measured(experiment: Experiment, folder: Path, taught: Path | None) -> SeedResult:
    """Run the stages into `folder`; `taught` is None for the project's own, which have run."""
    name, data = experiment.name, layout.ready(experiment.dataset)
    weights, model = folder / layout.weights(name).name, folder / layout.model(name).name
    variants = {"fp32": model, "int8": folder / "quantized" / "model.int8.onnx"}
    if taught:
        link = folder / taught.name
        link.unlink(missing_ok=True)
        link.symlink_to(taught.absolute())
        report = trained(experiment, folder)
        export(
            *(weights, folder / "train.json", data, model, files(folder, "export")),
            experiment=experiment,
            track=False,
        )
        quantize(
            *(model, data, folder / "quantized", files(folder, "quantize"), folder / "plots"),
            experiment=experiment,
            track=False,
        )
        made = {key: path for key, path in variants.items() if path.exists()}
        proven = parity(
            weights, made, data, files(folder, "parity"), experiment=experiment, track=False
        )
    else:
        report = read(TrainReport, layout.details(name, "train"), f"ferry train {name}")
        proven = read(ParityReport, layout.details(name, "parity"), f"ferry parity {name}")
    accuracy = {
        key: proven.variants[key].accuracy or 0.0 for key in variants if key in proven.variants
    }
    if name in IN_C and "int8" in accuracy:
        accuracy["int8 in C"] = accuracy_in_c(variants["int8"], data)
    return SeedResult(
        experiment=dump_json(experiment),
        weights_sha256=report.weights_sha256,
        seconds=report.seconds,
        accuracy=accuracy,
    )


def trained(experiment: Experiment, folder: Path) -> TrainReport:
    """Train into `folder`, if that is not done with these settings."""
    written = files(folder, "train")
    if written.details.exists():
        known = read(TrainReport, written.details, "seeds.py")
        settings = params.training_settings(experiment)
        if known.settings == {key: dump_value(value) for key, value in settings.items()}:
            return known
    return train(
        layout.ready(experiment.dataset),
        folder / layout.weights(experiment.name).name,
        written,
        folder / "plots",
        experiment=experiment,
        track=False,
    )


def files(folder: Path, stage: str) -> ReportFiles:
    """Both files of a stage's report."""
    return ReportFiles(details=folder / f"{stage}.json", metrics=folder / f"{stage}.metrics.json")


def accuracy_in_c(model: Path, data: Path) -> float:
    """The part of the test rows that the C program of a model answers rightly."""
    if lacking := c_toolchain.missing("host"):
        sys.exit(f"{lacking} is not installed")
    content = model.read_bytes()
    info = open_session(content, threads=1).inputs[0]
    split = ready.open_split(data, "test")
    rows = np.array(rows_of_split(data, "test", info).slice(0, len(split.labels))[info.name])
    program = emit(onnx.load_model_from_string(content), model.parent.parent.name)
    with tempfile.TemporaryDirectory() as folder:
        answers = c_toolchain.answers(program, {program.inputs[0].name: rows}, Path(folder))
    logits = by_name(content, answers)["logits"]
    return float((logits.argmax(axis=1) == split.labels).mean())


if __name__ == "__main__":
    main()
