"""Whether `ferry predict` that is killed again and again writes every row once, and the same rows.

Run: python benchmarks/predict_kills.py --kills 200 --pairs 20

A folder of small images, a Parquet file and tar shards, of which one is damaged, are answered once
undisturbed, and then with SIGKILL at random moments, each followed by the same command; then two
such commands are started at once. Shards are of 1,000 rows, so that a kill finds some. Aim: 200
kills and 20 pairs, every id exactly once, also for whoever reads an output after a kill, and the
rows of the undisturbed run.
"""

import argparse
import csv
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

MODEL, ROWS = Path("models/mnist-mlp/model.onnx"), Path("data/ready/mnist/test_inputs.npy")
PROGRAM = """
from serving.batch import predict
from serving.cli import main
predict.SHARD_ROWS = 1000
main()
"""
COUNT = 6_000
SHARDS = 3
OUTPUTS = {"folder": ".csv", "table.parquet": "", "shards/*.tar": ".parquet"}
"""The output of each input; without a suffix it is a folder of shards."""


def main() -> None:
    """Kill, go on and compare; exit status 1 when anything is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, default=MODEL, help="Of images as those of mnist.")
    parser.add_argument("--rows", type=Path, default=ROWS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, np.load(options.rows, mmap_mode="r"))
        moments = random.Random(options.seed)  # noqa: S311 - no secret is drawn
        for source, suffix in OUTPUTS.items():
            trial = Trial(options.model, folder, source, suffix)
            trial.kill(-(-options.kills // len(OUTPUTS)), moments)
            trial.pair(-(-options.pairs // len(OUTPUTS)))


def write_inputs(folder: Path, rows: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> None:
    """Images of which every thousandth is broken: as files, in a table, and in shards."""
    (folder / "folder").mkdir()
    (folder / "shards").mkdir()
    images = []
    for index in range(COUNT):
        file = io.BytesIO()
        if index % 1000 != 7:
            Image.fromarray(np.asarray(rows[index, ..., 0])).save(file, "PNG")
        images.append(file.getvalue())
        (folder / "folder" / f"{index:05}.png").write_bytes(images[-1])
    pyarrow.parquet.write_table(pa.table({"image": images}), folder / "table.parquet")
    for number in range(SHARDS):
        path = folder / "shards" / f"{number}.tar"
        with tarfile.open(path, "w") as shard:
            for index in range(number, COUNT, SHARDS):
                member = tarfile.TarInfo(f"{index:05}.png")
                member.size = len(images[index])
                shard.addfile(member, io.BytesIO(images[index]))
        if number == 1:
            os.truncate(path, path.stat().st_size * 2 // 3)


class Trial:
    """An input that is answered again and again."""

    def __init__(self, model: Path, folder: Path, source: str, suffix: str) -> None:
        """Answer it once, undisturbed."""
        self._model, self._folder, self._source, self._suffix = model, folder, source, suffix
        self._runs = 0
        begin = time.monotonic()
        output = self._next()
        self._finish(output)
        self._seconds = time.monotonic() - begin
        self._wanted = rows_of(output)

    def kill(self, kills: int, moments: random.Random) -> None:
        """Kill runs at random moments and let them go on, until there were so many kills."""
        done = 0
        while done < kills:
            output = self._next()
            while done < kills and self._killed(output, moments.uniform(0, self._seconds)):
                done += 1
                refuse_twice(self._folder)
            self._finish(output)
            self._check(output)
        print(f"{self._source}: {kills} kills, {self._runs} outputs as undisturbed", flush=True)

    def pair(self, pairs: int) -> None:
        """Start two runs of one output at once: one writes it, and the other is told so."""
        for _ in range(pairs):
            output = self._next()
            both = [self._start(output) for _ in range(2)]
            said = [process.communicate()[1].decode() for process in both]
            refused = [text for text in said if "another ferry (pid" in text]
            if sorted(process.returncode for process in both) != [0, 1] or len(refused) != 1:
                raise SystemExit("\n".join(said))
            self._check(output)
        print(f"{self._source}: {pairs} pairs, one of each was refused", flush=True)

    def _next(self) -> Path:
        self._runs += 1
        name = self._source.partition(".")[0].replace("/*", "")
        return self._folder / f"out-{name}-{self._runs:04}{self._suffix}"

    def _start(self, output: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", PROGRAM, "predict", str(self._model)]
        return subprocess.Popen(
            [*command, str(self._folder / self._source), "-o", str(output), "--batch-size", "8"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def _finish(self, output: Path) -> None:
        process = self._start(output)
        _, message = process.communicate()
        if process.returncode:
            raise SystemExit(message.decode())

    def _killed(self, output: Path, seconds: float) -> bool:
        """Start a run and kill it, and all its processes, after so long; False if it had ended."""
        process = self._start(output)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return True
        return False

    def _check(self, output: Path) -> None:
        """The rows must be those of the undisturbed run, and nothing else be left."""
        refuse_twice(self._folder)
        if rows_of(output) != self._wanted:
            raise SystemExit(f"{output} has other rows than the undisturbed run")
        left = {path.name for path in self._folder.glob(f"*{output.name}*")}
        name = output.name
        if left - {name, f"{name}.errors.jsonl", f"{name}.manifest.jsonl"}:
            raise SystemExit(f"left behind: {', '.join(sorted(left))}")


def rows_of(output: Path) -> list[tuple[object, ...]]:
    """All rows of an output, and the lines of what could not be read."""
    if output.suffix == ".csv":
        with output.open(encoding="utf-8", newline="") as file:
            rows: list[tuple[object, ...]] = [tuple(row) for row in csv.reader(file)]
    else:
        rows = [tuple(row.values()) for row in pyarrow.parquet.read_table(output).to_pylist()]
    errors = output / "_errors.jsonl" if output.is_dir() else Path(f"{output}.errors.jsonl")
    return [*rows, *((line,) for line in errors.read_text(encoding="utf-8").splitlines())]


def refuse_twice(folder: Path) -> None:
    """Whoever reads an output, finished or not, must find no row in it twice."""
    for output in filter(Path.is_dir, folder.glob("out-*")):
        parts = [path for path in output.iterdir() if path.suffix in (".csv", ".parquet")]
        if output.suffix and parts:
            raise SystemExit(f"{output} shows rows that are in no output yet")
        ids = [one for part in parts for one in pyarrow.parquet.read_table(part)["id"].to_pylist()]
        if len(ids) != len(set(ids)):
            raise SystemExit(f"{output} shows {len(ids)} rows of {len(set(ids))} ids")


if __name__ == "__main__":
    main()
