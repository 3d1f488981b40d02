"""The figures of a benchmark, for the report and for MLflow alike.

A subject has one colour in all of them, a provider one mark, a number of threads one kind of line.
A legend beside the panels names the lines, in the order in which they end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from pipeline.records.benchmark import BenchmarkReport, threads_of
from pipeline.tracking.figures import COLORS, INK, PALE, STYLE, logarithmic
from serving.measuring.report import BenchReport, ColdStart, Measurement
from serving.measuring.subject import TORCH
from serving.measuring.timing import Timing

PALETTE = (*COLORS[:-1], "#2a9d9a", "#cf62a0", "#8f982c", "#5b7fa3", COLORS[-1])
"""Brown comes last: it is the hardest to see on a dark page."""
MARKERS = "oD^vP"
"""Of ONNX Runtime's providers; what it does not run is a square."""
Style = Literal["-", "--", ":", "-."]
FEWER: tuple[Style, ...] = ("--", ":", "-.")
"""Lines of fewer threads; those of the most are solid."""
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
NINES = [float(-np.log10(1 - part)) for part in QUANTILES.values()]
SLOWEST = 3.7
"""Where the slowest call is drawn, past the three nines of p99.9."""
ENOUGH_CALLS = 1000
"""Of fewer calls p99.9 is near the slowest one, and is drawn hollow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnSubject:
    """A subject on a provider, with each number of threads that it was measured with."""

    name: str
    color: str
    marker: str
    by_threads: Mapping[int, Measurement]

    @property
    def best(self) -> Measurement:
        """With the threads that gave the most rows per second."""
        return max(self.by_threads.values(), key=lambda one: one.fastest.rows_per_second)

    def quickest(self, batch_size: int) -> Timing | None:
        """A batch size with the threads of the lowest median; None where it was not measured."""
        rows = [one.row(batch_size) for one in self.by_threads.values()]
        timings = [row.timing for row in rows if row]
        return min(timings, key=lambda timing: timing.p50_ms, default=None)

    def gains(self, fewest: int, most: int) -> list[tuple[int, float]]:
        """By batch size, how many times as many rows per second `most` threads answer."""
        few, many = self.by_threads.get(fewest), self.by_threads.get(most)
        if few is None or many is None or few is many:
            return []
        return [
            (timing.batch_size, timing.rows_per_second / beside.timing.rows_per_second)
            for timing in ordered(many)
            if (beside := few.row(timing.batch_size))
        ]


def drawn_subjects(bench: BenchReport) -> list[DrawnSubject]:
    """All that has rows; what differs in more than threads is drawn as another subject."""
    found: dict[tuple[str, str, str], dict[int, Measurement]] = {}
    for one in bench.measured:
        if one.rows:
            key = (one.subject, one.provider, one.settings.describe())
            found.setdefault(key, {})[one.settings.threads] = one
    providers = dict.fromkeys(provider for _, provider, _ in found if provider != TORCH)
    markers = {name: MARKERS[index % len(MARKERS)] for index, name in enumerate(providers)}
    by_subject = colors(bench)
    return [
        DrawnSubject(
            name=" ".join(filter(None, [next(iter(by_threads.values())).label, settings])),
            color=by_subject[subject],
            marker=markers.get(provider, "s"),
            by_threads=dict(sorted(by_threads.items())),
        )
        for (subject, provider, settings), by_threads in found.items()
    ]


def colors(bench: BenchReport) -> dict[str, str]:
    """A colour by subject and by label, those of ONNX Runtime first, as in figures of parity."""
    measured = sorted(bench.measured, key=lambda one: one.provider == TORCH)
    labels = [one.label for one in measured] + [one.subject for one in bench.cold_starts]
    subjects = {label: label.partition(" · ")[0] for label in labels}
    numbers = {name: number for number, name in enumerate(dict.fromkeys(subjects.values()))}
    names = {**subjects, **{subject: subject for subject in numbers}}
    return {name: PALETTE[numbers[subject] % len(PALETTE)] for name, subject in names.items()}


def styles(drawn: Sequence[DrawnSubject]) -> dict[int, Style]:
    """The kind of line of each number of threads, from the fewest to the most."""
    counts = sorted({count for one in drawn for count in one.by_threads})
    fewer = {count: FEWER[index % len(FEWER)] for index, count in enumerate(counts[:-1])}
    return {count: fewer.get(count, "-") for count in counts}


def batch_sizes(bench: BenchReport) -> dict[int, list[Timing]]:
    """All timings of each batch size, from the smallest and from the quickest."""
    found: dict[int, list[Timing]] = {}
    timings = [row.timing for one in bench.measured for row in one.rows]
    for timing in sorted(timings, key=lambda one: (one.batch_size, one.p50_ms)):
        found.setdefault(timing.batch_size, []).append(timing)
    return found


def ordered(one: Measurement) -> list[Timing]:
    """The timings of one process, from the smallest batch."""
    return sorted((row.timing for row in one.rows), key=lambda timing: timing.batch_size)


def figures_of(report: BenchmarkReport) -> dict[str, Figure]:
    """The figures of what was measured, by name."""
    found: dict[str, Figure] = {}
    if any(one.rows for one in report.bench.measured):
        found["latency_throughput"] = latency_throughput(report)
        found["scaling"] = scaling(report)
        found["latency_distribution"] = latency_distribution(report)
    if report.bench.cold_starts:
        found["cold_start"] = cold_start_bars(report)
    return found


@mpl.rc_context(STYLE)
def latency_throughput(report: BenchmarkReport) -> Figure:
    """Draw latency against throughput of each subject over batch sizes, both logarithmic.

    Up and to the left is better. Pale lines join what had the same batch size; the line of the best
    number of threads is the strongest.
    """
    drawn = drawn_subjects(report.bench)
    kinds = styles(drawn)
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    axes = figure.subplots()
    for subject in drawn:
        for threads, one in subject.by_threads.items():
            _sweep(axes, subject, one, kinds[threads])
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="median latency of one batch, ms", ylabel="rows per second")
    axes.margins(x=0.08, y=0.08)
    _join_batches(axes, report.bench)
    for axis in (axes.xaxis, axes.yaxis):
        logarithmic(axis)
    _thread_legend(axes, kinds)
    _subject_legend(figure, [(_last(one).rows_per_second, one) for one in drawn])
    return figure


@mpl.rc_context(STYLE)
def scaling(report: BenchmarkReport) -> Figure:
    """Draw rows per second over the batch size, and what more threads add to it.

    On the left each subject with the threads that were the best; on the right the most threads over
    the fewest, where the upper line is as many times as there are threads.
    """
    drawn = drawn_subjects(report.bench)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    rates, gains = figure.subplots(1, 2)
    _rates(rates, drawn)
    _gains(gains, drawn)
    for axes in (rates, gains):
        if axes.axison:
            _over_batches(axes, list(batch_sizes(report.bench)))
    _subject_legend(figure, [(_last(one).rows_per_second, one) for one in drawn])
    return figure


@mpl.rc_context(STYLE)
def latency_distribution(report: BenchmarkReport) -> Figure:
    """Draw the latency of a batch of one, or the smallest that was measured, over percentiles.

    Each step to the right leaves out nine of ten calls that were left; of each subject the threads
    with the lowest median. p99.9 of fewer than 1000 calls is hollow.
    """
    drawn = drawn_subjects(report.bench)
    size = min(batch_sizes(report.bench))
    quickest = [(one, timing) for one in drawn if (timing := one.quickest(size))]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    axes = figure.subplots()
    for one, timing in quickest:
        _tail(axes, one, timing)
    axes.set(yscale="log", xlim=(0.2, SLOWEST + 0.1), ylabel=f"latency at batch {size}, ms")
    axes.set_xticks([*NINES, SLOWEST], [*QUANTILES, "slowest"])
    axes.set_xlabel("percentile of the calls")
    logarithmic(axes.yaxis)
    _subject_legend(figure, [(timing.max_ms, one) for one, timing in quickest])
    return figure


@mpl.rc_context(STYLE)
def cold_start_bars(report: BenchmarkReport) -> Figure:
    """Draw the median time from starting a process to its first answer, the shortest on top.

    Dots are the single runs.
    """
    cold = sorted(report.bench.cold_starts, key=lambda one: one.p50_ms)
    color = colors(report.bench)
    figure = Figure(figsize=(10, 0.9 + 0.42 * max(len(cold), 2)), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(cold):
        _bar(axes, place, one, color[one.subject])
    axes.set_yticks(range(len(cold)), [one.subject for one in cold])
    axes.set(xlabel="ms from starting a process to its first answer", xlim=(0, None))
    axes.set_ylim(len(cold) - 0.4, -0.6)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    return figure


def _last(one: DrawnSubject) -> Timing:
    """The largest batch with the threads that gave the most rows per second."""
    return ordered(one.best)[-1]


def _sweep(axes: Axes, subject: DrawnSubject, one: Measurement, style: Style) -> None:
    timings = ordered(one)
    best = one is subject.best
    axes.plot(
        [timing.p50_ms for timing in timings],
        [timing.rows_per_second for timing in timings],
        color=subject.color,
        marker=subject.marker,
        linestyle=style,
        markersize=5 if best else 4,
        markerfacecolor=subject.color if best else "none",
        linewidth=1.6 if best else 1,
        alpha=1 if best else 0.6,
        label=f"{subject.name}, {threads_of(one.settings.threads)}",
    )


def _join_batches(axes: Axes, bench: BenchReport) -> None:
    """Join the marks of each batch size, and write it beside the quickest."""
    for number, (size, timings) in enumerate(batch_sizes(bench).items()):
        marks = [(timing.p50_ms, timing.rows_per_second) for timing in timings]
        across, up = zip(*marks, strict=True)
        axes.plot(across, up, color=PALE, linewidth=0.8, alpha=0.6, zorder=0)
        axes.annotate(
            str(size) if number else f"batch {size}",
            marks[0],
            xytext=(-5, 5),
            textcoords="offset points",
            ha="right",
            size=8,
        )


def _rates(axes: Axes, drawn: Iterable[DrawnSubject]) -> None:
    for one in drawn:
        timings = ordered(one.best)
        up = [timing.rows_per_second for timing in timings]
        _over_sizes(axes, one, [timing.batch_size for timing in timings], up)
    axes.set(title="Rows per second", xscale="log", yscale="log")
    logarithmic(axes.yaxis)


def _gains(axes: Axes, drawn: Sequence[DrawnSubject]) -> None:
    counts = sorted({count for one in drawn for count in one.by_threads})
    fewest, most = counts[0], counts[-1]
    levels = [1, most / fewest]
    for one in drawn:
        found = one.gains(fewest, most)
        if found:
            sizes, gains = zip(*found, strict=True)
            _over_sizes(axes, one, sizes, gains)
            levels += gains
    if len(levels) == 2:
        axes.set_axis_off()
        message = f"measured with {threads_of(fewest)} alone"
        axes.text(0.5, 0.5, message, ha="center", va="center", transform=axes.transAxes)
        return
    for level in levels[:2]:
        axes.axhline(level, color=PALE, linestyle="--", linewidth=1, zorder=0)
    axes.set(title=f"{most} threads over {fewest}", ylabel="times as many rows per second")
    axes.set(xscale="log", ylim=(0.9 * min(levels), 1.05 * max(levels)))
    axes.yaxis.set_major_locator(MaxNLocator(6))


def _over_sizes(axes: Axes, one: DrawnSubject, sizes: Sequence[int], up: Sequence[float]) -> None:
    axes.plot(sizes, up, color=one.color, marker=one.marker, markersize=4.5, label=one.name)


def _over_batches(axes: Axes, sizes: Sequence[int]) -> None:
    """Put a tick at each batch size."""
    axes.set(xlabel="batch size")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))


def _tail(axes: Axes, one: DrawnSubject, timing: Timing) -> None:
    up = [timing.p50_ms, timing.p90_ms, timing.p99_ms, timing.p999_ms]
    mark: dict[str, Any] = {"color": one.color, "marker": one.marker, "markersize": 5}
    axes.plot(NINES, up, **mark, markevery=slice(3), label=one.name)
    face = "none" if timing.num_calls < ENOUGH_CALLS else one.color
    axes.plot(NINES[-1], up[-1], **mark, markerfacecolor=face)
    ends = [NINES[-1], SLOWEST], [up[-1], timing.max_ms]
    axes.plot(*ends, color=one.color, linestyle=":", marker="_", markevery=[1])


def _bar(axes: Axes, place: int, one: ColdStart, color: str) -> None:
    axes.barh(place, one.p50_ms, height=0.66, color=color, alpha=0.35)
    # Runs are apart in height, or the same times would hide each other.
    heights = place + np.linspace(-0.2, 0.2, len(one.runs_ms))
    axes.plot(one.runs_ms, heights, color=color, marker="o", markersize=3.5, linestyle="none")
    axes.annotate(
        f"median {one.p50_ms:,.0f} ms",
        (max((one.p50_ms, *one.runs_ms)), place),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        size=8.5,
    )


def _subject_legend(figure: Figure, ends: Sequence[tuple[float, DrawnSubject]]) -> None:
    """Name the lines beside the panels: from the one that ends highest to the lowest."""
    handles = [
        Line2D([], [], color=one.color, marker=one.marker, markersize=4.5, label=one.name)
        for _, one in sorted(ends, key=lambda end: (-end[0], end[1].name))
    ]
    figure.legend(handles=handles, loc="outside right upper", labelcolor="linecolor")


def _thread_legend(axes: Axes, kinds: Mapping[int, Style]) -> None:
    """Explain the kinds of lines, where there are several."""
    proxies = [
        Line2D([], [], color=INK, linestyle=kind, linewidth=1.2, label=threads_of(count))
        for count, kind in kinds.items()
    ]
    if len(proxies) > 1:
        axes.legend(handles=proxies, loc="lower right", handlelength=3)
