"""How a model answers in other places, row by row: other kernels, 64-bit Arm, a browser, C.

Run: python benchmarks/places.py mnist-tiny rt-lstm     (after `dvc repro bundle@mnist-tiny`, ...)
     python benchmarks/places.py bundles/mnist-tiny.c --only arm64
     python benchmarks/places.py mnist-tiny cifar10-resnet8 rt-lstm --publish docs/results

Of an experiment a bundle is made of fp32 and of int8, if it has one; a bundle is taken as it is.
What ONNX Runtime answers on this processor to 1,000 test rows is the measure, in batches as large
as the place takes: dynamic quantization measures over a batch. A row that is decided otherwise is a
real flip, unless its two best scores lie within the bundle's tie. int8 in C is held to the graph as
it is written, whose roundings it has. The page shows reports/places after `ferry report`.
"""

import argparse
import functools
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import arm64
import numpy as np
import onnx
from benching import parser

from pipeline.config import layout, params
from pipeline.config.experiment import Experiment
from pipeline.proof.rows import rows_of_split
from pipeline.proof.sameness import compare_answers
from pipeline.records.places import (
    ARM,
    CORTEX_M4,
    HOST_C,
    NO_VNNI,
    PLAIN_X86,
    WEB,
    X86,
    PlaceReport,
    Places,
    place_table,
    write_places,
)
from pipeline.records.published import write_published
from pipeline.stages.bundle import bundle
from serving.bundles.bundle import MODEL, Bundle, open_bundle
from serving.console import table
from serving.errors import FerryError, ModelError
from serving.files import sha256_of_bytes
from serving.machine.environment import describe
from serving.measuring.timing import take_samples, timing_of, warm_up
from serving.runtime.session import open_session
from serving.runtime.settings import Level
from serving.runtime.tensors import Array, as_fed

ROWS = 1000
ROWS_OF_M4 = 100
"""The emulated board takes a second for a row of a ResNet."""
RUNNER_BATCH = 32
"""Rows that the runner gives to the model at once."""
SECONDS = 1.0
"""Of a measurement of latency."""
SECONDS_EMULATED = 0.2
"""It shows that the runner's bench runs there: its figures say nothing."""
Answers = dict[str, Array]


class PlaceError(Exception):
    """Why a place cannot be had here, in one line for a person."""


class FailedError(FerryError):
    """A model does not run in a place, or its self-test fails there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A bundle, the rows that it is asked, and what it answers to them here."""

    subject: str
    """What the command line called it."""
    bundle: Bundle
    rows: Array
    """Of the test set: the first ones."""

    def answers(self, level: Level = "all", batch: int = RUNNER_BATCH) -> Answers:
        """What this processor answers, with the kernels of an optimization level."""
        manifest = self.bundle.manifest
        session = open_session(self.bundle.model, threads=1, optimize=level, shared=manifest.given)
        name = manifest.inputs[0].name
        parts = [
            session.run({name: as_fed(self.rows[start : start + batch])})
            for start in range(0, len(self.rows), batch)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def report(
        self, place: str, key: str, wanted: Answers, found: Answers, **facts: Any
    ) -> PlaceReport:
        """What was answered in a place, beside what is wanted; `key` is the place in `--only`."""
        manifest = self.bundle.manifest
        scores = manifest.classes.scores
        same = compare_answers(
            wanted,
            found,
            scores=scores.name if scores else None,
            tie=manifest.golden.tie,
        )
        usual = {"bytes": len(self.bundle.model), "p50_ms": None, "machine": describe().processor}
        return PlaceReport(
            variant=manifest.variant,
            place=place,
            sha256=sha256_of_bytes(self.bundle.model),
            rows=same.rows,
            equal=same.equal,
            near_ties=same.near_ties,
            flips=same.flips,
            largest_diff=same.largest_diff,
            diff_of=same.diff_of,
            command=f"python benchmarks/places.py {self.subject} --only {key}",
            revision=describe().git_revision,
            **usual | facts,
        )


def main() -> int:
    """Measure each bundle in each place, write the reports, and print the table."""
    arguments = _arguments()
    if (found_here := platform.machine()) != "x86_64":
        sys.exit(f"places: every place is held to what x86 answers, and this is {found_here}")
    found: dict[str, list[PlaceReport]] = {}
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for subject in arguments.subjects:
            for one in cases(subject, Path(folder)):
                name = one.bundle.manifest.name
                reports = list(measured(one, arguments.only, failed))
                found.setdefault(name, []).extend(reports)
                print(write_places(layout.places(name).parent, name, reports))
    places = [Places(experiment=name, reports=tuple(all_)) for name, all_ in found.items()]
    header, *lines = place_table(places)
    print(table([*header[:-1]], [line[:-1] for line in lines]))
    if arguments.publish:
        print(*write_published(arguments.publish, places=places), sep="\n")
    failed += [
        f"{one.place}: {one.flips} flips" for all_ in found.values() for one in all_ if one.flips
    ]
    return int(bool(failed))


def cases(subject: str, folder: Path) -> Iterator[Case]:
    """A bundle, or those of an experiment's fp32 and int8, made in `folder`."""
    if Path(subject).is_dir():
        yield case(subject, Path(subject))
        return
    experiment = params.load().experiment(subject)
    for variant in ("fp32", "int8"):
        if variant in layout.models(subject):
            yield case(subject, bundle_of(experiment, variant, folder / f"{subject}.{variant}"))


def bundle_of(experiment: Experiment, variant: str, folder: Path) -> Path:
    """Make the bundle of one variant as `ferry bundle` does, whatever would ship."""
    # As if nothing were ever worth it, or anything smaller.
    choosing = replace(experiment.bundle, min_gain=1e9 if variant == "fp32" else 1.0)
    name = experiment.name
    report = bundle(
        layout.models(name),
        layout.ready(experiment.dataset),
        layout.details(name, "").parent,
        folder,
        None,
        experiment=replace(experiment, bundle=choosing),
        target="arm64",
        track=False,
    )
    if report.variant != variant:
        raise PlaceError(f"{name}: the smallest of its variants is {report.variant}, not {variant}")
    return folder


def case(subject: str, folder: Path, count: int = ROWS) -> Case:
    """A bundle with the first test rows of the data set that it was trained on."""
    opened = open_bundle(folder)
    data = layout.ready(opened.manifest.source.dataset)
    info = opened.manifest.inputs[0]
    rows = np.array(rows_of_split(data, "test", info).slice(0, count)[info.name])
    return Case(subject=subject, bundle=opened, rows=rows)


def measured(one: Case, only: Sequence[str], failed: list[str]) -> Iterator[PlaceReport]:
    """The reports of all places, or of those that are named; what cannot be had is told."""
    for key, place in PLACES.items():
        if only and key not in only:
            continue
        where = f"{one.bundle.folder}: {key}"
        try:
            yield from place(one)
        except (PlaceError, arm64.ArmError) as error:
            print(f"{where}: skipped: {error}", file=sys.stderr)
        except FerryError as error:
            failed.append(f"{where}: {error}")
            print(f"{where}: FAILED: {error}", file=sys.stderr)


def x86(one: Case) -> Iterator[PlaceReport]:
    """This processor: with the kernels that are usual, and with the graph as it is written."""
    wanted = one.answers()
    for name, level in LEVELS.items():
        runtime, latency = f"onnxruntime {describe().onnxruntime}", p50_ms(one, level)
        found = one.answers(level)
        yield one.report(name, "x86", wanted, found, runtime=runtime, p50_ms=latency)


def p50_ms(one: Case, level: Level) -> float:
    """The median latency of one row on one thread."""
    session = open_session(one.bundle.model, threads=1, optimize=level)
    feeds = {session.inputs[0].name: as_fed(one.rows[:1])}
    call = functools.partial(session.run, feeds)
    warm = warm_up(call, SECONDS / 4)
    return timing_of([take_samples(call, SECONDS)], batch_size=1, warm=warm).p50_ms


def without_vnni(one: Case) -> Iterator[PlaceReport]:
    """An x86 processor whose sums of int8 overflow, if they can: the rows."""
    qemu = shutil.which("qemu-x86_64-static")
    if qemu is None:
        raise PlaceError("no qemu-x86_64-static here")
    run = functools.partial(runner, [qemu, "-cpu", "Haswell", sys.executable], one.bundle.folder)
    runtime, machine = f"onnxruntime {describe().onnxruntime}", f"Haswell, {version_of(qemu)}"
    found = runner_answers(run, one.rows)
    yield one.report(NO_VNNI, "vnni", one.answers(), found, runtime=runtime, machine=machine)


def on_arm(one: Case) -> Iterator[PlaceReport]:
    """64-bit Arm, emulated: the runner's self-test, the rows, and its bench."""
    python = arm64.command()
    run = functools.partial(runner, python, one.bundle.folder)
    run("selftest")
    found = runner_answers(run, one.rows)
    bench = json.loads(run("bench", "--seconds", str(SECONDS_EMULATED)))
    runtime = f"onnxruntime {bench['onnxruntime']}"
    machine = f"{arm64.PROCESSOR}, {version_of(python[0])}"
    yield one.report(ARM, "arm64", one.answers(), found, runtime=runtime, machine=machine)


def in_browser(one: Case) -> Iterator[PlaceReport]:
    """The page of a bundle for the web, in Chromium: its self-test, and the rows, one by one."""
    import web

    if web.find() is None:
        raise PlaceError("no Chromium here")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / MODEL
        model.write_bytes(one.bundle.model)
        variant = one.bundle.manifest.variant
        made = web.write_web_bundle(Path(folder) / "web", model, variant, one.rows)
        with (
            web.chromium() as browser,
            web.served(made.folder) as address,
            browser.open(address) as tab,
        ):
            page = web.ModelPage(tab)
            found = page.answers(one.rows)
            latency, verdict = page.latency_ms(), page.text("verdict")
            runtime = f"onnxruntime-web {tab.run(WEB_VERSION)}"
    if verdict != "Selftest passed":
        raise FailedError(verdict)
    wanted = one.answers(batch=1)
    yield one.report(WEB, "web", wanted, found, runtime=runtime, p50_ms=latency)


def in_c(one: Case) -> Iterator[PlaceReport]:
    """The C program of a model: on this processor, and on an emulated Cortex-M4."""
    from microcontroller import c_toolchain, emit

    try:
        program = emit(onnx.load_model_from_string(one.bundle.model), one.bundle.manifest.name)
    except ModelError as error:
        raise PlaceError(str(error)) from error
    level: Level = "none" if one.bundle.manifest.variant == "int8" else "all"
    for place, machine, count in (
        (HOST_C, "host", ROWS),
        (CORTEX_M4, "cortex-m4", ROWS_OF_M4),
    ):
        if lacking := c_toolchain.missing(machine):
            raise PlaceError(f"no {lacking} here")
        few = replace(one, rows=one.rows[:count])
        wanted = few.answers(level, batch=1)
        with tempfile.TemporaryDirectory() as folder:
            rows = {program.inputs[0].name: few.rows}
            found = c_toolchain.answers(program, rows, Path(folder), machine=machine)
            flash = c_toolchain.measure(program, Path(folder)).flash_bytes
        emulated = {"machine": f"mps2-an386, {version_of(c_toolchain.EMULATOR)}"}
        facts = {"runtime": "C99", "bytes": flash} | (emulated if place == CORTEX_M4 else {})
        yield few.report(place, "c", wanted, found, **facts)


def version_of(qemu: str) -> str:
    """For instance "qemu 7.2.22"."""
    done = subprocess.run([qemu, "--version"], capture_output=True, text=True)
    return f"qemu {done.stdout.split('version ')[1].split()[0]}"


def runner_answers(run: Callable[..., str], rows: Array) -> Answers:
    """What the runner of a bundle answers to rows, given to it as a user gives them."""
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder) / "rows.npy", Path(folder) / "answers.npz"
        if rows.dtype.kind in "OU":
            asked = asked.with_suffix(".txt")
            asked.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        else:
            np.save(asked, rows)
        run("predict", str(asked), "--output", str(told))
        with np.load(told) as archive:
            return dict(archive)


def runner(python: Sequence[str], folder: Path, *arguments: str) -> str:
    """Run the runner of a bundle with a Python, and return what it prints.

    Raises FailedError with what it said when it failed.
    """
    # Emulated threads wait by spinning, which takes the time of those that work.
    command = [*python, str(folder / "runner.py"), *arguments, "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=arm64.environment())
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["without a word"]
        raise FailedError(f"runner.py {arguments[0]} ended with {done.returncode}: {lines[-1]}")
    return done.stdout


def _arguments() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("subjects", nargs="+", metavar="EXPERIMENT|BUNDLE")
    arguments.add_argument("--only", action="append", choices=[*PLACES], help="these places alone")
    return arguments.parse_args()


LEVELS: dict[str, Level] = {X86: "all", PLAIN_X86: "none"}
WEB_VERSION = "import('/ort.wasm.bundle.min.mjs').then((ort) => ort.env.versions.web)"
PLACES: dict[str, Callable[[Case], Iterator[PlaceReport]]] = {
    "x86": x86,
    "vnni": without_vnni,
    "arm64": on_arm,
    "web": in_browser,
    "c": in_c,
}
"""What measures in a place, by what `--only` calls it."""

if __name__ == "__main__":
    sys.exit(main())
