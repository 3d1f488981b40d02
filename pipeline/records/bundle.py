"""What `ferry bundle` shipped: `metrics/E/bundle.json`."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["BundleReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleReport:
    """The variant that was chosen, and why."""

    experiment: str
    variant: str
    reason: str
    goal: str
    gains: Mapping[str, float]
    """How many times better than fp32 each variant that passed is, by the goal."""
    bytes: int
    """Of the whole folder."""
    digest: str
    """The identity of the bundle, as its manifest has it."""
