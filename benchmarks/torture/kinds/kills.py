"""`ferry train` and `dvc repro` killed again and again: whole files, and the weights undisturbed.

The experiment digits-mlp is trained in a folder of its own, once undisturbed, and then with SIGKILL
at random moments. After each kill every file must be whole or absent, and the next run goes on. So
is `dvc repro`, from the data to the exported model, with all that it has started.
"""

import functools
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import onnx
import safetensors.torch
import yaml
from cases import Case, Ended, Outcome, Task, ended_by

from pipeline.config import layout, params
from pipeline.stages.preprocess import preprocess
from pipeline.stages.pull import pull

ROOT = Path(__file__).resolve().parents[3]
NAME = "digits-mlp"
SOURCES = ("pipeline", "serving", ".dvc", "dvc.yaml", "metrics", ".gitignore", ".dvcignore")
TRAIN_KILLS, REPRO_KILLS = 140, 60
PER_CASE = 10
EPOCHS = 120
MADE = (layout.weights(NAME), layout.model(NAME))


@dataclass(frozen=True, slots=True)
class Trial:
    """A command that is killed, in copies of a project."""

    command: tuple[str, ...]
    project: Path
    first: float
    """Seconds until the first file is there, about."""
    seconds: float
    """Those of the undisturbed run."""
    wanted: dict[Path, str]
    """The sha256 of what it makes."""

    def killed(self, task: Task, number: int, kills: int) -> Outcome:
        """Kill runs at random moments and let them go on, until there were so many kills."""
        chance = random.Random(f"{task.seed} {number}")  # noqa: S311 - no secret is drawn
        folder = task.scratch / f"{self.command[0]}-{number}"
        shutil.copytree(self.project, folder)
        done, faults = 0, []
        while done < kills:
            ended = run(self.command, folder, chance.uniform(self.first * 0.5, self.seconds))
            if ended.status is None:
                done += 1
                faults += halves(folder)
            else:
                faults += self.wrong(folder, ended)
                shutil.rmtree(folder)
                shutil.copytree(self.project, folder)
        faults += self.wrong(folder, run(self.command, folder, 600.0))
        shutil.rmtree(folder)
        if faults:
            return Outcome(held=kills - 1, lost=1, notes=tuple(faults))
        return Outcome(held=kills)

    def wrong(self, folder: Path, ended: Ended) -> list[str]:
        """What is not as the undisturbed run made it, or is left over."""
        judged = ended.judged()
        if not judged.held or ended.status:
            return [*judged.notes, f"status {ended.status}: {ended.message}"]
        found = [
            f"{name} is another" for name, sum_ in made(folder).items() if sum_ != self.wanted[name]
        ]
        found += [f"{name} is not there" for name in self.wanted.keys() - made(folder)]
        kept = {path.relative_to(folder).as_posix() for path in (folder / "models").rglob("*")}
        left = [name for name in kept if "/." in name or name.endswith((".tmp", ".parts", ".old"))]
        return [*found, *(f"left behind: {name}" for name in left)]


def cases(task: Task) -> Iterator[Case]:
    """Kills of a training, and then of `dvc repro`."""
    for what, kills, make in (("train", TRAIN_KILLS, training), ("dvc repro", REPRO_KILLS, repro)):
        per_case = 1 if task.short else PER_CASE
        if task.short and what != "train":
            return
        trial = make(task)
        for number in range(1 if task.short else -(-task.count(kills) // per_case)):
            work = functools.partial(trial.killed, task, number, per_case)
            yield Case(f"{what} {number}, {per_case} kills", work, seconds=3600.0)


def training(task: Task) -> Trial:
    """A training of many short epochs, whose data is there."""
    folder = project(task.scratch / "train", 40 if task.short else EPOCHS)
    raw = folder / layout.raw("digits")
    pull(raw, name="digits", mirrors=())
    config = params.load(folder / "params.yaml").dataset("digits")
    preprocess(raw, folder / layout.ready("digits"), name="digits", config=config)
    return undisturbed(("ferry", "train", NAME, "--no-track", "--device", "cpu"), folder)


def repro(task: Task) -> Trial:
    """All stages up to the exported model, in a repository."""
    folder = project(task.scratch / "repro", 20)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            hidden = shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local", "*.json")
            shutil.copytree(ROOT / name, folder / name, ignore=hidden)
        else:
            shutil.copy(ROOT / name, folder / name)
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "all")):
        author = ("-c", "user.name=torture", "-c", "user.email=torture@example.org")
        subprocess.run(["git", *author, *words], cwd=folder, check=True)
    return undisturbed(("dvc", "repro", f"export@{NAME}"), folder)


def project(folder: Path, epochs: int) -> Path:
    """The settings of one experiment."""
    folder.mkdir()
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    experiment = settings["experiments"][NAME]
    experiment["epochs"] = epochs
    experiment["train"] |= {"ema": 0.9, "early_stop": epochs - 1, "clip": 1.0}
    settings["experiments"], settings["short"] = {NAME: experiment}, [NAME]
    settings["datasets"] = {"digits": settings["datasets"]["digits"]}
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return folder


def undisturbed(command: tuple[str, ...], folder: Path) -> Trial:
    """What a command makes in a copy of the project when nobody kills it, and when."""
    copy = Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-undisturbed")))
    ended = run(command, copy, 600.0)
    if ended.status:
        raise RuntimeError(ended.stderr)
    return Trial(command, folder, ended.seconds / 3, ended.seconds, made(copy))


def run(command: tuple[str, ...], folder: Path, seconds: float) -> Ended:
    """Run a command for so long at most, and then kill it with all that it has started."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    here = str(folder if (folder / "pipeline").is_dir() else ROOT)
    more = {"PATH": path, "PYTHONPATH": here, "FERRY_TRACK": "false", "DVC_NO_ANALYTICS": "1"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    )
    return ended_by(process, folder, seconds=seconds)


def made(folder: Path) -> dict[Path, str]:
    """The sha256 of the files that are made, or of nothing."""
    found = {path: (folder / path) for path in MADE}
    contents = {path: one.read_bytes() if one.exists() else b"" for path, one in found.items()}
    return {path: sha256(content).hexdigest() for path, content in contents.items()}


def halves(folder: Path) -> list[str]:
    """The files that are there and are not whole."""
    found = []
    for path in (layout.weights(NAME), layout.checkpoint(NAME)):
        if (folder / path).exists():
            try:
                safetensors.torch.load_file(folder / path)
            except safetensors.SafetensorError as error:
                found.append(f"{path}: {error}")
    for path in (folder / "reports").rglob("*.json"):
        try:
            json.loads(path.read_text())
        except json.JSONDecodeError as error:
            found.append(f"{path.name}: {error}")
    model = folder / layout.model(NAME)
    if model.exists():
        onnx.checker.check_model(onnx.load(model))
    return found
