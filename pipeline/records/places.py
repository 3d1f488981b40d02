"""How a model answers in other places, beside what it answers on this kind of processor.

`python benchmarks/places.py` measures it, of 1,000 test rows, and writes `reports/places/E.json`,
which the page shows; with `--publish docs/results` also `docs/results/places/E.json`. What a device
measured when a bundle was deployed to it, of the golden rows, is beside them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.records import read
from serving.console import DASH, number
from serving.files import write_json

COMMAND = "python benchmarks/places.py"
X86, PLAIN_X86 = "x86 all", "x86 none"
"""This kind of processor at the two ends of ONNX Runtime's optimization."""
NO_VNNI = "x86 without VNNI, emulated"
ARM = "arm64, emulated"
WEB = "web (Chromium)"
HOST_C, CORTEX_M4 = "C", "C on Cortex-M4, emulated"
PLACES = (X86, PLAIN_X86, NO_VNNI, ARM, WEB, HOST_C, CORTEX_M4)
"""In the order that they are shown in; devices, by their names, come after them."""
VARIANTS = ("fp32", "fp16", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceReport:
    """The answers of one model in one place, row by row beside those that the place is held to."""

    variant: str
    place: str
    """For instance "x86 none", "arm64, emulated", or the name of a device."""
    runtime: str
    """What ran the model there, for instance "onnxruntime 1.27.0"."""
    machine: str
    """The processor, or what emulates it."""
    sha256: str
    """Of the ONNX file; of C the one that it was made of."""
    rows: int
    equal: int | None
    """Rows that are decided alike; None for a model that tells no class."""
    near_ties: int
    """Rows decided otherwise whose two best scores lie within the bundle's tie."""
    flips: int
    """Rows decided otherwise that are no near-ties."""
    largest_diff: float
    diff_of: str
    """The output whose values differ by that, for instance "probabilities"."""
    p50_ms: float | None
    """Median of one row's latency; None where the place is emulated, which says nothing of it."""
    bytes: int
    """Of the model's file; of C the flash that a Cortex-M4 needs."""
    command: str
    """What measures this again."""
    revision: str
    """Of the sources that measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """All places where an experiment's variants were measured: `reports/places/E.json`."""

    experiment: str
    reports: tuple[PlaceReport, ...]


def read_places(folder: Path) -> tuple[Places, ...]:
    """Read all files of a folder, in the order of their names."""
    return tuple(read(Places, path, COMMAND) for path in sorted(folder.glob("*.json")))


def write_places(folder: Path, experiment: str, measured: Sequence[PlaceReport]) -> Path:
    """Write what was measured of an experiment, and return its file.

    Older reports stay that are about the same file of their variant, in other places.
    """
    path = folder / f"{experiment}.json"
    files = {one.variant: one.sha256 for one in measured}
    again = {(one.variant, one.place) for one in measured}
    before = read(Places, path, COMMAND).reports if path.exists() else ()
    kept = [
        one
        for one in before
        if files.get(one.variant, one.sha256) == one.sha256
        and (one.variant, one.place) not in again
    ]
    found = sorted((*kept, *measured), key=_order)
    write_json(path, Places(experiment=experiment, reports=tuple(found)))
    return path


def _order(report: PlaceReport) -> tuple[int, int, str]:
    known = ((report.variant, VARIANTS), (report.place, PLACES))
    variant, place = (order.index(name) if name in order else len(order) for name, order in known)
    return variant, place, report.place


def place_table(published: Iterable[Places]) -> Iterator[Sequence[str]]:
    """The header and a row for each model, variant and place."""
    yield "model", "variant", "place", "decided alike", "largest diff", "p50", "size", "again"
    for one in published:
        for report in one.reports:
            yield (
                f"`{one.experiment}`",
                report.variant,
                report.place,
                decided_alike(report),
                largest_diff(report),
                number(report.p50_ms, ".3f", " ms"),
                f"{report.bytes / 1024:,.1f} KiB",
                f"`{report.command}`",
            )


def edge_table(published: Iterable[Places]) -> Iterator[Sequence[str]]:
    """The same in short: a row for each model and variant, a column for each place."""
    found = {(one.experiment, r.variant, r.place): r for one in published for r in one.reports}
    places = dict.fromkeys(place for _, _, place in found)
    yield "real flips in 1,000 rows", *places
    for experiment, variant in dict.fromkeys(key[:2] for key in found):
        cells = (found.get((experiment, variant, place)) for place in places)
        yield f"`{experiment}` {variant}", *(str(one.flips) if one else DASH for one in cells)


def decided_alike(report: PlaceReport) -> str:
    """For instance "1,000 of 1,000", or "998 of 1,000: 1 flip, 1 near-tie"."""
    if report.equal is None:
        return DASH
    others = [(report.flips, "flip"), (report.near_ties, "near-tie")]
    told = [f"{count} {word}{'s' if count > 1 else ''}" for count, word in others if count]
    counted = f"{report.equal:,} of {report.rows:,}"
    return f"{counted}: {', '.join(told)}" if told else counted


def largest_diff(report: PlaceReport) -> str:
    """For instance "3.2e-07", or "0" for the very same bits."""
    return f"{report.largest_diff:.1e}" if report.largest_diff else "0"
