"""How much faster ferry's training loop is than a plain one of the same network.

Run: python benchmarks/trainer.py        (after `ferry preprocess` of mnist and cifar10)

The plain loop is the one of most tutorials: a data set that makes a normalised float tensor of each
row, a DataLoader, planes in NCHW order, Adam. Both see the same rows, in batches of the same size,
without augmentation. Each has a process of its own, as a user would run it, and they are timed in
turn, so that what else the machine does meets both. Aims, on two cores: mnist-cnn 1.6 times as
fast, cifar10-resnet8 1.5 times. Beside them, the peak memory of a short training on all of
CIFAR-10: aim 1.5 GiB.
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from subprocess import PIPE

import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.config import layout, params
from pipeline.config.experiment import Experiment
from pipeline.models.parts.graph import Graph, build_graph
from pipeline.records import ready
from pipeline.records.published import ScriptLine as Line
from pipeline.records.ready import DatasetManifest, Split
from pipeline.training.batches import DeviceRows
from pipeline.training.distributed import Team
from pipeline.training.loop import TrainingLoop
from pipeline.training.setup import keep_freed_memory
from serving.runtime.cores import allowed_cores

AIMS = {"mnist-cnn": 1.6, "cifar10-resnet8": 1.5}
MEMORY = "cifar10-resnet8"
PAIRS = 7
ROWS = 6144
CPU = torch.device("cpu")


class Plain(Dataset[tuple[torch.Tensor, int]]):
    """A split as most tutorials hold it: one normalised row at a time."""

    def __init__(self, split: Split, graph: Graph) -> None:
        self.split = split
        self.mean, self.scale = graph.mean, graph.scale

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        planes = torch.from_numpy(self.split.inputs[index]).permute(2, 0, 1).float()
        return (planes - self.mean) * self.scale, int(self.split.labels[index])


def plain(experiment: Experiment, manifest: DatasetManifest, rows: Split) -> Iterator[float]:
    """Seconds of each pass of the plain loop."""
    graph = build_graph(experiment, manifest).train()
    batch = experiment.train.batch_size
    loader = DataLoader(Plain(rows, graph), batch, shuffle=True, drop_last=True)
    optimizer = torch.optim.Adam(graph.parameters(), 1e-3)
    while True:
        start = time.perf_counter()
        for planes, labels in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(graph.network(planes), labels)
            loss.backward()
            optimizer.step()
        yield time.perf_counter() - start


def ferry(experiment: Experiment, manifest: DatasetManifest, rows: Split) -> Iterator[float]:
    """Seconds of each epoch of ferry's loop, set up as `ferry train` does."""
    keep_freed_memory()
    graph = build_graph(experiment, manifest)
    few = part(rows, 100)
    loop = TrainingLoop(
        graph,
        experiment,
        DeviceRows(graph, rows, CPU),
        DeviceRows(graph, few, CPU),
        Team(device=CPU),
    )
    while True:
        yield loop.run_epoch().seconds


LOOPS = {"plain": plain, "ferry": ferry}


def serve(loop: str, name: str) -> None:
    """The process of one loop: for each line that comes in, a pass, and its seconds go out."""
    experiment = plainly(params.load().experiment(name))
    data = layout.ready(experiment.dataset)
    rows = part(ready.open_split(data, "train"), ROWS)
    passes = LOOPS[loop](experiment, ready.open_manifest(data), rows)
    for _, seconds in zip(sys.stdin, passes, strict=False):
        print(seconds, flush=True)


def plainly(experiment: Experiment) -> Experiment:
    """The experiment with rows as they are, labels alone, and enough epochs for all pairs."""
    none = replace(experiment.train.augment, translate=0, rotate=0, scale=0, flip=False, cutout=0)
    train = replace(experiment.train, augment=none, sides=(), teacher=None)
    return replace(experiment, epochs=PAIRS + 1, train=train)


def part(split: Split, rows: int) -> Split:
    """The first rows, in memory."""
    return Split(split.inputs[:rows].copy(), split.labels[:rows].copy())


def ratios(name: str) -> list[float]:
    """Times of the plain loop over times of ferry's, pair by pair."""
    with started("plain", name) as theirs, started("ferry", name) as ours:
        seconds(theirs), seconds(ours)  # the first pass allocates
        return [seconds(theirs) / seconds(ours) for _ in range(PAIRS)]


def started(loop: str, name: str) -> subprocess.Popen[str]:
    """The process of one loop, which waits."""
    command = [sys.executable, __file__, loop, name]
    return subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, bufsize=1)


def seconds(process: subprocess.Popen[str]) -> float:
    """Let the process make a pass."""
    print(file=process.stdin)
    return float(next(iter(process.stdout or ())))


def peak_memory() -> int:
    """Bytes, of this process: an epoch on all rows of the data set."""
    keep_freed_memory()
    experiment = params.load().experiment(MEMORY)
    data = layout.ready(experiment.dataset)
    graph = build_graph(experiment, ready.open_manifest(data))
    rows = DeviceRows(graph, ready.open_split(data, "train"), CPU)
    validation = DeviceRows(graph, ready.open_split(data, "validation"), CPU)
    one = replace(experiment, epochs=1, train=replace(experiment.train, sides=()))
    TrainingLoop(graph, one, rows, validation, Team(device=CPU)).run_epoch()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Print the medians; or be one of the processes that are measured."""
    torch.set_num_threads(allowed_cores())
    match sys.argv[1:]:
        case ["memory"]:
            print(peak_memory())
        case ["plain" | "ferry" as loop, name]:
            serve(loop, name)
        case _:
            from benching import parser, show  # its imports are no part of what is measured

            publish = parser(__doc__).parse_args().publish
            show(list(reached()), publish)


def reached() -> Iterator[Line]:
    """Both loops beside each other, and the memory of an epoch."""
    for name, aim in AIMS.items():
        found = ratios(name)
        median = statistics.median(found)
        spread = f"{min(found):.2f} to {max(found):.2f}"
        what = f"{name}: times the plain loop"
        yield Line(what, f"{median:.2f} ({spread})", f"at least {aim}", median >= aim)
    command = [sys.executable, __file__, "memory"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peak = int(done.stdout) / 2**30
    what = f"peak memory of an epoch of {MEMORY}, GiB"
    yield Line(what, f"{peak:.2f}", "at most 1.5", peak <= 1.5)


if __name__ == "__main__":
    main()
