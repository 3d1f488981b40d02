"""Whether the benchmark can be trusted, beside its aims.

Run: python benchmarks/benching.py        (after `dvc repro export@digits-mlp export@digits-cnn`)
     python benchmarks/benching.py --publish docs/results

A model against itself must come out as no difference; ferry's own call must cost no more than the
bare one of ONNX Runtime; memory must not grow. On a machine with a GPU, also what CUDA graphs and
half precision bring there; without one, that is told.
"""

import argparse
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.config import layout
from pipeline.records.published import ScriptLine as Line
from pipeline.records.published import reached_here, write_published
from serving.console import table
from serving.measuring.bench import bench
from serving.measuring.pairing import PairedRatio, paired_ratio, verdict
from serving.measuring.report import BenchReport
from serving.measuring.rounds import BenchOptions
from serving.runtime.binding import bind
from serving.runtime.session import open_session, usable_providers

NUM_REPEATS = 40
GROWTH_CALLS = 100_000
MIB = 2**20
MLP, CNN, WIDE = (layout.model(name) for name in ("digits-mlp", "digits-cnn", "cifar10-fast"))


def main() -> None:
    """Print the table of aims."""
    publish = parser(__doc__).parse_args().publish
    show([*against_itself(CNN), *own_call(MLP), *memory(CNN), *gpu(WIDE)], publish)


def parser(message: str | None) -> argparse.ArgumentParser:
    """The arguments of a script whose figures can be published."""
    arguments = argparse.ArgumentParser(description=(message or "").splitlines()[0])
    arguments.add_argument(
        "--publish",
        metavar="DIR",
        type=Path,
        help="write the figures to DIR, and the tables of the pages beside it: docs/results",
    )
    return arguments


def show(lines: Sequence[Line], publish: Path | None = None, subject: str = "") -> None:
    """Print a table of aims, and publish what was measured of it where that is wanted.

    `subject` is what the script was asked about, of those that publish a file for each.
    """
    words = {True: "yes", False: "NO", None: "–"}
    rows = [(line.what, line.reached, line.aim, words[line.met]) for line in lines]
    print(table(("what", "reached", "aim", "met"), rows))
    if publish:
        reached = [line for line in lines if not line.reached.startswith("skipped")]
        found = reached_here(f"{Path(sys.argv[0]).name} {subject}".strip(), reached)
        print(*write_published(publish, scripts=[found]), sep="\n")


def against_itself(model: Path) -> Iterator[Line]:
    """Two processes of one model, again and again: each difference found is a wrong one."""
    ratios = []
    for seed in range(NUM_REPEATS):
        options = BenchOptions(threads=(1,), batch_sizes=(1,), seconds=1.0, seed=seed)
        report = bench(model, options, against=model)
        ratio = report.measured[-1].rows[0].speedup
        if ratio:
            ratios.append(ratio)
            message = f"{ratio.median:.4f} ({ratio.low:.4f} to {ratio.high:.4f})"
            print(f"A/A {seed + 1} of {NUM_REPEATS}: {message} {verdict(ratio)}", flush=True)
    same = sum(verdict(ratio) == "no difference" for ratio in ratios)
    within = sum(abs(ratio.median - 1) <= 0.02 for ratio in ratios)
    part = 100 * same / len(ratios)
    what = f"{model.parent.name}: A/A, said to be no difference"
    yield Line(what, f"{same} of {len(ratios)}", "95 %", part >= 95)
    worst = max(abs(ratio.median - 1) for ratio in ratios)
    reached = f"{within} of {len(ratios)}, worst {100 * worst:.1f} %"
    what = f"{model.parent.name}: A/A, medians within 2 %"
    yield Line(what, reached, "95 %", within >= 0.95 * len(ratios))


def own_call(model: Path) -> Iterator[Line]:
    """Ferry's call, plain and with bound memory, over the bare one: batch 1, in one process."""
    session = open_session(model, threads=1)
    (info,) = session.inputs
    row = np.zeros([axis if isinstance(axis, int) else 1 for axis in info.shape], info.dtype)
    feeds = {info.name: row}
    bound = bind(session, feeds)

    def with_binding() -> None:
        np.copyto(bound.inputs[info.name], row)
        bound.run()

    bare = functools.partial(session.raw.run, session.output_names, feeds)
    own = paired_ratio(functools.partial(session.run, feeds), bare, seconds=3, seed=1)
    quick = paired_ratio(with_binding, bare, seconds=3, seed=1)
    name = model.parent.name
    yield Line(f"{name}: ferry's call over session.run", describe(own), "1.0", own.median <= 1.0)
    yield Line(f"{name}: the same with bound memory", describe(quick), "0.75", quick.median <= 0.75)


def memory(model: Path) -> Iterator[Line]:
    """What many calls of mixed batch sizes leave behind."""
    options = BenchOptions(
        threads=(1,), batch_sizes=(1, 4, 16, 64), seconds=0.1, growth_calls=GROWTH_CALLS
    )
    growth = bench(model, options).measured[0].growth
    if growth:
        drift = growth.drift_bytes / MIB
        what = f"{model.parent.name}: memory drift over {growth.num_calls:,} calls, MiB"
        yield Line(what, f"{drift:.2f}", "below 5", drift < 5)


def gpu(model: Path) -> Iterator[Line]:
    """CUDA graphs at batch 1, and half precision with the channels last, on a wide network."""
    reason = usable_providers().get("cuda", "not part of this onnxruntime")
    half = layout.models(model.parent.name).get("fp16")
    if reason or not model.exists() or not half:
        message = reason or f"{model} and its fp16 are not there: `dvc repro quantize@cifar10-fast`"
        yield Line("on a GPU", f"skipped: {message}", "0.7, 2", None)
        return
    plain = on_cuda(model, 1, "binding=on")
    graph = on_cuda(model, 1, "binding=on", "cuda_graph=on")
    ratio = p50(graph) / p50(plain)
    yield Line("CUDA graph over plain, batch 1, latency", f"{ratio:.2f}", "0.7", ratio <= 0.7)
    full = on_cuda(model, 512, "binding=on")
    fast = on_cuda(half, 512, "binding=on", "nhwc=on")
    gain = p50(full) / p50(fast)
    yield Line("fp16 NHWC over fp32 NCHW, rows/s", f"{gain:.2f}", "at least 2", gain >= 2)


def on_cuda(model: Path, batch_size: int, *settings: str) -> BenchReport:
    """One row on a GPU."""
    options = BenchOptions(
        providers=("cuda",), batch_sizes=(batch_size,), settings=settings, seconds=3.0
    )
    return bench(model, options)


def p50(report: BenchReport) -> float:
    """Milliseconds of the one row."""
    return report.measured[0].rows[0].timing.p50_ms


def describe(ratio: PairedRatio) -> str:
    """A ratio with its interval."""
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


if __name__ == "__main__":
    main()
