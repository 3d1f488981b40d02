"""Bits that rot, in DVC's cache and in what the stages and a device read; `ferry bundle` killed.

Each rotted object must be found, and be whole again after the commands that are advised. Each bit
that is flipped must be told by whoever reads the file. After each kill a whole bundle has the name,
or the error says which command gives it one; and nothing is left for ever.
"""

import functools
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cases import HELD, Case, Outcome, Task, ferry
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from kinds.graphs import COMMANDS, prepared
from project import Project, generous
from tiny_classifier import contents

from pipeline.config import layout
from pipeline.config.experiment import Experiment
from pipeline.config.params import load
from serving.bundles import writing
from serving.bundles.bundle import open_bundle
from serving.bundles.integrity import RunnerError, check
from serving.bundles.signing import sign
from serving.bundles.verify import Trust, verify
from serving.bundles.writing import copy_bundle, write_bundle
from serving.errors import FerryError, IntegrityError, MissingInputError

ROOT = Path(__file__).resolve().parents[3]
FORK, SPAWN = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
PER_CACHE = 25
FLIPS, PER_CASE = 2000, 100
PROGRAMS = 42
KILLS = 200
NAME, DATA = "digits-cnn", "digits"
CACHE = Path(".dvc/cache/files/md5")
STAGES = """
stages:
  numbers: {cmd: seq 1 500 > numbers.txt, outs: [numbers.txt]}
  copied: {cmd: cp numbers.txt copied.txt, deps: [numbers.txt], outs: [copied.txt]}
  folder:
    cmd: mkdir folder && for n in $(seq 40); do seq $n 99 > folder/$n.txt; done
    outs: [folder]
"""
Refused = Callable[[Path], bool]


def cases(task: Task) -> Iterator[Case]:
    """The cache first, then flips, then kills; in short a few flips and kills of a bundle."""
    if not task.short:
        made = made_by_dvc(task.scratch)
        for number, kind in enumerate(("copy", "checked out", "hardlink", "symlink")):
            run = functools.partial(rotted_cache, made, kind, PER_CACHE, task.seed + number)
            yield Case(f"cache, {kind}: {PER_CACHE} objects", run, seconds=300.0)
        yield from flips_of_stages(task)
        good = prepared(task)
        yield Case("ferry bundle", functools.partial(killed_program, good, 50, task.seed), 1200.0)
    yield from flips_of_a_bundle(task)
    for exchanges in (True, False):
        word = "one step" if exchanges else "two steps"
        for number in range(1 if task.short else 10):
            kills = 1 if task.short else KILLS // 20
            run = functools.partial(killed, task, number, kills, exchanges=exchanges)
            yield Case(f"bundle in {word} {number}: {kills} kills", run, seconds=600.0)


# DVC's cache


def made_by_dvc(folder: Path) -> Path:
    """A project of DVC's that has run."""
    project = folder / "dvc"
    project.mkdir()
    (project / "dvc.yaml").write_text(STAGES)
    for words in (("init", "--no-scm", "--quiet"), ("repro", "--quiet")):
        dvc(project, *words)
    return project


def dvc(folder: Path, *words: str) -> None:
    """Run DVC in a folder."""
    shell(folder, " ".join(("dvc", *words)))


def shell(folder: Path, commands: str) -> None:
    """Run commands as a person would who pastes them; each must succeed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    command, nowhere = ["bash", "-ec", commands], subprocess.DEVNULL
    subprocess.run(command, cwd=folder, env=environment, stdout=nowhere, check=True)


def rotted_cache(made: Path, kind: str, count: int, seed: int) -> Outcome:
    """Let some objects rot; they and no others must be found, and the advice must mend all."""
    folder = made.with_name(f"dvc {kind}")
    shutil.copytree(made, folder, symlinks=True)
    if kind in ("hardlink", "symlink"):
        dvc(folder, "config", "cache.type", kind)
        dvc(folder, "checkout", "--relink", "--quiet")
    wanted, chance = everything(folder), random.Random(seed)  # noqa: S311 - no secret
    objects = sorted((folder / CACHE).glob("??/*"))
    if kind == "checked out":  # of a list that has rotted DVC itself can make nothing
        objects = [path for path in objects if path.suffix != ".dir"]
    chosen = chance.sample(objects, count)
    for path in chosen:
        flip(path, chance)
    if kind == "checked out":
        shell(folder, "rm -r *.txt folder && dvc checkout --quiet")
    looked = ferry("doctor", "--cache", "--json", folder=folder, seconds=60.0)
    report = json.loads(looked.stdout)
    found = {folder / one["path"] for one in report["rotted"]}
    shell(folder, "\n".join(report["fix"]))
    again = ferry("doctor", "--cache", folder=folder, seconds=60.0)
    mended = again.status == 0 and everything(folder) == wanted
    shutil.rmtree(folder)
    if looked.status != 1 or found != set(chosen) or not mended:
        told = f"{kind}, seed {seed}: {len(found)} of {count} found, mended: {mended}"
        return looked.fault("lost", told)
    return Outcome(held=count, seen={"rotted objects mended": count})


def everything(folder: Path) -> dict[str, bytes]:
    """What the stages made."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in (*folder.glob("*.txt"), *folder.glob("folder/*"))
    }


def flip(path: Path, chance: random.Random) -> bytes:
    """Flip one bit, and leave the times as they are, as a disk does; returns what was there."""
    times, whole = path.stat(), path.read_bytes()
    content = bytearray(whole)
    content[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
    path.chmod(times.st_mode | 0o200)
    path.write_bytes(content)
    path.chmod(times.st_mode)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return whole


# Bits


def flipped(paths: list[Path], readers: Mapping[str, Refused], count: int, seed: int) -> Outcome:
    """Flip a bit in each of the files in turn; every reader must refuse it, in its words."""
    chance, total = random.Random(seed), Outcome()  # noqa: S311 - no secret
    for number in range(count):
        path = paths[number % len(paths)]
        whole = flip(path, chance)
        try:
            took = [name for name, refuses in readers.items() if not refuses(path)]
        finally:
            path.write_bytes(whole)
        told = f"{', '.join(took)} took {path.name}, flip {number} of seed {seed}"
        total += Outcome(lost=1, notes=(told,)) if took else HELD
    return total + Outcome(seen={f"flips: {', '.join(readers)}": count})


def flips_of_a_bundle(task: Task) -> Iterator[Case]:
    """A signed bundle, by `ferry verify`, by the check of its runner, and as whole programs."""
    place = task.scratch / "signed"
    folder, secret, public = place / "tiny", place / "key.pem", place / "pub.pem"
    write_bundle(folder, contents())
    key = ec.generate_private_key(ec.SECP256R1())
    form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    secret.write_bytes(key.private_bytes(*form))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    sign(folder, secret)

    def by_verify(_: Path) -> bool:
        return not verify(folder, threads=1, trust=Trust(public)).passed

    def by_the_runner(_: Path) -> bool:
        try:
            check(folder, public)
        except RunnerError:
            return True
        return False

    def by_program(_: Path) -> bool:
        runner = (sys.executable, "-B", folder / "runner.py")
        words = ("selftest", "--key", public)
        return ferry(*words, folder=place, program=runner).status not in (0, None)

    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    whole = (by_verify, by_the_runner, by_program)
    readers: dict[str, Refused] = {"ferry verify": by_verify, "the runner": by_the_runner}
    if any(refuses(folder) for refuses in whole):
        raise IntegrityError(f"{folder} does not pass untouched")
    count = task.count(FLIPS // 4)
    for number in range(-(-count // PER_CASE)):
        run = functools.partial(flipped, paths, readers, min(count, PER_CASE), task.seed + number)
        yield Case(f"bundle, flips {number}", run, seconds=600.0)
    programs = {"the runner as a program": by_program}
    run = functools.partial(flipped, paths, programs, task.count(PROGRAMS), task.seed)
    yield Case("bundle, programs", run, seconds=600.0)


def flips_of_stages(task: Task) -> Iterator[Case]:
    """The files of an experiment, by the stages that read them."""
    root = task.scratch / "project"
    maker = SPAWN.Process(target=make, args=(root,))  # with torch, which is no friend of forks
    maker.start()
    maker.join()
    models, ready = (layout.weights(NAME).parent, layout.ready(DATA))
    read = {
        layout.weights(NAME): ("evaluated", "exported_again", "proven", "timed"),
        layout.model(NAME): ("quantized", "proven", "timed"),
        layout.variant(NAME, "int8"): ("proven", "timed"),
        models / "model.onnx.sha256": ("quantized",),
        ready / "manifest.json": ("evaluated", "quantized", "proven"),
        ready / "test_inputs.npy": ("evaluated", "proven"),
        ready / "test_labels.npy": ("evaluated",),
        ready / "train_inputs.npy": ("quantized",),
        ready / "validation_inputs.npy": ("quantized",),
        **{
            path.relative_to(root): ("preprocessed",)
            for path in (root / layout.raw(DATA)).iterdir()
        },
    }
    pairs = [(path, stage) for path, stages in read.items() for stage in stages]
    for path, stage in pairs:
        run = functools.partial(of_stage, root, path, stage, -(-FLIPS // len(pairs)), task.seed)
        yield Case(f"{path}, {stage}", run, seconds=1800.0)


def tiny() -> Experiment:
    """A short training, whose variants are whatever they are."""
    experiment = load(ROOT / "params.yaml").experiment(NAME)
    return replace(experiment, epochs=1, quantize=generous(experiment.quantize))


def make(root: Path) -> None:
    """An experiment as the stages leave it."""
    from pipeline.stages.export import export
    from pipeline.stages.preprocess import preprocess
    from pipeline.stages.pull import pull
    from pipeline.stages.quantize import quantize
    from pipeline.stages.train import train

    one = Project(root, tiny())
    raw, files, given = root / layout.raw(DATA), one.files, (one.weights, one.details("train"))
    pull(raw, name=DATA, mirrors=())
    preprocess(raw, one.data, name=DATA, config=load(ROOT / "params.yaml").dataset(DATA))
    options: dict[str, Any] = {"experiment": one.experiment, "track": False}
    train(one.data, one.weights, files("train"), one.plots("train"), device="cpu", **options)
    export(*given, one.data, one.models["fp32"], files("export"), **options)
    plots = one.plots("quantize")
    quantize(one.models["fp32"], one.data, one.quantized, files("quantize"), plots, **options)


def of_stage(root: Path, path: Path, stage: str, count: int, seed: int) -> Outcome:
    """Flip bits of one file, and let one stage read it."""
    import test_rot

    from pipeline.stages.preprocess import preprocess

    one, out = Project(root, tiny()), root / "out"

    def refuses(flipped: Path) -> bool:
        try:
            if stage == "preprocessed":
                settings = load(ROOT / "params.yaml").dataset(DATA)
                preprocess(flipped.parent, out, name=DATA, config=settings)
            else:
                getattr(test_rot, stage)(one, out)
        except IntegrityError as error:
            told = str(error).split(" has sha256 ")[0]
            return told in (str(flipped), str(flipped).removesuffix(".sha256"))
        return False

    return flipped([root / path], {stage: refuses}, count, seed)


# Kills


def killed_program(good: Path, kills: int, seed: int) -> Outcome:
    """Kill `ferry bundle` at random moments, with all that it has started."""
    words = ("bundle", *COMMANDS["bundle"])
    whole = ferry(*words, folder=good, seconds=120.0)
    chance, total = random.Random(seed), Outcome()  # noqa: S311 - no secret
    for _ in range(kills):
        ended = ferry(*words, folder=good, seconds=chance.uniform(0.3, 1.1) * whole.seconds)
        total += judged(ended.fault, good / "made", ended.status is None)
    ended = ferry(*words, folder=good, seconds=120.0)
    left = [path.name for path in good.glob(".made*")]
    if left or ended.status:
        total += ended.fault("lost", f"left behind: {left}, status {ended.status}")
    return total


def killed(task: Task, number: int, kills: int, *, exchanges: bool) -> Outcome:
    """Kill a process that replaces a bundle again and again, and so mostly in the middle of it."""
    place = task.scratch / f"kills {exchanges} {number}"
    write_bundle(place / "source", contents())
    source, folder = open_bundle(place / "source"), place / "bundles" / "tiny"
    copy_bundle(source, folder)
    chance, total = random.Random(f"{task.seed} {number}"), Outcome()  # noqa: S311 - no secret

    def replace_for_ever() -> None:
        if not exchanges:  # as on a system that cannot, and a slow one
            vars(writing)["_exchanged"] = lambda *_: False
            Path.rename = slowly  # type: ignore[assignment,method-assign]
        while True:
            copy_bundle(source, folder)

    def fault(count: str, why: str) -> Outcome:
        return Outcome(**{count: 1}, notes=(f"{place.name}: {why}",))  # type: ignore[arg-type]

    for _ in range(kills):
        child = FORK.Process(target=replace_for_ever)
        child.start()
        time.sleep(chance.uniform(0.02, 0.2))
        child.kill()
        child.join()
        total += judged(fault, folder, killed=True)
    copy_bundle(source, folder)
    if left := [path.name for path in folder.parent.iterdir() if path != folder]:
        total += fault("lost", f"left behind: {left}")
    shutil.rmtree(place)
    return total


def slowly(path: Path, target: Path) -> Path:
    """Rename a file, and what is new only after a moment, in which there is none of the name."""
    if path.suffix == ".tmp":
        time.sleep(0.02)
    os.rename(path, target)  # noqa: PTH104 - it stands for that of Path
    return target


def judged(fault: Callable[[str, str], Outcome], folder: Path, killed: bool) -> Outcome:
    """Whether a whole bundle has the name, if need be after the command that the error tells."""
    told = 0
    try:
        try:
            open_bundle(folder)
        except MissingInputError as error:
            (command,) = re.findall("`(mv .*)`", str(error))
            shell(folder.parent, command)
            open_bundle(folder)
            told = 1
    except (FerryError, ValueError, subprocess.CalledProcessError) as error:
        return fault("lost", f"no whole bundle after a kill: {error}")
    left = any(folder.parent.glob(f".{folder.name}.*"))
    return Outcome(held=1, seen={"kills": killed, "told by `mv`": told, "with leftovers": left})
