"""How a model answers in other places, row by row: by other kernels, on 64-bit Arm.

Run: python benchmarks/places.py mnist-tiny rt-lstm     (after `dvc repro bundle@mnist-tiny`, ...)
     python benchmarks/places.py bundles/mnist-tiny.c --only arm64
     python benchmarks/places.py mnist-tiny cifar10-resnet8 rt-lstm --publish docs/results

Of an experiment a bundle is made of fp32 and of int8, if it has one; a bundle is taken as it is.
What ONNX Runtime answers on this processor to 1,000 test rows is the measure. A row that is decided
otherwise is a real flip, unless its two best scores lie within the bundle's tie. The page shows
reports/places after `ferry report`.
"""

import argparse
import functools
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import arm64
import numpy as np
from benching import parser

from pipeline.config import layout, params
from pipeline.config.experiment import Experiment
from pipeline.proof.rows import rows_of_split
from pipeline.proof.sameness import compare_answers
from pipeline.records.places import (
    ARM,
    PLAIN_X86,
    X86,
    PlaceReport,
    Places,
    place_table,
    write_places,
)
from pipeline.records.published import write_published
from pipeline.stages.bundle import bundle
from serving.bundles.bundle import Bundle, open_bundle
from serving.console import table
from serving.files import sha256_of_bytes
from serving.machine.environment import describe
from serving.measuring.timing import take_samples, timing_of, warm_up
from serving.runtime.session import open_session
from serving.runtime.settings import Level
from serving.runtime.tensors import Array, as_fed

ROWS = 1000
SECONDS = 1.0
"""Of a measurement of latency."""
SECONDS_EMULATED = 0.2
"""It shows that the runner's bench runs there: its figures say nothing."""
Answers = dict[str, Array]


class PlaceError(Exception):
    """Why nothing was measured in a place, in one line for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A bundle, the rows that it is asked, and what it answers to them here."""

    subject: str
    """What the command line called it."""
    bundle: Bundle
    rows: Array
    wanted: Answers

    def answers(self, level: Level) -> Answers:
        """What this processor answers with the kernels of an optimization level."""
        return _answers(self.bundle, self.rows, level)

    def report(self, place: str, key: str, found: Answers, **facts: Any) -> PlaceReport:
        """What was answered in a place, beside what is wanted; `key` is the place in `--only`."""
        manifest = self.bundle.manifest
        scores = manifest.classes.scores
        same = compare_answers(
            facts.pop("wanted", self.wanted),
            found,
            scores=scores.name if scores else None,
            tie=manifest.golden.tie,
        )
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
            bytes=facts.pop("bytes", len(self.bundle.model)),
            command=f"python benchmarks/places.py {self.subject} --only {key}",
            revision=describe().git_revision,
            **facts,
        )


def main() -> int:
    """Measure each bundle in each place, write the reports, and print the table."""
    arguments = _arguments()
    if (found_here := platform.machine()) != "x86_64":
        sys.exit(f"places: every place is held to what x86 answers, and this is {found_here}")
    found: dict[str, list[PlaceReport]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for subject in arguments.subjects:
            for one in cases(subject, Path(folder)):
                name = one.bundle.manifest.name
                found.setdefault(name, []).extend(measured(one, arguments.only))
    for name, reports in found.items():
        print(write_places(layout.places(name).parent, name, reports))
    places = [Places(experiment=name, reports=tuple(all_)) for name, all_ in found.items()]
    header, *lines = place_table(places)
    print(table([*header[:-1]], [line[:-1] for line in lines]))
    if arguments.publish:
        print(*write_published(arguments.publish, places=places), sep="\n")
    return int(any(report.flips for reports in found.values() for report in reports))


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
    return Case(subject=subject, bundle=opened, rows=rows, wanted=_answers(opened, rows, "all"))


def measured(one: Case, only: Sequence[str]) -> Iterator[PlaceReport]:
    """The reports of all places, or of those that are named; what cannot be had is told."""
    for key, place in PLACES.items():
        if only and key not in only:
            continue
        try:
            yield from place(one)
        except (PlaceError, arm64.ArmError) as error:
            print(f"{one.bundle.folder}: {key}: skipped: {error}", file=sys.stderr)


def x86(one: Case) -> Iterator[PlaceReport]:
    """This processor: with the kernels that are usual, and with the graph as it is written."""
    here = describe()
    for name, level in LEVELS.items():
        yield one.report(
            name,
            "x86",
            one.answers(level),
            runtime=f"onnxruntime {here.onnxruntime}",
            machine=here.processor,
            p50_ms=p50_ms(one, level),
        )


def p50_ms(one: Case, level: Level) -> float:
    """The median latency of one row on one thread."""
    session = open_session(one.bundle.model, threads=1, optimize=level)
    feeds = {session.inputs[0].name: as_fed(one.rows[:1])}
    call = functools.partial(session.run, feeds)
    warm = warm_up(call, SECONDS / 4)
    return timing_of([take_samples(call, SECONDS)], batch_size=1, warm=warm).p50_ms


def on_arm(one: Case) -> Iterator[PlaceReport]:
    """64-bit Arm, emulated: the runner's self-test, the rows, and its bench."""
    python = arm64.command()
    run = functools.partial(runner, python, one.bundle.folder)
    run("selftest")
    found = runner_answers(run, one.rows)
    bench = json.loads(run("bench", "--seconds", str(SECONDS_EMULATED)))
    version = subprocess.run([python[0], "--version"], capture_output=True, text=True).stdout
    yield one.report(
        ARM,
        "arm64",
        found,
        runtime=f"onnxruntime {bench['onnxruntime']}",
        machine=f"{arm64.PROCESSOR}, qemu {version.split()[2]}",
        p50_ms=None,
    )


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

    Raises PlaceError with what it said when it failed.
    """
    command = [*python, str(folder / "runner.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=arm64.environment())
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["without a word"]
        raise PlaceError(f"runner.py {arguments[0]} ended with {done.returncode}: {lines[-1]}")
    return done.stdout


def _answers(bundle: Bundle, rows: Array, level: Level) -> Answers:
    manifest = bundle.manifest
    session = open_session(bundle.model, threads=1, optimize=level, shared=manifest.given)
    return session.run({session.inputs[0].name: as_fed(rows)})


def _arguments() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("subjects", nargs="+", metavar="EXPERIMENT|BUNDLE")
    arguments.add_argument("--only", action="append", choices=[*PLACES], help="these places alone")
    return arguments.parse_args()


LEVELS: dict[str, Level] = {X86: "all", PLAIN_X86: "none"}
PLACES: dict[str, Callable[[Case], Iterator[PlaceReport]]] = {"x86": x86, "arm64": on_arm}
"""What measures in a place, by what `--only` calls it."""

if __name__ == "__main__":
    sys.exit(main())
