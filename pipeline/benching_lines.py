"""What the figures of a benchmark draw: each thing that was measured, and how its lines look.

A subject has one colour in all figures, a provider one mark, a number of threads one kind of line.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.figures import COLORS
from serving.bench_report import BenchReport, Measured
from serving.measuring.client import TORCH
from serving.timing import Timing

__all__ = ["Style", "Thing", "batch_sizes", "colors", "ordered", "styles", "things"]

PALETTE = (*COLORS[:-1], "#2a9d9a", "#cf62a0", "#8f982c", "#5b7fa3", COLORS[-1])
"""Brown comes last: it is the hardest to see on a dark page."""
MARKERS = "oD^vP"
"""Of ONNX Runtime's providers; what it does not run is a square."""
Style = Literal["-", "--", ":", "-."]
FEWER: tuple[Style, ...] = ("--", ":", "-.")
"""Lines of fewer threads; those of the most are solid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """A subject on a provider, with each number of threads that it was measured with."""

    name: str
    color: str
    marker: str
    by_threads: Mapping[int, Measured]

    @property
    def best(self) -> Measured:
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


def things(bench: BenchReport) -> list[Thing]:
    """All that has rows; what differs in more than threads is another thing."""
    found: dict[tuple[str, str, str], dict[int, Measured]] = {}
    for one in bench.measured:
        if one.rows:
            key = (one.subject, one.provider, one.settings.told())
            found.setdefault(key, {})[one.settings.threads] = one
    providers = dict.fromkeys(provider for _, provider, _ in found if provider != TORCH)
    markers = {name: MARKERS[index % len(MARKERS)] for index, name in enumerate(providers)}
    by_subject = colors(bench)
    return [
        Thing(
            name=" ".join(filter(None, [next(iter(by_threads.values())).label, told])),
            color=by_subject[subject],
            marker=markers.get(provider, "s"),
            by_threads=dict(sorted(by_threads.items())),
        )
        for (subject, provider, told), by_threads in found.items()
    ]


def colors(bench: BenchReport) -> dict[str, str]:
    """A colour by subject and by label, those of ONNX Runtime first, as in figures of parity."""
    measured = sorted(bench.measured, key=lambda one: one.provider == TORCH)
    labels = [one.label for one in measured] + [one.subject for one in bench.cold_starts]
    subjects = {label: label.partition(" · ")[0] for label in labels}
    numbers = {name: number for number, name in enumerate(dict.fromkeys(subjects.values()))}
    names = {**subjects, **{subject: subject for subject in numbers}}
    return {name: PALETTE[numbers[subject] % len(PALETTE)] for name, subject in names.items()}


def styles(drawn: Sequence[Thing]) -> dict[int, Style]:
    """The kind of line of each number of threads, from the fewest to the most."""
    counts = sorted({count for thing in drawn for count in thing.by_threads})
    fewer = {count: FEWER[index % len(FEWER)] for index, count in enumerate(counts[:-1])}
    return {count: fewer.get(count, "-") for count in counts}


def batch_sizes(bench: BenchReport) -> dict[int, list[Timing]]:
    """All timings of each batch size, from the smallest and from the quickest."""
    found: dict[int, list[Timing]] = {}
    for timing in sorted(_timings(bench), key=lambda one: (one.batch_size, one.p50_ms)):
        found.setdefault(timing.batch_size, []).append(timing)
    return found


def ordered(one: Measured) -> list[Timing]:
    """The timings of one process, from the smallest batch."""
    return sorted((row.timing for row in one.rows), key=lambda timing: timing.batch_size)


def _timings(bench: BenchReport) -> Iterator[Timing]:
    return (row.timing for one in bench.measured for row in one.rows)
