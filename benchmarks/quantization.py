"""What the search of `ferry quantize` finds, beside its aims.

Run: python benchmarks/quantization.py        (after `dvc repro export@cifar10-resnet8`, or without)

Speeds are medians of paired ratios on one thread, all in one run. cifar10-resnet8 is the trained
model where there is one; without it, and for cifar10-fast, seeded random weights stand in, whose
speed is the same and whose accuracy says nothing. A model where int8 is slower must be refused.
"""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import torch
from benching import Line, parser, show

from pipeline.config import layout, params
from pipeline.config.experiment import Experiment, MinSpeedup
from pipeline.exporting import onnxmodel
from pipeline.exporting.exporter import to_onnx
from pipeline.models.parts.graph import build_graph
from pipeline.proof.rows import Rows, rows_of_split
from pipeline.records import ready
from pipeline.records.quantize import QuantizeReport, Search, Try, as_table
from pipeline.stages.quantize import QuantizationJob, calibration_rows, run
from serving.runtime.session import open_session

CALIBRATION_ROWS = 256
JUDGED_ROWS = 512
"""Where random weights decide nothing."""
SECONDS = 2.0


def main() -> None:
    """Print the trace of each model and the table of aims."""
    publish = parser(__doc__).parse_args().publish
    logging.basicConfig(level=logging.WARNING)
    resnet = quantized("cifar10-resnet8", (1, 32, 128), JUDGED_ROWS)
    fast = quantized("cifar10-fast", (1, 32), 64)
    tiny = quantized("mnist-tiny", (1, 32), JUDGED_ROWS)
    lines = [*of_resnet(resnet), *of_fast(fast), *of_tiny(tiny)]
    for report in (resnet, fast, tiny):
        print(f"{report.experiment}, judged on {report.rows} rows of {report.judged_on}")
        print(as_table(report), "\n")
    show(lines, publish)


def quantized(name: str, batch_sizes: tuple[int, ...], rows: int) -> QuantizeReport:
    """Search int8 for an experiment: of the trained model where there is one."""
    experiment = params.load().experiment(name)
    data = layout.ready(experiment.dataset)
    path = layout.model(name)
    trained = path.exists()
    model = onnx.load(path) if trained else untrained(experiment)
    info = open_session(model.SerializeToString(), threads=1).inputs[0]
    judged = rows_of_split(data, "validation", info)
    if not trained:
        judged = Rows(name=judged.name, inputs=judged.slice(0, rows), labels=None)
    config = replace(
        experiment.quantize,
        goal="speed",
        accuracy_loss=0.3 if trained else 100.0,  # random weights may decide anything
        error_increase=5.0,
        min_speedup=MinSpeedup(fp16=1.0, int8=1.0),
        batch_sizes=batch_sizes,
        seconds=SECONDS,
        calibration_rows=CALIBRATION_ROWS,
        recipes=(),
        seed=1,
        skip={},
    )
    job = QuantizationJob(
        name=name if trained else f"{name} (random weights)",
        model=model,
        calibration=calibration_rows(data, info, config, name),
        judged=judged,
        variants=["int8"],
        config=config,
    )
    with tempfile.TemporaryDirectory() as folder:
        return run(job, Path(folder))


def untrained(experiment: Experiment) -> onnx.ModelProto:
    """The experiment's network as it is before training."""
    data = layout.ready(experiment.dataset)
    torch.manual_seed(1)
    graph = build_graph(experiment, ready.open_manifest(data)).eval()
    made = to_onnx(graph, ready.open_split(data, "test").inputs[:2], experiment.export.opset)
    onnxmodel.check(made, experiment.export.opset)
    return made


def best(search: Search) -> Try:
    """What was kept, or the fastest of what was not."""
    kept = [one for one in search.tries if search.kept(one)]
    return kept[0] if kept else max(search.tries, key=lambda one: one.speed)


def of_resnet(report: QuantizeReport) -> Iterator[Line]:
    """Speed at batch 32 and more, loss and size of int8 cifar10-resnet8."""
    one, name = best(report.searches["int8"]), report.experiment
    for size in ("32", "128"):
        ratio = one.speedup[size]
        reached = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        met = ratio.median >= 1.3
        yield Line(f"{name}: int8 images/s over fp32, batch {size}", reached, "at least 1.3", met)
    if one.quality and one.quality.loss is not None and "random" not in name:
        quality = one.quality
        reached = f"{quality.loss:.2f} ({quality.low:.2f} to {quality.high:.2f})"
        met = one.quality.loss <= 0.3
        yield Line(f"{name}: points lost, validation", reached, "at most 0.3", met)
    size_ratio = one.size_ratio or 1.0
    yield Line(f"{name}: size", f"{size_ratio:.3f}", "at most 0.35", size_ratio <= 0.35)


def of_fast(report: QuantizeReport) -> Iterator[Line]:
    """Speed of int8 of a wide CNN."""
    one = best(report.searches["int8"])
    for size, ratio in one.speedup.items():
        reached = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        what = f"{report.experiment}: int8 over fp32, batch {size}"
        yield Line(what, reached, "at least 2.5", ratio.median >= 2.5)


def of_tiny(report: QuantizeReport) -> Iterator[Line]:
    """That int8 is refused where it is slower."""
    search = report.searches["int8"]
    fastest = max(search.tries, key=lambda one: one.speed)
    slower = fastest.speed < 1
    reached = "refused" if search.chosen is None else f"kept {search.chosen}"
    what = f"{report.experiment}: int8, {fastest.speed:.2f} times as fast as fp32 at best"
    yield Line(what, reached, "refused if slower", slower == (search.chosen is None))


if __name__ == "__main__":
    main()
