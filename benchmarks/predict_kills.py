"""Whether `ferry predict` that is killed again and again writes every row once, and the same rows.

Run: python benchmarks/predict_kills.py --kills 200

A folder of small images and an array are answered once undisturbed, and then with SIGKILL at random
moments, each followed by the same command. Aim: 200 kills, every id exactly once, and the bytes of
the undisturbed run.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

MODEL, ROWS = Path("models/mnist-mlp/model.onnx"), Path("data/ready/mnist/test_inputs.npy")
COUNT = 6_000


def main() -> None:
    """Kill, go on and compare; exit status 1 when anything is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = images(folder)
        begin = time.monotonic()
        finish(source, folder / "whole.csv")
        seconds = time.monotonic() - begin
        wanted = (folder / "whole.csv").read_bytes()
        moments = random.Random(options.seed)  # noqa: S311 - no secret is drawn
        kills = runs = 0
        while kills < options.kills:
            output = folder / f"{runs}.csv"
            while kills < options.kills and killed(source, output, moments.uniform(0, seconds)):
                kills += 1
            finish(source, output)
            check(output, wanted)
            runs += 1
            print(f"{kills} kills, {runs} outputs, all as the undisturbed one", flush=True)


def images(folder: Path) -> Path:
    """Images, of which every thousandth is broken."""
    source = folder / "images"
    source.mkdir()
    rows = np.load(ROWS, mmap_mode="r")
    for index in range(COUNT):
        path = source / f"{index:05}.png"
        if index % 1000 == 7:
            path.write_bytes(b"")
        else:
            Image.fromarray(np.asarray(rows[index, ..., 0])).save(path)
    return source


def start(source: Path, output: Path) -> "subprocess.Popen[bytes]":
    """Start `ferry predict`."""
    command = [sys.executable, "-m", "serving", "predict", str(MODEL), str(source)]
    return subprocess.Popen(
        [*command, "-o", str(output), "--batch-size", "8"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(source: Path, output: Path) -> None:
    """Let it come to its end."""
    process = start(source, output)
    _, message = process.communicate()
    if process.returncode:
        raise SystemExit(message.decode())


def killed(source: Path, output: Path, seconds: float) -> bool:
    """Start it and kill it, and all its processes, after so long; False where it had ended."""
    process = start(source, output)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    return False


def check(output: Path, wanted: bytes) -> None:
    """The rows must be those of the undisturbed run, once each, and nothing else be left."""
    with output.open(encoding="utf-8", newline="") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    if len(ids) != len(set(ids)) or output.read_bytes() != wanted:
        raise SystemExit(f"{output} has {len(ids)} rows, {len(set(ids))} ids, or other answers")
    left = sorted(path.name for path in output.parent.glob(f"*{output.name}*"))
    if left != [output.name, f"{output.name}.errors.jsonl", f"{output.name}.manifest.jsonl"]:
        raise SystemExit(f"left behind: {', '.join(left)}")


if __name__ == "__main__":
    main()
