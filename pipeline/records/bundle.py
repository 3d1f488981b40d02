"""What `ferry bundle` shipped: `metrics/E/bundle.json`."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["BundleReport", "Gain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """How many times better than fp32 a variant is, by the goal."""

    times: float
    """Of speeds the median of turns that both took."""
    low: float
    """Lower end of the 95 % bootstrap interval; sizes are exact, and all three are one number."""
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleReport:
    """The variant that was chosen, and why."""

    experiment: str
    variant: str
    reason: str
    goal: str
    gains: Mapping[str, Gain]
    """Of each variant that passed."""
    bytes: int
    """Of the whole folder."""
    digest: str
    """The identity of the bundle, as its manifest has it."""
