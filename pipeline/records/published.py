"""Figures that are published, with the machine and the revision that they were measured on.

`ferry results --publish docs/results` writes a file of each experiment that was measured here,
`python benchmarks/SCRIPT.py --publish docs/results` one of what the script reached, or of how a
model answers in other places, and each the tables of Markdown pages that are made of these files.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.records import read
from pipeline.records.places import Places, edge_table, place_table, read_places, write_places
from serving.console import DASH, number, table
from serving.errors import MissingInputError
from serving.files import dump_json, write_json, write_text
from serving.machine.environment import Environment, MachineKind, describe
from serving.measuring.pairing import PairedRatio

SCRIPTS, PLACES = "benchmarks", "places"
"""The folders of what scripts reached and of the places, beside the experiments' files."""
MARKED = re.compile(r"<!-- results: (\w+)((?: [\w-]+)*) -->\n.*?<!-- /results -->", re.DOTALL)
"""A table that is generated: `<!-- results: int8 digits-cnn -->` is that of one experiment."""
PAGE = """# What was measured

`ferry results --publish docs/results` writes this page, and the files in [results](results) that it
is made of. `ferry results --published` prints them; `ferry results` prints what was measured in
your own checkout.

## Training

<!-- results: training -->
<!-- /results -->

## Variants

Speeds are over fp32 on one thread, medians of pairs; sizes are parts of fp32's file. The largest
difference is that of any output but the probabilities, to PyTorch over the whole test set.

<!-- results: variants -->
<!-- /results -->

## Not made

<!-- results: refused -->
<!-- /results -->

## Speed over PyTorch eager

ONNX Runtime's fp32 on one thread each, with 95 % intervals.

<!-- results: speed -->
<!-- /results -->

## Latency and throughput of fp32

<!-- results: latency -->
<!-- /results -->

## Places

The first 1,000 test rows of the same bundles: how many are decided as ONNX Runtime on x86 decides
them, int8 in C as it decides them without optimization. A near-tie is a row whose two best scores
lie within what the runtime's own kernels differ by, doubled; any other is a flip.

<!-- results: places -->
<!-- /results -->

## Machines and revisions

<!-- results: machines -->
<!-- /results -->

## What the scripts in benchmarks/ reached

With `--publish docs/results` a script writes what it reached, and this table.

<!-- results: scripts -->
<!-- /results -->
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedVariant:
    """A variant of the model, as parity and quantization measured it."""

    recipe: str | None
    """Of its quantization; None for fp32."""
    passed: bool
    accuracy: float | None
    r2: float | None
    """Of a regression, in place of the accuracy."""
    accuracy_loss: float | None
    """Percentage points on the test set, beside the trained weights."""
    error_increase: float | None
    """Per cent by which a mean error grew on the rows that it was judged on; None for classes."""
    flips: int | None
    max_abs_diff: float
    max_probability_diff: float | None
    snr_db: float | None
    size_ratio: float | None
    """Of fp32's file."""
    speedup: Mapping[str, PairedRatio]
    """Over fp32, by batch size; empty for fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedLatency:
    """fp32 with a number of threads at a batch of one row, and where it answers the most rows."""

    threads: int
    p50_ms: float
    p99_ms: float
    rows_per_second: float
    best_batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSpeed:
    """What the benchmark measured of an experiment."""

    machine: str
    revision: str
    bytes: int | None
    """Of the fp32 file."""
    over_eager: Mapping[str, PairedRatio]
    """fp32 over PyTorch eager with one thread each, by batch size."""
    latencies: tuple[PublishedLatency, ...]
    cold_start_ms: float | None
    """fp32 on the CPU, from starting a process to its first answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedResults:
    """All figures of one experiment that are published: `docs/results/E.json`."""

    experiment: str
    dataset: str
    machine: str
    """That trained, quantized and compared."""
    revision: str
    """Of the sources that trained."""
    accuracy: float | None
    r2: float | None
    """Of a regression, in place of the accuracy."""
    loss_name: str
    loss: float
    auc: float | None
    """Of a reconstruction's error, against another data set."""
    parameters: int
    epochs: int
    seconds: float
    variants: Mapping[str, PublishedVariant]
    refused: Mapping[str, str]
    """The variants that were not made, with the reason."""
    speed: PublishedSpeed | None
    shipped: str | None
    """The variant in the bundle."""


@dataclass(frozen=True, slots=True)
class ScriptLine:
    """A figure of a script in benchmarks/, beside its aim."""

    what: str
    reached: str
    aim: str
    met: bool | None
    """None for what could not be measured there, or has no aim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedScript:
    """What a script in benchmarks/ reached: `docs/results/benchmarks/SCRIPT.json`."""

    script: str
    """Its file, and what it was asked about where that is one of several: "seeds.py mnist-tiny"."""
    machine: str
    revision: str
    lines: tuple[ScriptLine, ...]


def reached_here(script: str, lines: Sequence[ScriptLine]) -> PublishedScript:
    """What a script reached on this machine, with these sources."""
    here = describe()
    return PublishedScript(
        script=script, machine=machine_of(here), revision=here.git_revision, lines=tuple(lines)
    )


def machine_of(here: Environment | MachineKind) -> str:
    """What is published of a machine."""
    return f"{here.processor}, {here.allowed_cores} cores, {' '.join(here.flags)}"


def read_published(folder: Path) -> tuple[PublishedResults, ...]:
    """Read all files of a folder, in the order of their names."""
    command = f"ferry results --publish {folder}"
    return tuple(read(PublishedResults, path, command) for path in sorted(folder.glob("*.json")))


def read_scripts(folder: Path) -> tuple[PublishedScript, ...]:
    """Read what scripts reached, in the order of their names."""
    paths = sorted((folder / SCRIPTS).glob("*.json"))
    return tuple(
        read(PublishedScript, path, f"the script in benchmarks/ with --publish {folder}")
        for path in paths
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """All that a folder of published figures holds."""

    results: tuple[PublishedResults, ...] = ()
    scripts: tuple[PublishedScript, ...] = ()
    places: tuple[Places, ...] = ()


def read_all(folder: Path) -> Published:
    """Read every file of figures that a folder holds."""
    return Published(
        results=read_published(folder),
        scripts=read_scripts(folder),
        places=read_places(folder / PLACES),
    )


def write_published(
    folder: Path,
    results: Sequence[PublishedResults] = (),
    scripts: Sequence[PublishedScript] = (),
    places: Sequence[Places] = (),
) -> tuple[Path, ...]:
    """Write a file of each experiment, script and places; those of others in the folder stay.

    Then write every table anew in the page beside the folder, in the pages beside that, and in
    README.md above them. Returns all paths that were written.
    """
    written = [folder / f"{one.experiment}.json" for one in results]
    for path, one in zip(written, results, strict=True):
        text = dump_json(one)
        write_json(path, json.loads(text, parse_float=lambda digits: float(f"{float(digits):.6g}")))
    for script in scripts:
        written.append(
            folder / SCRIPTS / f"{script.script.replace('.py', '').replace(' ', '-')}.json"
        )
        write_json(written[-1], script)
    written += [write_places(folder / PLACES, one.experiment, one.reports) for one in places]
    published = read_all(folder)
    page = folder.with_suffix(".md")
    if not page.exists():
        write_text(page, PAGE)
    for path in (*sorted(page.parent.glob("*.md")), page.parent.with_name("README.md")):
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        new = fill(old, published)
        if new != old:
            write_text(path, new)
            written.append(path)
    return tuple(written)


def as_table(published: Sequence[PublishedResults], scripts: Sequence[PublishedScript] = ()) -> str:
    """Lay the variants out for a terminal, with the machines they were measured on below."""
    where: dict[str, set[str]] = {}
    measured = [(one.machine, one.revision) for one in published]
    measured += [(one.machine, one.revision) for one in scripts]
    for machine, revision in measured:
        where.setdefault(machine, set()).add(short_revision(revision))
    lines = [f"{machine}: revision {', '.join(sorted(made))}" for machine, made in where.items()]
    tables = [list(_variants(published)), [line[:-2] for line in _scripts(scripts)]]
    shown = [table(header, rows) for header, *rows in tables if rows]
    return "\n\n".join([*shown, "\n".join(["Measured elsewhere, on", *lines])])


def fill(text: str, published: Published) -> str:
    """Write every table of a Markdown page anew that stands between `<!-- results: ... -->` marks.

    Raises MissingInputError for a table or an experiment that does not exist.
    """
    known = {one.experiment: one for one in published.results}
    others = {
        "scripts": lambda: _scripts(published.scripts),
        "places": lambda: place_table(published.places),
        "edge": lambda: edge_table(published.places),
    }

    def filled(mark: re.Match[str]) -> str:
        kind, names = mark[1], mark[2].split()
        if kind not in {*TABLES, *others} or not set(names) <= set(known):
            raise MissingInputError(f"a page has `results: {kind}{mark[2]}`: no such figures")
        chosen = [known[name] for name in names] if names else published.results
        header, *rows = others[kind]() if kind in others else TABLES[kind](chosen)
        lines = [header, ["---"] * len(header), *rows] if rows else []
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines) or "None yet."
        return f"<!-- results: {kind}{mark[2]} -->\n{body}\n<!-- /results -->"

    return MARKED.sub(filled, text)


def _training(published: Sequence[PublishedResults]) -> Iterator[Sequence[str]]:
    yield "experiment", "data set", "test set", "loss", "parameters", "epochs", "training"
    for one in published:
        reached = _reached(one)
        if reached == DASH:
            reached = f"MSE {one.loss:.3g}" if one.auc is None else f"AUC {one.auc:.4f}"
        yield (
            f"`{one.experiment}`",
            one.dataset,
            reached,
            f"{one.loss:.3g}",
            f"{one.parameters:,}",
            str(one.epochs),
            f"{one.seconds:,.0f} s",
        )


def _reached(one: PublishedResults | PublishedVariant) -> str:
    return _percent(one.accuracy) if one.r2 is None else f"R² {one.r2:.3f}"


def _variants(published: Sequence[PublishedResults]) -> Iterator[Sequence[str]]:
    yield "experiment", "variant", "recipe", "accuracy", "flips", "largest diff", "size", *BATCHES
    for one in published:
        for name, variant in one.variants.items():
            yield (
                one.experiment,
                name if variant.passed else f"{name}, FAILED PARITY",
                variant.recipe or DASH,
                _reached(variant),
                number(variant.flips),
                f"{variant.max_abs_diff:.1e}",
                number(variant.size_ratio, ".2f"),
                *_times(variant),
            )


def _int8(published: Sequence[PublishedResults]) -> Iterator[Sequence[str]]:
    yield "int8 of", "recipe", *BATCHES, "lost on the test set", "size"
    for one in published:
        int8 = one.variants.get("int8")
        if int8 is None:
            continue
        lost = DASH
        if int8.error_increase is not None:
            rows = "" if int8.r2 is not None else " (validation)"
            lost = f"mean error {int8.error_increase:.2f} % larger{rows}"
        elif int8.accuracy_loss is not None:
            lost = f"{int8.accuracy_loss:.2f} points, {int8.flips} flips"
        yield (
            f"`{one.experiment}`",
            int8.recipe or DASH,
            *_times(int8),
            lost,
            number(int8.size_ratio, ".2f"),
        )


def _refused(published: Sequence[PublishedResults]) -> Iterator[Sequence[str]]:
    yield "experiment", "variant", "why"
    for one in published:
        for name, reason in one.refused.items():
            yield f"`{one.experiment}`", name, reason.replace("|", "\\|")


def _speed(published: Sequence[PublishedResults]) -> Iterator[Sequence[str]]:
    known = [(one.experiment, one.speed) for one in published if one.speed]
    sizes = sorted({int(size) for _, speed in known for size in speed.over_eager})
    yield "experiment", *(f"batch {size}" for size in sizes)
    for name, speed in known:
        yield f"`{name}`", *(_interval(speed.over_eager.get(str(size))) for size in sizes)


def _latency(published: Sequence[PublishedResults]) -> Iterator[Sequence[str]]:
    yield "experiment", "threads", "p50, batch 1", "p99", "most rows a second", "size", "cold start"
    for one in published:
        speed = one.speed
        if speed is None:
            continue
        for line in speed.latencies:
            yield (
                f"`{one.experiment}`",
                str(line.threads),
                f"{line.p50_ms:.3f} ms",
                f"{line.p99_ms:.3f} ms",
                f"{line.rows_per_second:,.0f}, batch {line.best_batch}",
                DASH if speed.bytes is None else f"{speed.bytes / 1024:,.0f} KiB",
                number(speed.cold_start_ms, ",.0f", " ms"),
            )


def _machines(published: Sequence[PublishedResults]) -> Iterator[Sequence[str]]:
    yield "what", "experiments", "machine", "revision"
    groups: dict[tuple[str, str, str], list[str]] = {}
    for one in published:
        name = f"`{one.experiment}`"
        key = ("training, parity", one.machine, one.revision)
        groups.setdefault(key, []).append(name)
        if one.speed:
            key = ("speed", one.speed.machine, one.speed.revision)
            groups.setdefault(key, []).append(name)
    for (what, machine, revision), names in groups.items():
        yield what, ", ".join(names), machine, short_revision(revision)


def _scripts(scripts: Sequence[PublishedScript]) -> Iterator[Sequence[str]]:
    yield "script", "what", "reached", "aim", "met", "machine", "revision"
    words = {True: "yes", False: "no", None: DASH}
    for one in scripts:
        for line in one.lines:
            found = (line.what, line.reached, line.aim, words[line.met])
            yield f"`{one.script}`", *found, one.machine, short_revision(one.revision)


def short_revision(revision: str) -> str:
    """Twelve digits of a commit, and whether sources differed from it."""
    commit, dash, dirty = revision.partition("-")
    return commit[:12] + dash + dirty


def _percent(part: float | None) -> str:
    return DASH if part is None else f"{100 * part:.2f} %"


def _times(variant: PublishedVariant) -> Iterator[str]:
    ratios = (variant.speedup.get(size) for size in BATCHES.values())
    return (f"{ratio.median:.2f}" if ratio else DASH for ratio in ratios)


def _interval(ratio: PairedRatio | None) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else DASH


BATCHES = {"speed, batch 1": "1", "batch 32": "32"}
"""The columns of speeds over fp32."""
TABLES: dict[str, Callable[[Sequence[PublishedResults]], Iterator[Sequence[str]]]] = {
    "training": _training,
    "variants": _variants,
    "int8": _int8,
    "refused": _refused,
    "speed": _speed,
    "latency": _latency,
    "machines": _machines,
}
