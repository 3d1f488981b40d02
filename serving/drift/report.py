"""What has moved, for programs and in lines for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from serving.drift.reference import Side

__all__ = ["MOVED", "STRONGLY_MOVED", "DriftReport", "QuantityDrift", "Verdict"]

Verdict = Literal["none", "moved", "strongly moved"]

MOVED, STRONGLY_MOVED = 0.1, 0.25
"""The usual limits of the population stability index: N. Siddiqi, Credit Risk Scorecards, 2006."""
MOST_LINES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantityDrift:
    """How one quantity of the rows is distributed beside the reference."""

    name: str
    of: Side
    psi: float
    """The population stability index; see `serving.drift.stability`."""
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
        """Those that have moved, the most moved first."""
        found = [one for one in self.quantities if one.verdict != "none"]
        return tuple(sorted(found, key=lambda one: -one.psi))

    def lines(self) -> list[str]:
        """What to warn of; one line that says so if there is nothing."""
        moved = self.moved
        if not moved:
            return [self._nothing()]
        lines = [self._line(one) for one in moved[:MOST_LINES]]
        more = moved[MOST_LINES:]
        return [*lines, f"and {_named(more)}"] if more else lines

    def _line(self, one: QuantityDrift) -> str:
        return (
            f"{one.of} {one.verdict}: {one.name} PSI {one.psi:.2f} over {self.rows:,} rows "
            f"(limit {one.limit:.2g}); {one.most}"
        )

    def _nothing(self) -> str:
        if not self.rows or not self.quantities:
            return "nothing to hold against the training data"
        told = (
            f"no drift from {self.data} in {len(self.quantities)} quantities of {self.rows:,} rows"
        )
        least = max(one.limit for one in self.quantities)
        if least > STRONGLY_MOVED:
            told += f"; so few show no PSI below {least:.2g}"
        return told


def _named(moved: Sequence[QuantityDrift]) -> str:
    if len(moved) > MOST_LINES:
        return f"{len(moved)} more quantities moved"
    return f"{', '.join(one.name for one in moved)} moved too"
