"""What the report's page shows of speed: a section of each experiment, and the machines."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from pipeline.records.benchmark import BenchmarkReport, over_eager
from pipeline.stages.results import ExperimentResults
from pipeline.tracking import speed_figures
from pipeline.tracking.figures import as_svg
from serving.machine.environment import Environment
from serving.measuring.pairing import PairedRatio, Verdict, verdict
from serving.measuring.report import BenchReport, BenchRow, Measurement
from serving.measuring.subject import TORCH

SPEED_TEMPLATE = "report_speed.html.j2"
"""Beside the page's own, which includes it."""
CLAIMED_SIZES = (1, 64)
"""The batch sizes that the section opens with; without one, the smallest and the largest."""
THROUGHPUT = (
    "Up and to the left is better; pale lines join what had the same batch size. The strong line "
    "of each is that of the threads that gave the most rows per second."
)
SCALING = (
    "Left: each with the threads that were the best. Right: what the threads gain, from none at "
    "the lower line to all of them at the upper one."
)
TAILS = (
    "Each step to the right leaves out nine of ten calls that were left. p99.9 of fewer than 1000 "
    "calls is near the slowest one, and hollow."
)
COLD = (
    "From starting a process to its first answer, imports included and files in the page cache. "
    "Dots are single runs."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """How many times as fast as PyTorch eager ONNX Runtime's fp32 is, with one thread each."""

    batch_size: int
    ratio: PairedRatio
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure and what to look for in it."""

    svg: str
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A row of the table, with the process that it was measured in."""

    process: Measurement
    row: BenchRow
    first: bool
    """Whether it is the first of its process."""
    verdict: Verdict | None
    """None where it was not compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What the section shows."""

    bench: BenchReport
    claims: tuple[Claim, ...]
    warnings: tuple[str, ...]
    """Why the figures are to be doubted."""
    drawings: tuple[Drawing, ...]
    lines: tuple[Line, ...]
    skipped: tuple[str, ...]
    """What was not measured, with the reason."""

    @property
    def node_share(self) -> float | None:
        """The least part of a model's nodes, 0 to 1, that ran where it was asked to."""
        return min((one.proof.share for one in self.bench.measured if one.proof), default=None)

    @property
    def time_share(self) -> float | None:
        """The least part of a model's time that was spent there."""
        return min((one.share.share for one in self.bench.measured if one.share), default=None)

    @property
    def num_unsteady(self) -> int:
        """Rows whose warm-up was cut off."""
        return sum(not line.row.timing.steady for line in self.lines)

    @property
    def counts_energy(self) -> bool:
        """Whether anything counted the energy."""
        return any(line.row.millijoules_per_row is not None for line in self.lines)

    @property
    def uses_gpu(self) -> bool:
        """Whether any process held memory of a GPU."""
        return any(one.gpu_memory_bytes for one in self.bench.measured)


def speed_of(measured: ExperimentResults) -> Speed | None:
    """Gather the section of an experiment; None before its benchmark has run."""
    report = measured.benchmark
    if report is None:
        return None
    message = measured.parity.skipped if measured.parity else {}
    unmade = {name: why for name, why in report.skipped.items() if name not in message}
    return Speed(
        bench=report.bench,
        claims=tuple(_claims(report)),
        warnings=tuple(_warnings(report.bench)),
        drawings=tuple(_drawings(report)),
        lines=tuple(_lines(report.bench)),
        skipped=(
            *(f"{name}: not made: {why}" for name, why in unmade.items()),
            *_skipped(report.bench),
            *_skipped_batches(report.bench),
        ),
    )


def _claims(report: BenchmarkReport) -> Iterator[Claim]:
    ratios = dict(over_eager(report))
    known = [size for size in CLAIMED_SIZES if size in ratios]
    if len(known) < len(CLAIMED_SIZES):
        known = sorted({*known, *(min(ratios), max(ratios))}) if ratios else []
    for size in known:
        yield Claim(batch_size=size, ratio=ratios[size], verdict=verdict(ratios[size]))


def _warnings(bench: BenchReport) -> Iterator[str]:
    if bench.partial:
        yield "The benchmark was interrupted: only what was measured until then is here."
    if bench.load.warning:
        yield f"While it was measured, {bench.load.warning}."


def _drawings(report: BenchmarkReport) -> Iterator[Drawing]:
    def drawing(figure: Figure, title: str, caption: str) -> Drawing:
        return Drawing(svg=as_svg(figure, f"{report.experiment}: {title}"), caption=caption)

    if any(one.rows for one in report.bench.measured):
        throughput = speed_figures.latency_throughput(report)
        yield drawing(throughput, "latency against throughput", THROUGHPUT)
        yield drawing(speed_figures.scaling(report), "scaling with batch and threads", SCALING)
        tails = speed_figures.latency_distribution(report)
        yield drawing(tails, "distribution of latencies", TAILS)
    if report.bench.cold_starts:
        yield drawing(speed_figures.cold_start_bars(report), "cold starts", COLD)


def _lines(bench: BenchReport) -> Iterator[Line]:
    for one in bench.measured:
        for number, row in enumerate(one.rows):
            found = verdict(row.speedup) if row.speedup else None
            yield Line(process=one, row=row, first=number == 0, verdict=found)


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
