"""The trace of a search as a picture and as rows: what each recipe lost, and what it won."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.figures import BLUE, INK, ORANGE, PALE, STYLE
from pipeline.records.quantize import QuantizeReport, Search, Try

__all__ = ["pareto", "tries_csv"]

MARKERS = {"fp16": "s", "int8": "o"}
COLUMNS = ("variant", "recipe", "loss", "low", "high", "flips", "size_ratio", "speed", "inside")


def pareto(report: QuantizeReport) -> Figure:
    """Draw the loss of each try over its speed and over its size.

    Filled marks are inside both budgets, the large one was kept; numbers are explained beside. Down
    and to the right is better on the left, down and to the left on the right.
    """
    with mpl.rc_context(STYLE):
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
        told = "\n".join(f"{index}  {one.recipe}" for index, one in enumerate(tries, 1))
        figure.legend([], [], loc="outside right upper", title=told, title_fontsize=8)
    return figure


def tries_csv(report: QuantizeReport) -> str:
    """A line per try below the names of its columns; empty where a value is unknown."""
    lines = [",".join(COLUMNS)]
    for variant, search in report.searches.items():
        lines += [",".join(_cells(variant, one)) for one in search.tries]
    return "\n".join(lines) + "\n"


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
