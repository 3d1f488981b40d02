"""`ferry predict` killed again and again: every row once, and the rows of an undisturbed run.

A folder of images, a Parquet file and tar shards, of which one is damaged, are answered once
undisturbed, and then with SIGKILL at random moments, each followed by the same command; in turns
the whole group is killed, the parent that watches, or its child that does the work. Then two such
commands are started at once. Shards are of 1,000 rows, so that a kill finds some.
"""

import csv
import functools
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet
from cases import Case, Ended, Outcome, Task, ended_by
from tiny_classifier import classifier, images
from tiny_images import encoded

PROGRAM = """
from serving.runtime import guard
fork = guard.watch
def watch():
    fork()
    from serving.batch import predict
    predict.SHARD_ROWS = 1000
guard.watch = watch
from pipeline.cli import main
main()
"""
KILLS, PAIRS = 500, 20
PER_CASE, SHORT = 10, 3
COUNT = 6_000
SHARDS = 3
OUTPUTS = {"folder": ".csv", "table.parquet": "", "shards/*.tar": ".parquet"}
"""The output of each input; without a suffix it is a folder of shards."""
VICTIMS = ("group", "parent", "child")
GONE_SECONDS = 10.0
"""How long the child of a dead parent may be there."""


def cases(task: Task) -> Iterator[Case]:
    """So many kills of each input."""
    (task.scratch / "model.onnx").write_bytes(classifier())
    write_inputs(task.scratch)
    inputs = list(OUTPUTS.items())[: 1 if task.short else None]
    trials = [Trial(task, source, suffix) for source, suffix in inputs]
    kills = SHORT if task.short else PER_CASE
    for number in range(1 if task.short else -(-task.count(KILLS) // kills)):
        trial = trials[number % len(trials)]
        run = functools.partial(trial.killed, number, kills)
        yield Case(f"{trial.source} {number}, {kills} kills", run, seconds=900.0)
    for number in range(task.count(PAIRS)):
        trial = trials[number % len(trials)]
        run = functools.partial(trial.pair, number)
        yield Case(f"{trial.source} {number}, two at once", run, seconds=120.0)


def write_inputs(folder: Path) -> None:
    """Images of which every thousandth is broken: as files, in a table, and in shards."""
    (folder / "folder").mkdir()
    (folder / "shards").mkdir()
    pixels = images(COUNT)
    contents = [encoded(one, "PNG") if at % 1000 != 7 else b"" for at, one in enumerate(pixels)]
    for at, content in enumerate(contents):
        (folder / "folder" / f"{at:05}.png").write_bytes(content)
    pyarrow.parquet.write_table(pa.table({"image": contents}), folder / "table.parquet")
    for number in range(SHARDS):
        path = folder / "shards" / f"{number}.tar"
        with tarfile.open(path, "w") as shard:
            for at in range(number, COUNT, SHARDS):
                member = tarfile.TarInfo(f"{at:05}.png")
                member.size = len(contents[at])
                shard.addfile(member, io.BytesIO(contents[at]))
        if number == 1:
            os.truncate(path, path.stat().st_size * 2 // 3)


class Trial:
    """An input that is answered again and again."""

    def __init__(self, task: Task, source: str, suffix: str) -> None:
        """Answer it once, undisturbed."""
        self.source, self._task, self._suffix = source, task, suffix
        begin = time.monotonic()
        output = self._output("undisturbed")
        ended = self._finished(output)
        if ended.status:
            raise RuntimeError(ended.stderr)
        self._seconds = time.monotonic() - begin
        self._wanted = rows_of(output)

    def killed(self, number: int, kills: int) -> Outcome:
        """Kill runs at random moments and let them go on, until there were so many kills."""
        chance = random.Random(f"{self._task.seed} {number}")  # noqa: S311 - no secret is drawn
        output, done, faults = self._output(f"{number:03}"), 0, []
        while done < kills:
            if self._killed(output, chance.uniform(0, self._seconds), VICTIMS[done % 3]):
                done += 1
                faults += twice(self._task.scratch)
            elif output.exists():
                faults += self._wrong(output)
                output = self._output(f"{number:03}-{done}")
        ended = self._finished(output)
        judged = ended.judged()
        faults += self._wrong(output) if not ended.status else [ended.message]
        if not judged.held:
            return judged
        if faults:
            return ended.fault("lost", "; ".join(faults)) + Outcome(held=kills - 1)
        return Outcome(held=kills)

    def pair(self, number: int) -> Outcome:
        """Start two runs of one output at once: one writes it, and the other is told so.

        Or the other finds that it is done, where it was slow to begin.
        """
        output = self._output(f"pair-{number:03}")
        both = [self._start(output) for _ in range(2)]
        first, second = (ended_by(process, self._task.scratch) for process in both)
        refused = [one for one in (first, second) if "another ferry (pid" in one.stderr]
        if sorted([first.status or 0, second.status or 0]) != [0, len(refused)]:
            return first.fault("lost", f"{first.message}; {second.message}")
        faults = self._wrong(output)
        return first.fault("lost", "; ".join(faults)) if faults else second.judged()

    def _output(self, name: str) -> Path:
        source = self.source.partition(".")[0].replace("/*", "")
        return self._task.scratch / f"out-{source}-{name}{self._suffix}"

    def _start(self, output: Path) -> "subprocess.Popen[bytes]":
        words = ("predict", "model.onnx", self.source, "-o", output.name, "--batch-size", "8")
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words],
            cwd=self._task.scratch,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )

    def _finished(self, output: Path) -> Ended:
        return ended_by(self._start(output), self._task.scratch, seconds=120.0)

    def _killed(self, output: Path, seconds: float, victim: str) -> bool:
        """Start a run and kill it after so long, and wait until all is gone; False if it ended."""
        process = self._start(output)
        time.sleep(seconds)
        if process.poll() is not None:
            process.communicate()
            return False
        below = psutil.Process(process.pid).children(recursive=True)
        if victim == "child" and below:
            below[0].kill()
        elif victim == "parent":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        _, left = psutil.wait_procs(below, GONE_SECONDS)
        if any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in left):
            raise RuntimeError(f"{left} outlive what watched them")
        return True

    def _wrong(self, output: Path) -> list[str]:
        """What is not as in the undisturbed run, or is left over."""
        found = twice(self._task.scratch)
        if rows_of(output) != self._wanted:
            found.append(f"{output.name} has other rows than the undisturbed run")
        name = output.name
        left = {path.name for path in output.parent.glob(f"*{name}*")}
        if left - {name, f"{name}.errors.jsonl", f"{name}.manifest.jsonl"}:
            found.append(f"left behind: {', '.join(sorted(left))}")
        return found


def rows_of(output: Path) -> list[tuple[object, ...]]:
    """All rows of an output, and the lines of what could not be read."""
    if output.suffix == ".csv":
        with output.open(encoding="utf-8", newline="") as file:
            rows: list[tuple[object, ...]] = [tuple(row) for row in csv.reader(file)]
    else:
        rows = [tuple(row.values()) for row in pyarrow.parquet.read_table(output).to_pylist()]
    errors = output / "_errors.jsonl" if output.is_dir() else Path(f"{output}.errors.jsonl")
    return [*rows, *((line,) for line in errors.read_text(encoding="utf-8").splitlines())]


def twice(folder: Path) -> list[str]:
    """What is wrong for whoever reads an output, finished or not: he must find no row twice."""
    found = []
    for output in filter(Path.is_dir, folder.glob("out-*")):
        parts = [path for path in output.iterdir() if path.suffix in (".csv", ".parquet")]
        if output.suffix and parts:
            found.append(f"{output.name} shows rows that are in no output yet")
        ids = [one for part in parts for one in pyarrow.parquet.read_table(part)["id"].to_pylist()]
        if len(ids) != len(set(ids)):
            found.append(f"{output.name} shows {len(ids)} rows of {len(set(ids))} ids")
    return found
