"""Rows that no data set holds, and that a model in the world will be sent.

Every value at its end, a single bright pixel, noise, floats near zero, no text and far too much of
it, and a batch without rows. Each must be answered alike, or refused in clear words.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from pipeline.proof.empty import ask_nothing
from pipeline.proof.sides import ModelSide, Side
from pipeline.records.parity import HostileRow
from serving.errors import FerryError
from serving.runtime.tensors import Array

Maker = Callable[[Array, np.random.Generator], Array]

SEED = 1
BRIGHT = 255
MANY_WORDS = 10_000
BLANKS = " \t \n  "
ODD_TEXT = "\u200b\u202e naïve 中文 \U0001f600 ½ …"


def hostile_rows(
    reference: Side,
    other: Side,
    example: Mapping[str, Array],
    limits: Mapping[str, float],
    usual: Mapping[str, float],
) -> tuple[HostileRow, ...]:
    """Ask both sides each hostile row; `example` is one row of each input, [1, ...].

    A row passes if each output differs by at most its limit (without one: by anything), if both are
    NaN or infinite in the same places, and if both sides refuse it. `usual` is the largest value of
    each output on ordinary rows: where a hostile row's answer is so many times larger, so is its
    limit, for rounding grows with what is rounded.
    """
    return tuple(
        _row(name, _answer(reference, feeds), _answer(other, feeds), limits, usual)
        for name, feeds in hostile_feeds(example).items()
    )


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


def hostile_feeds(example: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """The hostile rows by name, each with one row for every input, of its dtype and shape."""
    feeds = {}
    for name, (fitting, make) in MAKERS.items():
        if any(row.dtype.char in fitting for row in example.values()):
            generator = np.random.default_rng(SEED)
            feeds[name] = {
                key: make(row, generator) if row.dtype.char in fitting else row
                for key, row in example.items()
            }
    return feeds


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
    if isinstance(wanted, str) or isinstance(found, str):
        refusals = [one for one in (wanted, found) if isinstance(one, str)]
        both = len(refusals) == 2
        message = "refused by both" if both else f"refused by one side: {refusals[0]}"
        return HostileRow(name=name, passed=both, max_abs_diff=None, limit=None, message=message)
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


def _brightest(row: Array) -> int:
    return min(BRIGHT, np.iinfo(row.dtype).max) if row.dtype.kind in "iu" else BRIGHT


def _hot_pixel(row: Array, _generator: np.random.Generator) -> Array:
    made = np.zeros_like(row)
    made.reshape(-1)[made.size // 2] = _brightest(row)
    return made


def _noise(row: Array, generator: np.random.Generator) -> Array:
    if row.dtype.kind == "f":
        return generator.standard_normal(row.shape).astype(row.dtype)
    limits = np.iinfo(row.dtype)
    return generator.integers(limits.min, limits.max, row.shape, row.dtype, endpoint=True)


def _denormals(row: Array, _generator: np.random.Generator) -> Array:
    return np.full_like(row, np.finfo(row.dtype).smallest_subnormal * 3)


def _text(text: str) -> Maker:
    return lambda row, _generator: np.full(row.shape, text, object)


TEXTS, FLOATS = "OU", np.typecodes["Float"]
NUMBERS = f"{FLOATS}{np.typecodes['AllInteger']}?"
WIDE = f"{FLOATS}bB"
"""Values that may be anything: integers of more than a byte look something up."""
MAKERS: dict[str, tuple[str, Maker]] = {
    "zeros": (NUMBERS, lambda row, _generator: np.zeros_like(row)),
    f"all {BRIGHT}": (WIDE, lambda row, _generator: np.full_like(row, _brightest(row))),
    "one hot pixel": (WIDE, _hot_pixel),
    "noise": (WIDE, _noise),
    "denormals": (FLOATS, _denormals),
    "empty text": (TEXTS, _text("")),
    "blanks": (TEXTS, _text(BLANKS)),
    "odd letters": (TEXTS, _text(ODD_TEXT)),
    f"{MANY_WORDS:,} words": (TEXTS, _text("good bad film " * (MANY_WORDS // 3) + "end")),
}
"""By name: the type characters of the dtypes that it is made for, and how."""
