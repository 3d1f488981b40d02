"""Whether a training that is killed again and again ends with the weights of an undisturbed one.

Run: python benchmarks/kills.py --kills 30

The experiment digits-mlp is trained in a folder of its own, once undisturbed, and then with SIGKILL
at random moments. After each kill every file must be whole or absent, and the training must go on.
Aim: 30 kills, the same sha256, and nothing left behind.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import safetensors.torch
import yaml

from pipeline.config import layout, params
from pipeline.records import record_of
from pipeline.stages.preprocess import preprocess
from pipeline.stages.pull import pull

REPOSITORY = Path(__file__).resolve().parents[1]
NAME = "digits-mlp"


def main() -> None:
    """Kill, resume and compare; exit status 1 when anything is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.epochs)
        wanted, begin, end = undisturbed(folder)
        moments = random.Random(options.seed)  # noqa: S311 - no secret is drawn
        done = ended = 0
        while done < options.kills:
            if killed(folder, moments.uniform(begin * 0.5, end)):
                done += 1
                check_files(folder)
            else:
                ended += 1
                check_result(folder, wanted)
        train(folder).wait()
        check_result(folder, wanted)
    print(f"{done} kills; {ended + 1} trainings ended, each with the weights {wanted[:12]}")


def prepare(folder: Path, epochs: int) -> None:
    """A project with the digits, and with an experiment of many short epochs."""
    text = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    section = text["experiments"][NAME]
    section["epochs"] = epochs
    section["train"] |= {"ema": 0.9, "early_stop": epochs - 1, "clip": 1.0}
    (folder / "params.yaml").write_text(yaml.safe_dump(text))
    raw = folder / layout.raw("digits")
    pull(raw, name="digits", mirrors=())
    config = params.load(folder / "params.yaml").dataset("digits")
    preprocess(raw, folder / layout.ready("digits"), name="digits", config=config)


def train(folder: Path) -> "subprocess.Popen[bytes]":
    """Start `ferry train`."""
    command = [sys.executable, "-m", "pipeline.cli", "train", NAME, "--no-track", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def undisturbed(folder: Path) -> tuple[str, float, float]:
    """The sha256 of the weights, and the seconds until the first checkpoint and until the end."""
    start, begin = time.monotonic(), 0.0
    process = train(folder)
    while process.poll() is None:
        time.sleep(0.01)
        if not begin and (folder / layout.checkpoint(NAME)).exists():
            begin = time.monotonic() - start
    end = time.monotonic() - start
    if process.returncode:
        raise SystemExit((folder / "log").read_text())
    sha256 = report(folder)["weights_sha256"]
    remove(folder)
    return str(sha256), begin, end


def killed(folder: Path, seconds: float) -> bool:
    """Start a training and kill it after so many seconds; False where it ended before."""
    process = train(folder)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def check_files(folder: Path) -> None:
    """Every file that is there must be whole."""
    for path in (folder / layout.weights(NAME), folder / layout.checkpoint(NAME)):
        if path.exists():
            safetensors.torch.load_file(path)
    if (folder / layout.details(NAME, "train")).exists():
        report(folder)


def check_result(folder: Path, wanted: str) -> None:
    """A training that ended has the weights that are wanted, and left nothing else."""
    found = report(folder)["weights_sha256"]
    if found != wanted:
        raise SystemExit(f"the weights are {found}, an undisturbed training has {wanted}")
    left = sorted(path.name for path in (folder / layout.weights(NAME)).parent.iterdir())
    if left != ["model.safetensors", "model.safetensors.sha256"]:
        raise SystemExit(f"left behind: {', '.join(left)}")
    remove(folder)


def report(folder: Path) -> dict[str, object]:
    """What the training measured."""
    content: dict[str, object] = json.loads((folder / layout.details(NAME, "train")).read_text())
    return content


def remove(folder: Path) -> None:
    """Remove what a training wrote, as DVC does before it runs one."""
    for path in (layout.weights(NAME), record_of(layout.weights(NAME))):
        (folder / path).unlink()
    files = layout.report_files(NAME, "train")
    for path in (files.details, files.metrics):
        (folder / path).unlink()


if __name__ == "__main__":
    main()
