"""What a drift check has counted so far, which a run keeps beside its shards."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DriftState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftState:
    """What a check has counted, for a run that goes on later; a few hundred numbers at most."""

    reference_sha256: str
    """Of the reference that the bins are of."""
    rows: int
    counts: Mapping[str, tuple[int, ...]]
    """Rows in each bin, by the name of the quantity."""
