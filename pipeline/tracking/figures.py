"""The figures of a training, of parity and of quantization, for the report and for MLflow alike.

They are drawn with matplotlib's objects alone, never through pyplot, which keeps global state and
looks for a display.
"""

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pipeline.records.quantize import QuantizeReport, Search, Try
from pipeline.records.train import Epoch
from serving.files import csv_text

COLORS = ("#2f6fb7", "#e0832a", "#3a9a5b", "#c8474f", "#8562b5", "#8a6a56")
BLUE, ORANGE, *_ = COLORS
INK, PALE = "#3b4252", "#8a93a3"
STYLE: dict[Any, Any] = {  # its keys are literals to a type checker
    "svg.fonttype": "none",
    "svg.hashsalt": "ferry",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": PALE,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": PALE,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.4,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}
MIN_WORST = 0.02
"""Part of a class below which even its most frequent mistake is drawn pale."""
MIN_SEEN = 0.001
"""Part of the values below which a bin at the end of a histogram is left out."""
MAX_COUNTED_CLASSES = 20
"""Above this a confusion matrix shows colours alone."""
MARKERS = {"fp16": "s", "int8": "o"}
COLUMNS = ("variant", "recipe", "loss", "low", "high", "flips", "size_ratio", "speed", "inside")


@mpl.rc_context(STYLE)
def learning_curve(history: Sequence[Epoch]) -> Figure:
    """Draw loss and error of each epoch, on the training rows and on validation.

    Where no class is predicted there is no error to draw, and the loss stands alone.
    """
    classifies = history[0].accuracy is not None
    unit = "cross-entropy, nats" if classifies else "mean squared error"
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    losses, *others = figure.subplots(1, 1 + classifies, squeeze=False)[0]
    epochs = [epoch.epoch for epoch in history]
    _pair(losses, epochs, np.array([(e.loss, e.validation_loss) for e in history]))
    losses.set(title="Loss", xlabel="epoch", ylabel=unit, yscale="log")
    logarithmic(losses.yaxis)
    for errors in others:
        right = np.array([(e.accuracy, e.validation_accuracy) for e in history], dtype=float)
        _pair(errors, epochs, 100 * (1 - right))
        errors.set(title="Error", xlabel="epoch", ylabel="rows answered wrongly, %")
        errors.set_ylim(bottom=0)
    for axes in (losses, *others):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend()
    return figure


@mpl.rc_context(STYLE)
def confusion_matrix(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> Figure:
    """Draw how often each actual class (rows) was answered as each class (columns).

    Colours show the mistakes, as parts of their row: the diagonal would drown them.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    side = float(np.clip(1.7 + 0.42 * len(labels), 3, 10))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    ticks = range(len(labels))
    axes.set(xlabel="answered", ylabel="actual", xticks=ticks, yticks=ticks, aspect="equal")
    axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(labels) - 0.5, -0.5))
    axes.set_xticklabels(labels, rotation=90 if max(map(len, labels)) > 3 else 0)
    axes.set_yticklabels(labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _fill_cells(axes, counts)
    return figure


@mpl.rc_context(STYLE)
def ulp_histogram(counts: Mapping[str, Sequence[int]]) -> Figure:
    """Draw which part of the values differs by how many units in the last place, for each variant.

    `counts` are of 0, 1, 2, 3 to 4, 5 to 8, ... units.
    """
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    axes = figure.subplots()
    longest = max((_last_seen(bins) for bins in counts.values()), default=1)
    for number, (name, bins) in enumerate(counts.items()):
        part = 100 * np.asarray(bins) / max(sum(bins), 1)
        color = COLORS[number % len(COLORS)]
        axes.stairs(part, np.arange(len(part) + 1) - 0.5, fill=True, color=color, alpha=0.25)
        axes.stairs(part, np.arange(len(part) + 1) - 0.5, color=color, label=name)
    ticks = [*range(min(longest, 3)), *range(4, longest, 2)]
    axes.set(xticks=ticks, xticklabels=[_units(tick) for tick in ticks])
    axes.set(xlabel="difference to PyTorch, units in the last place", ylabel="values, %")
    axes.set(xlim=(-0.7, longest - 0.3), ylim=(0, None))
    if counts:
        axes.legend()
    return figure


def logarithmic(axis: Axis) -> None:
    """Put ticks at 1, 2 and 5 of each power of ten, so that a short range has some as well."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_short))


def as_svg(figure: Figure, title: str) -> str:
    """Write a figure as an `<svg>` element for a page, the same text for the same figure.

    Colours of ink become `currentColor`, so that the page's light or dark text colour holds inside
    the figure too; `title` is what a screen reader says.
    """
    buffer = io.StringIO()
    salt = {**STYLE, "svg.hashsalt": f"ferry {title}"}
    with mpl.rc_context(salt):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[^"_]*_\d+"', "", text)  # numbered alike in every figure of a page
    label = html.escape(title, quote=True)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1).strip()


def _last_seen(bins: Sequence[int]) -> int:
    """How many bins hold what an eye can see: values near zero that change sign are far out."""
    seen = np.flatnonzero(np.asarray(bins) >= MIN_SEEN * max(sum(bins), 1))
    return int(seen[-1]) + 1 if len(seen) else 1


def _units(place: int) -> str:
    """What a bin of units in the last place holds at most."""
    if place < 2:
        return str(place)
    return str(2 ** (place - 1)) if place < 8 else f"$2^{{{place - 1}}}$"


def _pair(axes: Axes, epochs: Sequence[int], values: npt.NDArray[np.float64]) -> None:
    """Draw what was measured in training and in validation, [epochs, 2]."""
    mark = "o" if len(epochs) <= 30 else ""
    for line, color, name in zip(values.T, COLORS, ("training", "validation"), strict=False):
        axes.plot(epochs, line, color=color, marker=mark, markersize=3, label=name)


def _fill_cells(axes: Axes, counts: npt.NDArray[np.int64]) -> None:
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    worst = max(MIN_WORST, (parts * (1 - np.eye(len(counts)))).max())
    for (row, column), count in np.ndenumerate(counts):
        if not count:
            continue
        right = row == column
        color = BLUE if right else ORANGE
        # Opacity, not lightness: the cell must do on a light and on a dark page.
        alpha = 0.15 if right else 0.15 + 0.65 * parts[row, column] / worst
        corner = (column - 0.48, row - 0.48)
        axes.add_patch(Rectangle(corner, 0.96, 0.96, color=color, alpha=alpha, linewidth=0))
        if len(counts) <= MAX_COUNTED_CLASSES:
            weight = "bold" if right else "normal"
            axes.text(column, row, f"{count}", ha="center", va="center", size=8, weight=weight)


def _short(value: float, _position: int | None = None) -> str:
    """A tick's number: 0.05, 20, 3k, 1.5M."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


@mpl.rc_context(STYLE)
def pareto(report: QuantizeReport) -> Figure:
    """Draw the loss of each try over its speed and over its size.

    Filled marks are inside both budgets, the large one was kept; numbers are explained beside. Down
    and to the right is better on the left, down and to the left on the right.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    speeds, sizes = figure.subplots(1, 2, sharey=True)
    number = 0
    for variant, search in report.searches.items():
        _limits(speeds, search, variant)
        for one in search.tries:
            number += 1
            if one.quality is not None and one.quality.loss is not None:
                _mark(speeds, one.speed, one, search, variant, number)
                _mark(sizes, one.size_ratio or 0.0, one, search, variant, number)
    tries = [one for search in report.searches.values() for one in search.tries]
    _front(speeds, [(-one.speed, one) for one in tries], -1)
    _front(sizes, [(one.size_ratio or 0.0, one) for one in tries], 1)
    speeds.set(xlabel="times as fast as fp32", ylabel="lost, points or %")
    sizes.set(xlabel="part of fp32's size")
    names = "\n".join(f"{index}  {one.recipe}" for index, one in enumerate(tries, 1))
    figure.legend([], [], loc="outside right upper", title=names, title_fontsize=8)
    return figure


def tries_csv(report: QuantizeReport) -> str:
    """A line per try below the names of its columns; empty where a value is unknown."""
    rows = (
        _cells(variant, one) for variant, search in report.searches.items() for one in search.tries
    )
    return csv_text(COLUMNS, rows)


def _mark(
    axes: Axes, across: float, one: Try, search: Search, variant: str, number: int
) -> None:  # fmt: skip
    quality = one.quality
    if quality is None or quality.loss is None or quality.low is None or quality.high is None:
        return
    color = BLUE if one.inside else ORANGE
    kept = search.kept(one)
    ends = [[quality.loss - quality.low], [quality.high - quality.loss]]
    style: dict[str, Any] = {"markersize": 10 if kept else 6, "marker": MARKERS[variant]}
    axes.errorbar(
        [across], [quality.loss], yerr=ends, color=color, elinewidth=0.7, capsize=2,
        markerfacecolor=color if one.inside else "none", **style,
    )  # fmt: skip
    axes.annotate(
        str(number), (across, quality.loss), xytext=(6, 4), textcoords="offset points", size=8,
        color=INK,
    )  # fmt: skip


def _front(axes: Axes, costs: Sequence[tuple[float, Try]], sign: int) -> None:
    """Join the tries that none beats in both ways; the smaller a cost, the better."""
    corners: list[tuple[float, float]] = []
    known = [
        (c, one.quality.loss) for c, one in costs if one.quality and one.quality.loss is not None
    ]
    for cost, loss in sorted(known):
        if not corners or loss < corners[-1][1]:
            corners.append((cost, loss))
    across, up = [sign * cost for cost, _ in corners], [loss for _, loss in corners]
    axes.plot(across, up, color=PALE, linewidth=1, zorder=0)


def _limits(axes: Axes, search: Search, variant: str) -> None:
    style = "--" if variant == "int8" else ":"
    axes.axvline(search.budget.min_speedup, color=PALE, linestyle=style, linewidth=1)
    measures = [one.quality.measure for one in search.tries if one.quality]
    counts = any(measure in ("accuracy", "agreement") for measure in measures)
    limit = search.budget.accuracy_loss if counts else search.budget.error_increase
    axes.axhline(limit, color=PALE, linestyle=style, linewidth=1)


def _cells(variant: str, one: Try) -> Sequence[str]:
    quality = one.quality
    found = (quality.loss, quality.low, quality.high, quality.flips) if quality else (None,) * 4
    values = (*found, one.size_ratio, one.speed or None)
    texts = ["" if value is None else f"{value:.6g}" for value in values]
    return (variant, one.recipe, *texts, "yes" if one.inside else "no")
