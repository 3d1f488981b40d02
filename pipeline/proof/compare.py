"""Hold one model against its reference in every way it can be run: `prove`.

A way is an exporter, a provider, a level of graph optimization and a batch size. What ships is
asked all rows at every batch size; the other ways are asked all rows once, and a sample in batches
of every size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.proof.gate import SHIPPED, Evidence, failures, summarize
from pipeline.proof.hostile import hostile_rows, zero_rows
from pipeline.proof.measure import Kept, Measured, Tick, beside_others, measure
from pipeline.proof.onnx_reference import third_opinion
from pipeline.proof.sides import ModelSide, Side
from pipeline.records.parity import BatchDifference, Cell, Limits, SkippedCell, VariantParity
from serving.errors import ModelError, ProviderError
from serving.runtime.settings import Level

Numbers = npt.NDArray[np.int64]

INVARIANT_ROWS = 16
"""Rows that are asked alone, first, in the middle and last: 48 batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked, and what may come of it."""

    limits: Limits
    near: float
    """Largest margin of a near-tie."""
    batch_sizes: tuple[int, ...]
    levels: tuple[Level, ...]
    sample: Numbers
    """The rows of ways that are not asked all, int64 in rising order."""
    opinion_rows: int
    hostile: bool
    """Whether rows that no data set holds are asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One side to compare, or why there is none."""

    exporter: str
    provider: str
    side: Side | str
    """The reason, where there is no side."""
    ships: bool
    """Whether the gate depends on it; others are told beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Some rows to ask at some batch sizes, and the sizes that are reported."""

    numbers: Numbers
    batch_sizes: tuple[int, ...]
    reported: tuple[int, ...]


def prove(
    reference: Side, kept: Kept, ways: Sequence[Way], plan: Plan, tick: Tick
) -> VariantParity:
    """Compare each way with the reference's kept answers; the first one is the model that ships.

    The sides must be alike (`sides.check_alike`).
    """
    cells: list[Cell | SkippedCell] = []
    batches: list[BatchDifference] = []
    for way in ways:
        for level in _levels(way, plan):
            found, spread = _run(kept, way, level, plan, tick)
            cells += found
            batches += spread
    shipped = ways[0].side
    assert not isinstance(shipped, str)  # noqa: S101 - what ships is there
    rows, first = kept.rows, kept.rows.slice(0, 1)
    batches.append(beside_others(shipped, rows, plan.sample[:INVARIANT_ROWS]))
    message, sane = zero_rows(shipped, first) if plan.hostile else ("not asked", True)
    limit = plan.limits.max_abs_diff
    strange = hostile_rows(reference, shipped, first, limit, kept.largest())
    evidence = Evidence(
        cells=tuple(cells),
        counted=tuple(cell for cell in cells if isinstance(cell, Cell) and _counts(cell, ways)),
        rows=len(rows),
        batch_sizes=plan.batch_sizes,
        batches=tuple(batches),
        hostile=strange if plan.hostile else (),
        zero_rows=message,
        zero_rows_sane=sane,
        opinion=third_opinion(reference, shipped, rows.take(plan.sample[: plan.opinion_rows])),
        sha256=shipped.sha256,
    )
    return summarize(evidence, plan.limits)


def asked_rows(ways: Sequence[Way], plan: Plan, rows: int) -> int:
    """How many answers `prove` will ask for, for a progress bar."""
    return sum(
        len(asked.numbers) * len(asked.batch_sizes)
        for way in ways
        for level in _levels(way, plan)
        for asked in _asked(way, level, plan, rows)
        if not isinstance(way.side, str)
    )


def _levels(way: Way, plan: Plan) -> tuple[Level, ...]:
    return plan.levels if isinstance(way.side, ModelSide) else (SHIPPED,)


def _counts(cell: Cell, ways: Sequence[Way]) -> bool:
    return any(way.ships for way in ways if way.exporter == cell.exporter)


def _asked(way: Way, level: Level, plan: Plan, rows: int) -> Iterator[_Asked]:
    """What a way is asked at a level: the more, the nearer it is to what ships."""
    everything, sizes = np.arange(rows), plan.batch_sizes
    if (way.ships and level == SHIPPED) or len(plan.sample) == rows:
        yield _Asked(numbers=everything, batch_sizes=sizes, reported=sizes)
        return
    largest = (max(sizes),)
    others = tuple(size for size in sizes if size not in largest)
    if way.ships or level == SHIPPED:
        yield _Asked(numbers=everything, batch_sizes=largest, reported=largest)
    else:
        others = sizes
    if others:
        yield _Asked(numbers=plan.sample, batch_sizes=sizes, reported=others)


def _run(
    kept: Kept, way: Way, level: Level, plan: Plan, tick: Tick
) -> tuple[list[Cell | SkippedCell], list[BatchDifference]]:
    """The cells of one way at one level, or why it cannot be run."""
    skipped = SkippedCell(exporter=way.exporter, provider=way.provider, level=level, reason="")
    if isinstance(way.side, str):
        return [replace(skipped, level="", reason=way.side)], []
    side = way.side
    if isinstance(side, ModelSide) and side.level != level:
        try:
            side = side.at(level)
        except (ModelError, ProviderError) as error:
            return [replace(skipped, reason=str(error))], []
    cells: list[Cell | SkippedCell] = []
    batches = []
    for asked in _asked(way, level, plan, len(kept.rows)):
        found, spread = measure(kept, side, asked.numbers, asked.batch_sizes, plan.near, tick)
        cells += [
            _cell(way, level, one, plan.limits, len(kept.rows))
            for one in found
            if one.batch_size in asked.reported
        ]
        if len(asked.batch_sizes) > 1 and way.ships:
            batches.append(spread)
    return cells, batches


def _cell(way: Way, level: Level, one: Measured, limits: Limits, rows: int) -> Cell:
    cell = Cell(
        exporter=way.exporter,
        provider=way.provider,
        level=level,
        batch_size=one.batch_size,
        rows=one.rows,
        passed=True,
        failures=(),
        outputs=one.outputs,
        decisions=one.decisions,
    )
    message = tuple(failures([cell], rows, limits))
    return replace(cell, passed=not message, failures=message)
