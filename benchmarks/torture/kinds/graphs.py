"""Hostile graphs, through every command that runs a model which ferry did not make."""

import functools
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
from cases import HANG_SECONDS, Case, Outcome, Task, ferry
from hostile import graph, hostile
from tiny_classifier import forge

from serving.bundles.bundle import MODEL, FileInfo, read_manifest

CALL_SECONDS = 2
LIMITS = ("--call-timeout", str(CALL_SECONDS), "--max-memory", "3")
ROWS = ("--data", "rows.npy")
COMMANDS = {
    "predict": ("model.onnx", "rows.npy"),
    "verify": ("bundle",),
    "lint": ("model.onnx", *ROWS),
    "bench": ("model.onnx", *ROWS, "--seconds", "0.05", "--rounds", "1", "--batch-size", "1"),
    "parity": ("good.onnx", "model.onnx", *ROWS, "--no-track"),
    "bundle": ("model.onnx", *ROWS, "--parity", "proof.json", "--output", "made", "--no-track"),
    "quantize": ("model.onnx", *ROWS, "--output", "small", "--no-track"),
}
"""The commands, the quick ones first, with their arguments."""
SHORT = "int64 minimum by -1"


def cases(task: Task) -> Iterator[Case]:
    """All graphs through one command after the other."""
    good = prepared(task)
    graphs = [one for one in hostile() if not task.short or one[0] == SHORT]
    for command in list(COMMANDS)[: 1 if task.short else None]:
        most = seconds_of(command, good, task)
        for name, content in graphs:
            run = functools.partial(tried, task.scratch, good, command, content, most)
            yield Case(f"{command}, {name}", run, seconds=300.0)


def seconds_of(command: str, good: Path, task: Task) -> float:
    """How long a command may take, by how long it takes with a good model."""
    if task.short:
        return 6 * HANG_SECONDS
    ended = ferry(command, *COMMANDS[command], folder=good, seconds=120.0)
    return 3 * ended.seconds + 2 * CALL_SECONDS + HANG_SECONDS


def prepared(task: Task) -> Path:
    """A folder with rows, a good model and, but for predict alone, its proof and its bundle."""
    good = task.scratch / "good"
    good.mkdir()
    content, rows = graph("y = Relu(x)"), np.random.default_rng(1).random((80, 4), np.float32) - 0.5
    np.save(good / "rows.npy", rows)
    for name in ("good.onnx", "model.onnx"):
        (good / name).write_bytes(content)
    for words in (
        ()
        if task.short
        else (
            ("parity", *COMMANDS["parity"], "--output", "proof.json"),
            ("bundle", "model.onnx", *ROWS, "--parity", "proof.json", "--output", "bundle"),
        )
    ):
        ended = ferry(*words, folder=good, seconds=120.0)
        if ended.status:
            raise RuntimeError(ended.stderr)
    return good


def tried(scratch: Path, good: Path, command: str, content: bytes, seconds: float) -> Outcome:
    """Run one command on one graph, in a folder of its own, for so long at most."""
    folder = placed(good, scratch / "tried", content)
    return ferry(command, *COMMANDS[command], *LIMITS, folder=folder, seconds=seconds).judged()


def placed(good: Path, folder: Path, content: bytes) -> Path:
    """A copy of the good folder with another model, which proof and bundle say is the one."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    (folder / "model.onnx").write_bytes(content)
    if not (good / "bundle").exists():
        return folder
    proof = (folder / "proof.json").read_text()
    was, now = (sha256(one).hexdigest() for one in ((good / "model.onnx").read_bytes(), content))
    (folder / "proof.json").write_text(proof.replace(was, now))
    (folder / "bundle" / MODEL).write_bytes(content)
    files = dict(read_manifest(folder / "bundle").files)
    files[MODEL] = FileInfo(size=len(content), sha256=now)
    forge(folder / "bundle", files=files)
    return folder
