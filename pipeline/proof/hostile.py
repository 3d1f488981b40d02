"""Rows that no data set holds, and that a model in the world will be sent.

Every value at its end, a single bright pixel, noise, floats near zero, no text and far too much of
it, and a batch without rows. Each must be answered alike, or refused in clear words. What lies
beyond the rows' own range is asked and told, and fails nothing: a model that was calibrated on such
rows is right nowhere else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.proof.empty import ask_nothing
from pipeline.proof.rows import Rows
from pipeline.proof.sides import ModelSide, Side
from pipeline.records.parity import HostileRow
from serving.errors import FerryError
from serving.runtime.tensors import Array

SEED = 1
BRIGHT = 255
WIDER = 10
"""How many times as far from the middle of their range values lie that go beyond it."""
RANGE_ROWS = 4096
"""Rows that the range of floats is taken from: the first ones."""
MANY_WORDS = 10_000
BLANKS = " \t \n  "
ODD_TEXT = "\u200b\u202e naïve 中文 \U0001f600 ½ …"


@dataclass(frozen=True, slots=True)
class Spread:
    """A row of an input, [1, ...], and the least and the largest of each of its floats."""

    row: Array
    low: Array
    high: Array

    def at(self, part: "float | Array") -> Array:
        """Values at a part of the way from the least to the largest; 0 to 1 is within the range."""
        limits = np.finfo(self.row.dtype)
        low, high = self.low.astype(np.float64), self.high.astype(np.float64)
        values: Array = (low + part * (high - low)).clip(limits.min, limits.max)
        return values.astype(self.row.dtype)

    def holds(self, row: Array) -> bool:
        """Whether a row is within the range."""
        return bool(((row >= self.low) & (row <= self.high)).all())


Maker = Callable[[Spread, np.random.Generator], Array]


def hostile_rows(
    reference: Side,
    other: Side,
    rows: Rows,
    limits: Mapping[str, float],
    usual: Mapping[str, float],
) -> tuple[HostileRow, ...]:
    """Ask both sides each hostile row; `rows` are those whose range floats have.

    A row passes if each output differs by at most its limit (without one: by anything), if both are
    NaN or infinite in the same places, and if both sides refuse it. `usual` is the largest value of
    each output on ordinary rows: where a hostile row's answer is so many times larger, so is its
    limit, for rounding grows with what is rounded. A row beyond the range passes in any case; for
    one at its end the limit does not hold where a side rounds coarsely.
    """
    coarse = any(isinstance(side, ModelSide) and side.coarse for side in (reference, other))
    spreads = _spreads(rows)
    found = []
    for name, feeds in _feeds(spreads).items():
        outside = any(
            row.dtype.kind == "f" and not spreads[key].holds(row) for key, row in feeds.items()
        )
        at_its_end = coarse and (name in ENDS or outside)
        gated = not (name == BEYOND or at_its_end)
        wanted, answered = (_answer(side, feeds) for side in (reference, other))
        row = _row(name, wanted, answered, limits if gated else {}, usual)
        found.append(replace(row, gated=gated, passed=row.passed or name == BEYOND))
    return tuple(found)


def failing(rows: Sequence[HostileRow]) -> Iterator[str]:
    """What fails, a line each: the largest difference beyond its limit, then what is odd."""
    failed = [row for row in rows if not row.passed]
    beyond = [row for row in failed if not row.message]
    if beyond:
        worst = max(beyond, key=lambda row: row.max_abs_diff or 0.0)
        limit = "" if worst.limit is None else f", limit {worst.limit:.1e}"
        yield f"{worst.max_abs_diff:.1e} at the hostile row {worst.name!r}{limit}"
    for row in failed:
        if row.message:
            yield f"hostile row {row.name!r}: {row.message}"


def hostile_feeds(rows: Rows) -> dict[str, dict[str, Array]]:
    """The hostile rows by name, each with one row for every input, of its dtype and shape."""
    return _feeds(_spreads(rows))


def _spreads(rows: Rows) -> dict[str, Spread]:
    return {key: spread_of(array) for key, array in rows.inputs.items()}


def _feeds(spreads: Mapping[str, Spread]) -> dict[str, dict[str, Array]]:
    feeds = {}
    for name, (fitting, make) in MAKERS.items():
        if any(one.row.dtype.char in fitting for one in spreads.values()):
            generator = np.random.default_rng(SEED)
            feeds[name] = {
                key: make(one, generator) if one.row.dtype.char in fitting else one.row
                for key, one in spreads.items()
            }
    return feeds


def spread_of(array: Array) -> Spread:
    """The first row, and the range of each value over the rows, [rows, ...], what is finite."""
    row = np.array(array[:1])
    if row.dtype.kind != "f":
        return Spread(row, row, row)
    some = array[:RANGE_ROWS]
    finite = np.isfinite(some)
    low, high = (
        find(some, axis=0, keepdims=True, where=finite, initial=worst)
        for find, worst in ((np.min, np.inf), (np.max, -np.inf))
    )
    none = low > high
    return Spread(row, np.where(none, 0, low), np.where(none, 0, high))


def zero_rows(side: Side, example: Mapping[str, Array]) -> tuple[str, bool]:
    """What becomes of a batch without rows, in words, and whether that is sane.

    An ONNX model is asked in a process of its own, which it may take down.
    """
    if isinstance(side, ModelSide):
        session = side.session
        return ask_nothing(side.content, session.provider, example, session.given)
    found = _answer(side, {name: row[:0] for name, row in example.items()})
    if isinstance(found, str):
        return f"refused: {found}", True
    counts = {len(array) for array in found.values()}
    return f"answered {', '.join(str(count) for count in sorted(counts))} rows", counts == {0}


def _answer(side: Side, feeds: Mapping[str, Array]) -> dict[str, Array] | str:
    """The answers, or the reason why there are none."""
    try:
        return side.answer(feeds, 1)
    except FerryError as error:
        return str(error)


def _row(
    name: str,
    wanted: dict[str, Array] | str,
    found: dict[str, Array] | str,
    limits: Mapping[str, float],
    usual: Mapping[str, float],
) -> HostileRow:
    """What became of a row of these answers, or of these reasons why there are none."""
    if isinstance(wanted, str) or isinstance(found, str):
        refusals = [one for one in (wanted, found) if isinstance(one, str)]
        both = len(refusals) == 2
        message = "refused by both" if both else f"refused by one side: {refusals[0]}"
        return _without_numbers(name, message, passed=both)
    if any(found[output].shape != left.shape for output, left in wanted.items()):
        return _without_numbers(name, "answered in two shapes", passed=False)
    worst, allowed, strange, alike, within = 0.0, None, False, True, True
    for output, left in wanted.items():
        right = found[output]
        if left.dtype.kind in "OUSb":
            alike = alike and bool((left == right).all())
            continue
        wide, other = left.astype(np.float64), right.astype(np.float64)
        finite = np.isfinite(wide) & np.isfinite(other)
        strange = strange or not finite.all()
        alike = alike and np.array_equal(wide[~finite], other[~finite], equal_nan=True)
        apart = float(np.abs(wide[finite] - other[finite]).max(initial=0.0))
        limit = limits.get(output)
        if limit is not None:
            largest = float(np.abs(wide[finite]).max(initial=0.0))
            scaled = limit * max(1.0, largest / max(usual.get(output, 0.0), limit))
            within = within and apart <= scaled
            allowed = scaled if apart >= min(worst, scaled) else allowed
        worst = max(worst, apart)
    message = f"NaN or infinite on {'both sides' if alike else 'one side alone'}" if strange else ""
    return HostileRow(
        name=name, passed=alike and within, max_abs_diff=worst, limit=allowed, message=message
    )


def _without_numbers(name: str, message: str, *, passed: bool) -> HostileRow:
    return HostileRow(name=name, passed=passed, max_abs_diff=None, limit=None, message=message)


def _brightest(row: Array) -> int:
    return min(BRIGHT, np.iinfo(row.dtype).max)


def _hot_pixel(of: Spread, _generator: np.random.Generator) -> Array:
    made = np.zeros_like(of.row)
    made.reshape(-1)[made.size // 2] = _brightest(made)
    return made


def _one_at_its_largest(of: Spread, _generator: np.random.Generator) -> Array:
    made = of.row.copy()
    made.reshape(-1)[made.size // 2 : made.size // 2 + 1] = of.high.flat[made.size // 2 :][:1]
    return made


def _noise(of: Spread, generator: np.random.Generator) -> Array:
    shape, dtype = of.row.shape, of.row.dtype
    if dtype.kind == "f":
        return of.at(generator.random(shape))
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def _denormals(of: Spread, _generator: np.random.Generator) -> Array:
    return np.full_like(of.row, np.finfo(of.row.dtype).smallest_subnormal * 3)


def _text(text: str) -> Maker:
    return lambda of, _generator: np.full(of.row.shape, text, object)


TEXTS, FLOATS, BYTES = "OU", np.typecodes["Float"], "bB"
NUMBERS = f"{FLOATS}{np.typecodes['AllInteger']}?"
"""Integers of more than a byte look something up: they are zero, or as they are in the rows."""
BEYOND = f"{WIDER} times the range"
MAKERS: dict[str, tuple[str, Maker]] = {
    "zeros": (NUMBERS, lambda of, _generator: np.zeros_like(of.row)),
    f"all {BRIGHT}": (BYTES, lambda of, _generator: np.full_like(of.row, _brightest(of.row))),
    "one hot pixel": (BYTES, _hot_pixel),
    "one at its largest": (FLOATS, _one_at_its_largest),
    "noise": (FLOATS + BYTES, _noise),
    "denormals": (FLOATS, _denormals),
    "all at their largest": (FLOATS, lambda of, _generator: of.at(1)),
    "all at their least": (FLOATS, lambda of, _generator: of.at(0)),
    BEYOND: (FLOATS, lambda of, _generator: of.at((1 + WIDER) / 2)),
    "empty text": (TEXTS, _text("")),
    "blanks": (TEXTS, _text(BLANKS)),
    "odd letters": (TEXTS, _text(ODD_TEXT)),
    f"{MANY_WORDS:,} words": (TEXTS, _text("good bad film " * (MANY_WORDS // 3) + "end")),
}
"""By name: the type characters of the dtypes that it is made for, and how."""
ENDS = (f"all {BRIGHT}", "one hot pixel", "all at their largest", "all at their least")
"""Rows at the end of a range: what is made of all their values together has never been so large."""
