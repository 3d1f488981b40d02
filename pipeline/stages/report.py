"""`ferry report`: one HTML page of all that was measured, which opens offline and loads nothing.

The same reports give the same bytes: no times of writing, and figures whose ids come from their
titles.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from pipeline import tracking
from pipeline.config import layout
from pipeline.config.experiment import Params
from pipeline.proof.gate import QUANTITIES, GateQuantity
from pipeline.proof.tables import cell_lines, facts, ulps
from pipeline.records.benchmark import BenchmarkReport, over_eager
from pipeline.records.parity import VariantParity
from pipeline.records.places import Places, decided_alike, largest_diff
from pipeline.records.published import short_revision
from pipeline.records.train import TrainReport
from pipeline.stages.page.places import places_here
from pipeline.stages.page.results import (
    NOTHING,
    ExperimentResults,
    ResultRow,
    read_results,
    rows_of,
)
from pipeline.stages.page.speed_figures import figures_of
from pipeline.stages.page.verdicts import Verdict, verdict_of
from pipeline.tracking import figures
from serving.console import DASH, number
from serving.errors import MissingInputError
from serving.files import write_text
from serving.machine.environment import Environment
from serving.measuring.pairing import PairedRatio, verdict
from serving.measuring.report import BenchReport, BenchRow
from serving.measuring.subject import TORCH

TEMPLATES = ("report.html.j2", "report_speed.html.j2")
"""The page, and its section on speed."""
CLAIMED_SIZES = (1, 64)
"""The batch sizes that the section opens with; without one, the smallest and the largest."""
SPEED_CAPTIONS = {
    "latency_throughput": "Up and to the left is better; pale lines join what had the same batch "
    "size. The strong line of each is that of the threads that gave the most rows per second.",
    "scaling": "Left: each with the threads that were the best. Right: what the threads gain, from "
    "none at the lower line to all of them at the upper one.",
    "latency_distribution": "Each step to the right leaves out nine of ten calls that were left. "
    "p99.9 of fewer than 1000 calls is near the slowest one, and hollow.",
    "cold_start": "From starting a process to its first answer, imports included and files in the "
    "page cache. Dots are single runs.",
}
SPEED_TITLES = {
    "latency_throughput": "latency against throughput",
    "scaling": "scaling with batch and threads",
    "latency_distribution": "distribution of latencies",
    "cold_start": "cold starts",
}
"""What each figure of a benchmark shows, for those who do not see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSummary:
    """What the page shows."""

    page: Path
    bytes: int
    experiments: tuple[str, ...]
    not_run: tuple[str, ...]
    """Experiments of params.yaml without a section."""
    left_out: tuple[str, ...]
    """What was measured of another file than the one that is there, a line each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLine:
    """A quantity, its limit in words, and the part of it that is used up, at most 1."""

    quantity: str
    measured: str
    limit: str
    part: float
    met: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure, and what it shows or what to look for in it."""

    svg: str
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a section shows of the benchmark."""

    bench: BenchReport
    claims: Mapping[int, PairedRatio]
    """By batch size, how many times as fast as PyTorch eager ONNX Runtime's fp32 is, with one
    thread each."""
    warnings: tuple[str, ...]
    """Why the figures are to be doubted."""
    pictures: tuple[Picture, ...]
    skipped: tuple[str, ...]
    """What was not measured, with the reason."""

    @property
    def rows(self) -> list[BenchRow]:
        """All that was timed."""
        return [row for one in self.bench.measured for row in one.rows]

    @property
    def node_share(self) -> float | None:
        """The least part of a model's nodes, 0 to 1, that ran where it was asked to."""
        return min((one.proof.share for one in self.bench.measured if one.proof), default=None)

    @property
    def time_share(self) -> float | None:
        """The least part of a model's time that was spent there."""
        return min((one.share.share for one in self.bench.measured if one.share), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One experiment on the page."""

    name: str
    measured: ExperimentResults
    verdict: Verdict
    reached: list[tuple[str, str]]
    """How good the trained weights are, by what a person calls it."""
    rows: tuple[ResultRow, ...]
    gates: tuple[tuple[str, VariantParity, tuple[GateLine, ...]], ...]
    figures: Mapping[str, str]
    """SVG of what was trained, compared and tried so far, by name."""
    inside: tuple[tuple[str, str], ...]
    """What the look inside measured, by what a person calls it."""
    pictures: tuple[Picture, ...]
    unseen: tuple[tuple[str, str], ...]
    """What was not drawn, measured or made, with the reason."""
    speed: Speed | None
    """None before its benchmark has run."""


def report(root: Path, page: Path, *, params: Params, track: bool = True) -> ReportSummary:
    """Write the page of every experiment of `params` that was trained below the folder `root`.

    The run of each in MLflow, where it was recorded here, gets its section.

    Raises MissingInputError when none was, and IntegrityError for reports that cannot be read.
    """
    found = [read_results(name, root) for name in params.experiments]
    left_out = tuple(line for _, lines in found for line in lines)
    sections = tuple(_section(one, root / layout.PICTURES) for one, _ in found if one)
    if not sections:
        raise MissingInputError("; ".join(left_out) or NOTHING)
    names = tuple(section.name for section in sections)
    places = tuple(places_here(names, root))
    text = _render(sections, places)
    write_text(page, text)
    runs = {one.measured.training.weights_sha256: one for one in sections}
    with tracking.known_runs(runs, track=track) as trackers:
        for weights, tracker in trackers.items():
            own = tuple(one for one in places if one.experiment == runs[weights].name)
            tracker.log_artifact(_render([runs[weights]], own).encode(), page.name)
    return ReportSummary(
        page=page,
        bytes=len(text.encode()),
        experiments=names,
        not_run=tuple(name for name in params.experiments if name not in names),
        left_out=left_out,
    )


def _section(measured: ExperimentResults, pictures: Path) -> Section:
    name = measured.training.experiment
    variants = measured.parity.variants if measured.parity else {}
    return Section(
        name=name,
        measured=measured,
        verdict=verdict_of(measured),
        reached=list(_reached(measured.training)),
        rows=rows_of(measured),
        gates=tuple((key, parity, _gate_lines(parity)) for key, parity in variants.items()),
        figures=dict(_figures(measured)),
        inside=tuple(_inside(measured)),
        pictures=tuple(_pictures(measured, pictures / name)),
        unseen=tuple(_unseen(measured)),
        speed=speed_of(measured),
    )


def _reached(training: TrainReport) -> Iterator[tuple[str, str]]:
    """How good the weights are, on the test set and on validation."""
    if training.accuracy is not None:
        yield "test accuracy", f"{100 * training.accuracy:.2f} %"
        yield "validation accuracy", number(training.validation_accuracy, ".2%")
        return
    loss = training.loss_name.replace("_", " ")
    for one in training.targets:
        yield f"test R² of {one.target}", number(one.r2, ".3f")
        yield f"mean absolute error of {one.target}", f"{one.mean_absolute_error:.4g}"
        yield f"{loss} of {one.target}", f"{one.mean_squared_error:.4g}"
    unit = ", 1 for the mean alone" if training.targets else ""
    yield f"test {loss}{unit}", f"{training.loss:.5f}"
    yield f"validation {loss}{unit}", f"{training.validation_loss:.5f}"


def _figures(measured: ExperimentResults) -> Iterator[tuple[str, str]]:
    training, parity, quantized = measured.training, measured.parity, measured.quantized

    def svg(figure: Figure, title: str) -> str:
        return figures.as_svg(figure, f"{training.experiment}: {title}")

    curve = figures.learning_curve(training.history)
    yield "learning_curve", svg(curve, "loss and error of each epoch")
    if training.confusion:
        matrix = figures.confusion_matrix(training.confusion, training.labels)
        yield "confusion_matrix", svg(matrix, "confusion matrix of the test set")
    if parity:
        histogram = figures.ulp_histogram(ulps(parity))
        yield "ulps", svg(histogram, "differences in units in the last place")
    if quantized and any(search.tries for search in quantized.searches.values()):
        yield "pareto", svg(figures.pareto(quantized), "recipes of quantization")


def _inside(measured: ExperimentResults) -> Iterator[tuple[str, str]]:
    """The numbers of the look inside, as a person reads them."""
    classes = measured.inside.classes if measured.inside else None
    drawn = measured.inside.reconstruction if measured.inside else None
    if classes:
        yield "expected calibration error", f"{classes.calibration.error:.3f}"
        yield "mean confidence", f"{classes.calibration.mean_confidence:.1%}"
        known = {name: part for name, part in classes.class_accuracy.items() if part is not None}
        worst = min(known, key=lambda name: known[name])
        yield "hardest class", f"{worst}, {known[worst]:.1%}"
    if classes and classes.robustness:
        yield f"first {classes.robustness.rows} rows", f"{classes.robustness.accuracy:.1%}"
        for attack in classes.robustness.attacks:
            yield f"{attack.name}, {attack.strength:g} of a pixel", f"{attack.accuracy:.1%}"
    if drawn:
        yield "mean error of a row", f"{drawn.mean_error:.5f}"
    for name, one in (measured.inside.targets if measured.inside else {}).items():
        yield f"{name}: predicted - actual, mean", f"{one.bias:+.3g}"
        yield f"{name}: half are off by less than", f"{one.quantiles['0.5']:.3g}"
        yield f"{name}: one in twenty is off by more than", f"{one.quantiles['0.95']:.3g}"
        yield f"{name}: furthest off", f"row {one.worst_row}, by {one.worst:+.3g}"
    if drawn and drawn.outliers:
        yield f"AUC against {drawn.outliers.dataset}", f"{drawn.outliers.auc:.4f}"


def _pictures(measured: ExperimentResults, folder: Path) -> Iterator[Picture]:
    """The pictures that lie in the folder; they are made by ferry, so they go in as they are."""
    shown = measured.inside.pictures if measured.inside else {}
    for name, caption in shown.items():
        path = folder / f"{name}.svg"
        if path.is_file():
            yield Picture(svg=path.read_text(encoding="utf-8"), caption=caption)


def _unseen(measured: ExperimentResults) -> Iterator[tuple[str, str]]:
    if measured.inside:
        yield from measured.inside.skipped.items()
    if measured.quantized:
        yield from measured.quantized.skipped.items()


def _gate_lines(parity: VariantParity) -> tuple[GateLine, ...]:
    return tuple(
        _gate_line(quantity, measured, limit)
        for quantity in QUANTITIES
        if (measured := quantity.measured(parity)) is not None
        and (limit := quantity.allowed(parity.limits)) is not None
    )


def _gate_line(quantity: GateQuantity, measured: float, limit: float) -> GateLine:
    small, large = (limit, measured) if quantity.least else (measured, limit)
    part = small / large if large > 0 else float(quantity.least or measured > 0)
    bound = "at least" if quantity.least else "of"
    return GateLine(
        quantity=quantity.title,
        measured=quantity.text(measured) if measured else "0",
        limit=f"{bound} {quantity.text(limit)}",
        part=min(max(part, 0.0), 1.0),
        met=quantity.met(measured, limit),
    )


def speed_of(measured: ExperimentResults) -> Speed | None:
    """Gather the section of an experiment; None before its benchmark has run."""
    report = measured.benchmark
    if report is None:
        return None
    return Speed(
        bench=report.bench,
        claims=_claims(report),
        warnings=tuple(_warnings(report.bench)),
        pictures=tuple(_drawn(report)),
        skipped=(*_skipped(report.bench), *_skipped_batches(report.bench)),
    )


def _claims(report: BenchmarkReport) -> dict[int, PairedRatio]:
    ratios = dict(over_eager(report))
    sizes = [size for size in CLAIMED_SIZES if size in ratios]
    if ratios and len(sizes) < len(CLAIMED_SIZES):
        sizes = sorted({*sizes, min(ratios), max(ratios)})
    return {size: ratios[size] for size in sizes}


def _warnings(bench: BenchReport) -> Iterator[str]:
    if bench.partial:
        yield "The benchmark was interrupted: only what was measured until then is here."
    if bench.load.warning:
        yield f"While it was measured, {bench.load.warning}."


def _drawn(report: BenchmarkReport) -> Iterator[Picture]:
    for name, figure in figures_of(report).items():
        svg = figures.as_svg(figure, f"{report.experiment}: {SPEED_TITLES[name]}")
        yield Picture(svg=svg, caption=SPEED_CAPTIONS[name])


def _skipped(bench: BenchReport) -> Iterator[str]:
    """What was not measured at all: subjects with the same reason on one line."""
    threads: dict[tuple[str, str, str], set[int | None]] = {}
    for one in bench.skipped:
        threads.setdefault((one.subject, one.provider, one.skipped), set()).add(one.threads)
    every = {one.settings.threads for one in bench.measured}.union(*threads.values()) - {None}
    lines: dict[tuple[str, str], list[str]] = {}
    for (subject, provider, reason), counts in threads.items():
        known = {count for count in counts if count is not None}
        some = f" with threads {', '.join(map(str, sorted(known)))}"
        place = "" if provider == TORCH else f" on {provider}"
        where = place + ("" if None in counts or known == every else some)
        lines.setdefault((where, reason), []).append(subject)
    for (where, reason), subjects in lines.items():
        yield f"{', '.join(subjects)}{where}: skipped: {reason}"


def _skipped_batches(bench: BenchReport) -> Iterator[str]:
    for one in bench.measured:
        for batch in one.skipped:
            name = f"{one.label} with threads {one.settings.threads}"
            yield f"{name}, batch {batch.batch_size}: skipped: {batch.skipped}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMachine:
    """A machine that was measured on."""

    environment: Environment
    """Of any of its experiments, without what differs between them."""
    experiments: tuple[str, ...]
    clock_ns: float
    """The coarsest resolution that its clock was seen to have."""
    torch_versions: tuple[str, ...]
    revisions: tuple[str, ...]
    """Of the sources that measured."""


def machines(reports: Iterable[BenchmarkReport | None]) -> list[MeasuredMachine]:
    """Group experiments by the machine; None stands for one that was not measured."""
    groups: dict[Environment, list[BenchmarkReport]] = {}
    for report in reports:
        if report:
            # Neither the load of a minute nor the sources make another machine.
            same = replace(report.bench.environment, load_average=(), git_revision="")
            groups.setdefault(same, []).append(report)
    return [
        MeasuredMachine(
            environment=environment,
            experiments=tuple(one.experiment for one in reports),
            clock_ns=max(one.bench.clock.resolution_ns for one in reports),
            torch_versions=tuple(sorted({one.torch_version for one in reports})),
            revisions=tuple(sorted({one.bench.environment.git_revision for one in reports})),
        )
        for environment, reports in groups.items()
    ]


def _render(sections: Sequence[Section], places: Sequence[Places]) -> str:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "page"),
    )
    environment.filters |= {"number": number, "size": _size, "short": short_revision}
    environment.filters |= {"percent": _percent, "times": _times}
    environment.filters |= {"proof": facts, "cells": cell_lines, "verdict": verdict}
    environment.filters |= {"alike": decided_alike, "apart": largest_diff}
    page: str = environment.get_template(TEMPLATES[0]).render(
        sections=sections,
        speed_template=TEMPLATES[1],
        places=places,
        machines=machines(section.measured.benchmark for section in sections),
        revisions=sorted({section.measured.training.git_revision for section in sections}),
    )
    return page


def _times(ratio: float) -> str:
    """A ratio with three digits that count, and no power of ten."""
    digits = 2 if ratio < 10 else 1 if ratio < 100 else 0
    return f"{ratio:.3g}" if ratio < 1 else f"{ratio:,.{digits}f}"


def _percent(part: float | None) -> str:
    """A part of 1 in percent, and never 100 for less than all of it."""
    return DASH if part is None else f"{min(round(100 * part, 1), 100 if part == 1 else 99.9):g} %"


def _size(value: int | None) -> str:
    """Bytes in the unit that a person reads: 812 B, -39 KiB, 1.6 MiB."""
    if value is None:
        return DASH
    if abs(value) < 1024:
        return f"{value} B"
    return f"{value / 1024:,.0f} KiB" if abs(value) < 2**20 else f"{value / 2**20:,.1f} MiB"
