"""`ferry report`: one HTML page of all that was measured, which opens offline and loads nothing.

The same reports give the same bytes: no times of writing, and figures whose ids come from their
titles.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from pipeline.config import layout
from pipeline.config.experiment import Params
from pipeline.proof.gate import QUANTITIES, GateQuantity
from pipeline.proof.tables import cell_lines, facts, ulps
from pipeline.records.parity import ParityReport, VariantParity
from pipeline.records.published import short_revision
from pipeline.records.quantize import QuantizeReport
from pipeline.stages.page.speed import SPEED_TEMPLATE, Speed, machines, speed_of
from pipeline.stages.results import (
    NOTHING,
    ExperimentResults,
    ResultRow,
    read_results,
    rows_of,
)
from pipeline.tracking import figures
from pipeline.tracking.figures import pareto
from serving.console import number
from serving.errors import MissingInputError
from serving.files import write_text

TEMPLATE = Path(__file__).parent / "page" / "report.html.j2"


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
    """A look inside of a network."""

    name: str
    caption: str
    svg: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One experiment on the page."""

    name: str
    measured: ExperimentResults
    rows: tuple[ResultRow, ...]
    gates: tuple[tuple[str, VariantParity, tuple[GateLine, ...]], ...]
    learning_curve: str
    """SVG, as those below."""
    confusion_matrix: str | None
    """None where no class is predicted."""
    ulps: str | None
    """How many units in the last place the variants are off; None before they were compared."""
    pareto: str | None
    """What the recipes of quantization lost and won; None where none was tried."""
    inside: tuple[tuple[str, str], ...]
    """What the look inside measured, by what a person calls it."""
    pictures: tuple[Picture, ...]
    unseen: tuple[tuple[str, str], ...]
    """What was not drawn, measured or made, with the reason."""
    speed: Speed | None
    """None before its benchmark has run."""


def report(root: Path, page: Path, *, params: Params) -> ReportSummary:
    """Write the page of every experiment of `params` that was trained below the folder `root`.

    Raises MissingInputError when none was, and IntegrityError for reports that cannot be read.
    """
    found = [read_results(name, root) for name in params.experiments]
    left_out = tuple(line for _, lines in found for line in lines)
    sections = tuple(_section(one, root / layout.PICTURES) for one, _ in found if one)
    if not sections:
        raise MissingInputError("; ".join(left_out) or NOTHING)
    names = tuple(section.name for section in sections)
    text = _render(sections)
    write_text(page, text)
    return ReportSummary(
        page=page,
        bytes=len(text.encode()),
        experiments=names,
        not_run=tuple(name for name in params.experiments if name not in names),
        left_out=left_out,
    )


def _section(measured: ExperimentResults, pictures: Path) -> Section:
    training, name = measured.training, measured.training.experiment
    curve = figures.learning_curve(training.history)
    variants = measured.parity.variants if measured.parity else {}
    return Section(
        name=name,
        measured=measured,
        rows=rows_of(measured),
        gates=tuple((key, parity, _gate_lines(parity)) for key, parity in variants.items()),
        learning_curve=figures.as_svg(curve, f"{name}: loss and error of each epoch"),
        confusion_matrix=_confusion(measured),
        ulps=_ulps(measured.parity),
        pareto=_pareto(measured.quantized),
        inside=tuple(_inside(measured)),
        pictures=tuple(_pictures(measured, pictures / name)),
        unseen=tuple(_unseen(measured)),
        speed=speed_of(measured),
    )


def _confusion(measured: ExperimentResults) -> str | None:
    training = measured.training
    if not training.confusion:
        return None
    matrix = figures.confusion_matrix(training.confusion, training.labels)
    return figures.as_svg(matrix, f"{training.experiment}: confusion matrix of the test set")


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
    if drawn and drawn.outliers:
        yield f"AUC against {drawn.outliers.dataset}", f"{drawn.outliers.auc:.4f}"


def _pictures(measured: ExperimentResults, folder: Path) -> Iterator[Picture]:
    """The pictures that lie in the folder; they are made by ferry, so they go in as they are."""
    shown = measured.inside.pictures if measured.inside else {}
    for name, caption in shown.items():
        path = folder / f"{name}.svg"
        if path.is_file():
            yield Picture(name=name, caption=caption, svg=path.read_text(encoding="utf-8"))


def _unseen(measured: ExperimentResults) -> Iterator[tuple[str, str]]:
    if measured.inside:
        yield from measured.inside.skipped.items()
    if measured.parity:
        yield from measured.parity.skipped.items()


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


def _ulps(parity: ParityReport | None) -> str | None:
    if parity is None:
        return None
    figure = figures.ulp_histogram(ulps(parity))
    return figures.as_svg(figure, f"{parity.experiment}: differences in units in the last place")


def _pareto(quantized: QuantizeReport | None) -> str | None:
    if quantized is None or not any(search.tries for search in quantized.searches.values()):
        return None
    return figures.as_svg(pareto(quantized), f"{quantized.experiment}: recipes of quantization")


def _render(sections: Sequence[Section]) -> str:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
    )
    environment.filters |= {"number": number, "size": _size, "short": short_revision}
    environment.filters |= {"percent": _percent, "times": _times}
    environment.filters |= {"proof": facts, "cells": cell_lines}
    page: str = environment.get_template(TEMPLATE.name).render(
        sections=sections,
        speed_template=SPEED_TEMPLATE,
        rows=[row for section in sections for row in section.rows],
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
    return "–" if part is None else f"{min(round(100 * part, 1), 100 if part == 1 else 99.9):g} %"


def _size(value: int | None) -> str:
    """Bytes in the unit that a person reads: 812 B, -39 KiB, 1.6 MiB."""
    if value is None:
        return "–"
    if abs(value) < 1024:
        return f"{value} B"
    return f"{value / 1024:,.0f} KiB" if abs(value) < 2**20 else f"{value / 2**20:,.1f} MiB"
