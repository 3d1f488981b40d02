"""How the quantities of the training data are distributed: `reference.json` of a bundle."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from serving.errors import IntegrityError
from serving.files import dump_json, parse_json, read_record

REFERENCE = "reference.json"
SCHEMA_VERSION = 2

Side = Literal["inputs", "predictions"]
AnswerKind = Literal["classifier", "reconstruction", "other"]
"""As `serving.model.Model.kind`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number that each row has, over the rows of the reference."""

    of: Side
    edges: tuple[float, ...]
    """Between the bins, ascending; a bin is over one edge, and up to the next one."""
    counts: tuple[int, ...]
    """Rows in each bin; there is one more than edges, and one for rows that have no number."""
    low: float | None
    high: float | None
    """The least and the greatest number; None where there is none."""

    @property
    def rows(self) -> int:
        """All of them."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a bundle knows of the data that its model was trained on."""

    schema_version: int = SCHEMA_VERSION
    data: str
    """What it is, for instance "mnist"."""
    kind: AnswerKind
    quantities: Mapping[str, Quantity]
    classes: tuple[int, ...]
    """How many rows the model gave each class; () where there are no classes."""
    known_words: str
    """The words of a text model's vocabulary with blanks between them; "" for any other."""

    @property
    def rows(self) -> int:
        """The rows of inputs that were measured."""
        return max((one.rows for one in self.quantities.values()), default=0)

    def content(self) -> bytes:
        """The bytes of the file."""
        return dump_json(self).encode()


def read_reference(content: bytes, where: str) -> Reference:
    """Read the file, which `where` names; IntegrityError for what ferry cannot have written."""
    raw = parse_json(content, where)
    check_schema(raw, where, SCHEMA_VERSION)
    reference = read_record(Reference, raw, where)
    for name, one in reference.quantities.items():
        _check(one, f"{where}.quantities.{name}")
    _check_counts(reference.classes, f"{where}.classes")
    return reference


def check_schema(raw: object, where: str, known: int) -> None:
    """Refuse a file of a bundle that is of another schema, before its other keys are looked at."""
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version != known:
        raise IntegrityError(
            f"{where} has schema version {version}, this ferry reads {known}; make the bundle anew "
            f"with `ferry bundle`"
        )


def _check(one: Quantity, where: str) -> None:
    if len(one.counts) != len(one.edges) + 2:
        raise IntegrityError(
            f"{where} has {len(one.counts)} counts for {len(one.edges)} edges, not two more"
        )
    ascending = all(low < high for low, high in zip(one.edges, one.edges[1:], strict=False))
    if not ascending or not all(map(math.isfinite, one.edges)):
        raise IntegrityError(f"{where}.edges are not finite numbers in ascending order")
    _check_counts(one.counts, f"{where}.counts")
    if one.edges and (one.low is None or one.high is None or not one.low <= one.high):
        raise IntegrityError(f"{where} is of numbers from {one.low} to {one.high}")


def _check_counts(counts: Sequence[int], where: str) -> None:
    if any(count < 0 for count in counts) or (counts and not sum(counts)):
        raise IntegrityError(f"{where} are no counts of rows: {list(counts)[:10]}")
