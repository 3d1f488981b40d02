"""The places where the models that lie here were measured, for the page."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.config import layout
from pipeline.records import read
from pipeline.records.places import COMMAND, Places
from serving.bundles.bundle import MODEL
from serving.files import sha256_of_file


def places_here(experiments: Iterable[str], root: Path = Path()) -> Iterator[Places]:
    """What `benchmarks/places.py` and devices measured of the very files that lie below `root`.

    A variant is among them while it is in `models/E`, or in a bundle of the experiment. Raises
    IntegrityError for a file that is not what the two write.
    """
    devices = [
        read(Places, path, "ferry deploy")
        for path in sorted((root / layout.DEVICES).glob("*.json"))
    ]
    for name in experiments:
        path = root / layout.places(name)
        found = [read(Places, path, COMMAND)] if path.exists() else []
        found += [one for one in devices if one.experiment == name]
        reports = [report for one in found for report in one.reports]
        there = {sha256_of_file(file) for file in _files(name, root)} if reports else set()
        known = tuple(report for report in reports if report.sha256 in there)
        if known:
            yield Places(experiment=name, reports=known)


def _files(experiment: str, root: Path) -> Iterator[Path]:
    yield from (path for path in layout.models(experiment, root).values() if path.is_file())
    bundles = root / layout.bundle(experiment)
    for folder in (bundles, *sorted(bundles.parent.glob(f"{experiment}.*"))):
        if (folder / MODEL).is_file():
            yield folder / MODEL
