"""Hold the rows of a run against the reference of its bundle, batch by batch.

check = open_check(Path("bundles/mnist-cnn"))
check.add(images, answer(model, ids, images).columns)
check.report().lines()  # ["inputs moved: mean brightness PSI 0.17 over 1,000 rows (limit 0.1)"]

A run keeps what its check has counted, its `DriftState`, beside its shards; the `DriftReport` says
what has moved, for programs and in lines for people.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from serving.bundles.bundle import open_bundle
from serving.bundles.reference import REFERENCE, Quantity, Reference, Side
from serving.drift.quantities import (
    CLASS,
    ClassBins,
    count_in_bins,
    measure_answers,
    measure_rows,
    population_stability,
    psi_of_chance,
)
from serving.errors import IntegrityError, UsageError
from serving.files import sha256_of_bytes
from serving.runtime.tensors import Array

Counts = npt.NDArray[np.int64]
Verdict = Literal["none", "moved", "strongly moved"]
MOVED, STRONGLY_MOVED = 0.1, 0.25
"""The usual limits of the population stability index: N. Siddiqi, Credit Risk Scorecards, 2006."""
MOST_LINES = 5
FALSE_ALARMS = 0.001
"""The share of reports on rows of the same distribution in which chance alone moves something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftState:
    """What a check has counted, for a run that goes on later; a few hundred numbers at most."""

    reference_sha256: str
    """The sum of the reference that the bins are from."""
    rows: int
    counts: Mapping[str, tuple[int, ...]]
    """Rows in each bin, by the name of the quantity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantityDrift:
    """How one quantity of the rows is distributed beside the reference."""

    name: str
    of: Side
    psi: float
    """The population stability index; see `serving.drift.quantities`."""
    limit: float
    """What it is over, or would have to be to have moved: a usual limit, or what chance may give
    with so few rows where that is more."""
    verdict: Verdict
    most: str
    """The bin that has moved most, with its share of the reference and of the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReport:
    """How some rows, and the answers to them, are distributed beside the reference."""

    data: str
    """What the reference is of."""
    rows: int
    quantities: tuple[QuantityDrift, ...]

    @property
    def moved(self) -> tuple[QuantityDrift, ...]:
        """The quantities that have moved, the most moved first."""
        found = [one for one in self.quantities if one.verdict != "none"]
        return tuple(sorted(found, key=lambda one: -one.psi))

    def lines(self) -> list[str]:
        """What to warn of; one line that says so if there is nothing."""
        moved = self.moved
        if not moved:
            return [self._nothing()]
        lines = [
            f"{one.of} {one.verdict}: {one.name} PSI {one.psi:.2f} over {self.rows:,} rows "
            f"(limit {one.limit:.2g}); {one.most}"
            for one in moved[:MOST_LINES]
        ]
        more = [one.name for one in moved[MOST_LINES:]]
        if len(more) > MOST_LINES:
            lines.append(f"and {len(more)} more quantities moved")
        elif more:
            lines.append(f"and {', '.join(more)} moved too")
        return lines

    def _nothing(self) -> str:
        if not self.rows or not self.quantities:
            return "nothing to hold against the training data"
        message = (
            f"no drift from {self.data} in {len(self.quantities)} quantities of {self.rows:,} rows"
        )
        least = max(one.limit for one in self.quantities)
        if least > STRONGLY_MOVED:
            message += f"; so few show no PSI below {least:.2g}"
        return message


class DriftCheck:
    """Counts the rows of a run in the bins of a reference; to be used by one thread at a time."""

    def __init__(self, reference: Reference, labels: Sequence[str] = ()) -> None:
        """Nothing is counted yet; `labels` are the names of the classes, for messages."""
        self._reference = reference
        self._labels = labels
        self._sha256 = sha256_of_bytes(reference.content())
        self._known = frozenset(reference.known_words.split())
        self._classes = ClassBins(reference.classes)
        self._expected = {
            name: np.array(one.counts, np.int64) for name, one in reference.quantities.items()
        }
        if reference.classes:
            self._expected[CLASS] = self._classes.expected
        self._found = {name: np.zeros_like(one) for name, one in self._expected.items()}
        self._rows = 0

    def add(self, rows: Array, columns: Mapping[str, Array]) -> None:
        """Count rows and the answers to them; IntegrityError for those of another model."""
        if not len(rows):
            return
        measured = measure_rows(rows, self._known)
        measured |= measure_answers(self._reference.kind, columns)
        quantities = self._reference.quantities
        lacking = sorted(set(quantities) ^ set(measured))
        if lacking:
            raise IntegrityError(
                f"{REFERENCE} is of another model: {lacking[0]} is not in both the reference and "
                f"the rows"
            )
        for name, quantity in quantities.items():
            self._found[name] += count_in_bins(quantity.edges, measured[name])
        if CLASS in self._found:
            self._found[CLASS] += self._classes.count(columns["label_index"])
        self._rows += len(rows)

    def report(self) -> DriftReport:
        """How all rows that were added are distributed."""
        chance = FALSE_ALARMS / max(len(self._expected), 1)
        return DriftReport(
            data=self._reference.data,
            rows=self._rows,
            quantities=tuple(self._drift(name, chance) for name in self._expected),
        )

    def to_record(self) -> DriftState:
        """What has been counted so far."""
        return DriftState(
            reference_sha256=self._sha256,
            rows=self._rows,
            counts={name: tuple(counts.tolist()) for name, counts in self._found.items()},
        )

    def restore(self, state: DriftState) -> None:
        """Go on from the counts of another check; IntegrityError for those of another reference."""
        found = {name: np.array(counts, np.int64) for name, counts in state.counts.items()}
        shapes = {name: counts.shape for name, counts in found.items()}
        if state.reference_sha256 != self._sha256 or shapes != {
            name: counts.shape for name, counts in self._expected.items()
        }:
            raise IntegrityError(
                f"the rows counted so far were held against another {REFERENCE}: its sha256 is "
                f"{state.reference_sha256[:12]}…, not {self._sha256[:12]}…"
            )
        self._found, self._rows = found, state.rows

    def _drift(self, name: str, chance: float) -> QuantityDrift:
        expected, found = self._expected[name], self._found[name]
        quantity = self._reference.quantities.get(name)
        psi, bins = population_stability(expected, found) if self._rows else (0.0, 0)
        noise = psi_of_chance(bins, int(expected.sum()), self._rows, chance)
        verdict, limit = _verdict(psi, noise)
        return QuantityDrift(
            name=name,
            of=quantity.of if quantity else "predictions",
            psi=psi,
            limit=limit,
            verdict=verdict,
            most=self._most(quantity, expected, found) if self._rows else "",
        )

    def _most(self, quantity: Quantity | None, expected: Counts, found: Counts) -> str:
        """The bin whose share differs most, for a person."""
        then, now = expected / expected.sum(), found / found.sum()
        index = int(np.abs(now - then).argmax())
        classes = self._classes.classes
        if quantity is not None:
            name = _range(quantity, index)
        elif index == len(classes):
            name = "other classes"
        elif classes[index] < len(self._labels):
            name = self._labels[classes[index]]
        else:
            name = f"class {classes[index]}"
        return f"{name}: {then[index]:.1%} in training, {now[index]:.1%} here"


def open_check(bundle: Path) -> DriftCheck:
    """A check against the reference of a bundle; UsageError for a bundle or a file without one."""
    opened = open_bundle(bundle) if bundle.is_dir() else None
    reference = opened.reference() if opened else None
    if opened is None or reference is None:
        raise UsageError(
            f"{bundle} has no {REFERENCE} to hold its rows against; `ferry bundle` puts it into "
            f"the bundle of an experiment, and of an ONNX file with --reference ROWS"
        )
    return DriftCheck(reference, opened.manifest.labels)


def _verdict(psi: float, noise: float) -> tuple[Verdict, float]:
    """Whether it has moved, and the limit; what chance may give is never a move."""
    moved, strongly = max(MOVED, noise), max(STRONGLY_MOVED, noise)
    if psi > strongly:
        return "strongly moved", strongly
    return ("moved" if psi > moved else "none"), moved


def _range(quantity: Quantity, index: int) -> str:
    edges = quantity.edges
    if index == len(edges) + 1:
        return "no number"
    if not edges:
        return "any number"
    if index == 0:
        return f"up to {edges[0]:.4g}"
    if index == len(edges):
        return f"over {edges[-1]:.4g}"
    low, high = f"{edges[index - 1]:.4g}", f"{edges[index]:.4g}"
    return f"{high}" if low == high else f"{low} to {high}"
