"""Compare one model with its reference in every way it can be run: `prove`.

A way is an exporter, a provider, a level of graph optimization and a batch size.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator
from tqdm import tqdm

from pipeline.config.experiment import GateConfig
from pipeline.exporting.onnxmodel import padded_pool
from pipeline.proof.differences import FAR, DecisionRule, Differences, largest_difference
from pipeline.proof.gate import SHIPPED, Evidence, failures, failures_as_shipped, worst_of
from pipeline.proof.hostile import failing, hostile_rows, zero_rows
from pipeline.proof.measure import Kept, beside_others, measure, progress, quantities
from pipeline.proof.overflow import SAFE, needs_of
from pipeline.proof.sides import ModelSide, Side
from pipeline.proof.variation import FAINTEST
from pipeline.records.parity import (
    SECOND_EXPORTER,
    BatchDifference,
    Cell,
    HostileRow,
    OnnxReferenceAnswer,
    OutputDifference,
    SkippedCell,
    VariantParity,
)
from serving.errors import ModelError, ProviderError, one_line
from serving.runtime.kernels import overflows
from serving.runtime.settings import Level
from serving.runtime.tensors import Array, as_fed

Numbers = npt.NDArray[np.int64]

MOST_NODES = 2000
"""Of a graph that numpy is asked to run."""
CONTRADICTED, ROUNDED = 0.01, 0.1
"""Parts of an output's largest value by which `onnx.reference` contradicts a model; of one that
rounds to steps, the larger part."""
FIRST_SOUND_NORM = 14
"""The first opset whose BatchNormalization `onnx.reference` computes as it is defined."""
KERNEL_ROWS = 64
"""Rows that are answered without any optimization, to hold the optimized kernels to."""
INVARIANT_ROWS = 16
"""Rows that are asked alone, first, in the middle and last: 48 batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityPlan:
    """What is asked, and what may come of it."""

    limits: GateConfig
    rule: DecisionRule
    batch_sizes: tuple[int, ...]
    levels: tuple[Level, ...]
    sample: Numbers
    """The rows of ways that are not asked all, int64 in rising order."""
    onnx_reference_rows: int
    """Rows that `onnx.reference`, which is slow, is asked; 0 for none."""
    hostile: bool
    """Whether rows that no data set holds are asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One side to compare, or why there is none."""

    exporter: str
    provider: str
    side: Side | str
    """The reason, where there is no side."""

    @property
    def ships(self) -> bool:
        """Whether the verdict depends on it."""
        return self.exporter != SECOND_EXPORTER


def prove(
    reference: Side, kept: Kept, ways: Sequence[Way], plan: ParityPlan, name: str
) -> VariantParity:
    """Compare each way with the reference's kept answers; the first one is the model that ships.

    The sides must be alike (`sides.check_alike`). `name` stands beside the bar on stderr.
    """
    cells: list[Cell | SkippedCell] = []
    batches: list[BatchDifference] = []
    with progress(name, asked_rows(ways, plan, len(kept.rows))) as bar:
        for way in ways:
            for level in _levels(way, plan):
                made, spread = _run(kept, way, level, plan, bar)
                cells += made
                batches += spread
    shipped, rows = ways[0].side, kept.rows
    assert not isinstance(shipped, str)  # noqa: S101 - what ships is there
    batches.append(beside_others(shipped, kept, plan.sample[:INVARIANT_ROWS]))
    hostile: tuple[HostileRow, ...] = ()
    no_rows, sane = "not asked", True
    if plan.hostile:
        usual = {name: one.largest for name, one in kept.variations.items()}
        hostile = hostile_rows(reference, shipped, rows, _absolute(plan.limits, kept), usual)
        no_rows, sane = zero_rows(shipped, rows.slice(0, 1))
    evidence = Evidence(
        cells=[cell for cell in cells if isinstance(cell, Cell) and cell.ships],
        rows=len(rows),
        batches=batches,
        kernels=kernels_apart(shipped, kept, plan),
    )
    outside = [*failures_as_shipped(evidence, plan.limits), *failing(hostile)]
    if not sane:
        outside.append(f"a batch without rows: {no_rows}")
    return VariantParity(
        **worst_of(evidence),
        passed=not outside,
        batch_sizes=plan.batch_sizes,
        limits=plan.limits,
        failures=tuple(outside),
        first_divergence=None,
        first_nonfinite=None,
        notes=(
            *(_overflow(shipped) if outside else ()),
            *_left_out(shipped),
            *_doubts(reference, kept),
        ),
        sha256=shipped.sha256,
        zero_rows=no_rows,
        hostile_max_abs_diff=max(
            (one.max_abs_diff or 0.0 for one in hostile if one.gated), default=0.0
        ),
        cells=tuple(cells),
        batches=tuple(batches),
        hostile=hostile,
        onnx_reference=ask_onnx_reference(
            reference, shipped, rows.take(plan.sample[: plan.onnx_reference_rows])
        ),
    )


def kernels_apart(side: Side, kept: Kept, plan: ParityPlan) -> list[OutputDifference]:
    """How far optimized kernels are from the graph as it is written, by output, on some rows."""
    numbers = plan.sample[:KERNEL_ROWS]
    if not isinstance(side, ModelSide):
        return []
    feeds = kept.rows.take(numbers)
    written, found = (one.answer(feeds, len(numbers)) for one in (side.at("none"), side))
    apart = [Differences(name, kept.variations[name]) for name in quantities(kept, plan.rule)]
    for one in apart:
        one.add(written[one.output], found[one.output], numbers)
    return [one.report() for one in apart]


def _doubts(reference: Side, kept: Kept) -> Iterator[str]:
    """Why parity may show little."""
    for output, variation in kept.variations.items():
        if variation.alike:
            yield (
                f"{reference.name} answers every row alike at {output}, so parity shows little: "
                f"are its weights real, and its rows?"
            )


def _overflow(side: Side) -> Iterator[str]:
    """The likely cause where optimized kernels answer otherwise than the graph."""
    if isinstance(side, ModelSide) and needs_of(side.model()) and overflows():
        yield (
            f"its weights of int8 go beyond ±{SAFE}, and sums of their products overflow on this "
            f"processor, which lacks VNNI"
        )


def _absolute(limits: GateConfig, kept: Kept) -> dict[str, float]:
    """What a gate allows each output, as an absolute difference; nothing where it has no limit."""
    if limits.max_abs_diff is not None:
        return dict.fromkeys(kept.outputs, limits.max_abs_diff)
    if limits.max_scaled_diff is None:
        return {}
    part = limits.max_scaled_diff
    return {name: part * one.overall_scale for name, one in kept.variations.items()}


def _left_out(side: Side) -> Iterator[str]:
    """The outputs that cannot be compared."""
    for info in side.session.outputs if isinstance(side, ModelSide) else ():
        if info not in side.outputs:
            form = f"{info.dtype} {list(info.shape)}"
            yield f"output {info.name} is {form}, not one answer a row, and is not compared"


def asked_rows(ways: Sequence[Way], plan: ParityPlan, rows: int) -> int:
    """How many answers `prove` asks for."""
    return sum(
        len(numbers) * len(batch_sizes)
        for way in ways
        for level in _levels(way, plan)
        for numbers, batch_sizes in _asked(way, level, plan, rows)
        if not isinstance(way.side, str)
    )


def _levels(way: Way, plan: ParityPlan) -> tuple[Level, ...]:
    return plan.levels if isinstance(way.side, ModelSide) else (SHIPPED,)


def _asked(
    way: Way, level: Level, plan: ParityPlan, rows: int
) -> list[tuple[Numbers, tuple[int, ...]]]:
    """The rows that a way is asked at a level, and the batch sizes they are asked at.

    What ships is asked all rows at every size; what is near to it all rows at the largest, and a
    sample at every size; anything else the sample alone.
    """
    sizes = plan.batch_sizes
    if (way.ships and level == SHIPPED) or len(plan.sample) == rows:
        return [(np.arange(rows), sizes)]
    if not (way.ships or level == SHIPPED):
        return [(plan.sample, sizes)]
    whole = (np.arange(rows), (max(sizes),))
    return [whole, (plan.sample, sizes)] if len(sizes) > 1 else [whole]


def _run(
    kept: Kept, way: Way, level: Level, plan: ParityPlan, bar: "tqdm[NoReturn]"
) -> tuple[list[Cell | SkippedCell], list[BatchDifference]]:
    """The cells of one way at one level, or why it cannot be run."""
    skipped = SkippedCell(exporter=way.exporter, provider=way.provider, level=level, reason="")
    if isinstance(way.side, str):
        return [replace(skipped, level="", reason=way.side)], []
    side = way.side
    if isinstance(side, ModelSide) and side.session.settings.optimize != level:
        try:
            side = side.at(level)
        except (ModelError, ProviderError) as error:
            return [replace(skipped, reason=str(error))], []
    cells: dict[int, Cell] = {}
    batches = []
    for numbers, batch_sizes in _asked(way, level, plan, len(kept.rows)):
        found, spread = measure(kept, side, numbers, batch_sizes, plan.rule, bar)
        # A size that was asked all rows needs no cell of the sample.
        for size in [one for one in batch_sizes if one not in cells]:
            cell = Cell(
                exporter=way.exporter,
                provider=way.provider,
                level=level,
                batch_size=size,
                rows=len(numbers),
                passed=True,
                failures=(),
                outputs=found[size].outputs(),
                decisions=found[size].decisions(),
                errors=found[size].errors(),
            )
            outside = tuple(failures(Evidence(cells=[cell], rows=len(kept.rows)), plan.limits))
            cells[size] = replace(cell, passed=not outside, failures=outside)
        if len(batch_sizes) > 1 and way.ships:
            batches.append(spread)
    return list(cells.values()), batches


def ask_onnx_reference(
    reference: Side, other: Side, feeds: Mapping[str, Array]
) -> OnnxReferenceAnswer:
    """What `onnx.reference`, the definition of the operators in plain numpy, answers to some rows.

    `feeds` are [rows, ...] by the name of the input. Where it agrees with one of two runtimes, the
    other one is to blame.
    """
    rows = len(next(iter(feeds.values())))
    if not rows:
        return _skipped(rows, "not asked")
    if not isinstance(other, ModelSide):
        return _skipped(rows, f"{other.name} is no ONNX model")
    model = other.model()
    if len(model.graph.node) > MOST_NODES:
        return _skipped(rows, f"{len(model.graph.node)} nodes are too many for numpy")
    if _trains(model):
        return _skipped(rows, "its BatchNormalization before opset 14 is that of training")
    names = [info.name for info in other.outputs]
    whole = other.session.whole(feeds)
    rows_fed = {name: as_fed(array) for name, array in whole.items()}
    try:
        with np.errstate(all="ignore"):
            found = ReferenceEvaluator(model).run(names, rows_fed)
    # It is plain Python: an operator that it lacks, or has only in part, raises whatever it likes.
    except Exception as error:  # noqa: BLE001 - a second runtime must not stop the first
        reason = one_line(error)
        reason = reason if len(reason) <= 200 else f"{reason[:200]}…"
        return _skipped(rows, f"onnx.reference cannot run it: {reason}")
    answers = {name: np.asarray(one) for name, one in zip(names, found, strict=True)}
    return OnnxReferenceAnswer(
        rows=rows,
        to_reference=_apart(answers, reference.answer(feeds, rows)),
        to_model=_apart(answers, other.answer(feeds, rows)),
        skipped=None,
        warning=_warning(answers, other, feeds),
    )


def _trains(model: onnx.ModelProto) -> bool:
    """Whether `onnx.reference` (1.22) would take the statistics of the batch, as in training."""
    (opset, *_) = (*(one.version for one in model.opset_import if not one.domain), 0)
    operators = {node.op_type for node in model.graph.node}
    return "BatchNormalization" in operators and opset < FIRST_SOUND_NORM


def _warning(
    answers: Mapping[str, Array], other: ModelSide, feeds: Mapping[str, Array]
) -> str | None:
    """In words, that `onnx.reference` gave other answers than a model, and why; None if it agrees.

    Both sides of a comparison may run in ONNX Runtime, and then agree where it is wrong.
    """
    rows = len(next(iter(feeds.values())))
    allowed = ROUNDED if other.coarse else CONTRADICTED
    off = _parts(answers, other.answer(feeds, rows))
    if off <= allowed:
        return None
    how = "in another shape" if off >= FAR else f"by {off:.2g} of the largest value"
    message = (
        f"WARNING: onnx.reference, which computes the operators as ONNX defines them, answers "
        f"otherwise than {other.name}, {how}: one of the two is wrong"
    )
    if _parts(answers, other.at("none").answer(feeds, rows)) > allowed:
        return message
    message = f"{message}, and without graph optimization ONNX Runtime agrees with it"
    if pool := padded_pool(other.model().graph):
        message += (
            f"; the known cause: its optimizer puts the Pad before {pool} into that MaxPool, where "
            f"padding never wins. A Max with the lowest number between the two keeps them apart"
        )
    return message


def _parts(answers: Mapping[str, Array], others: Mapping[str, Array]) -> float:
    """The largest difference of two sides' numbers, in parts of the largest value of an output."""
    parts = [0.0]
    for name, one in answers.items():
        if one.shape != others[name].shape:
            return FAR
        if one.dtype.kind in "fiu":
            largest = float(np.nan_to_num(np.abs(one.astype(np.float64))).max(initial=0.0))
            parts.append(largest_difference(one, others[name]) / max(largest, FAINTEST))
    return min(FAR, max(parts))


def _apart(answers: Mapping[str, Array], others: Mapping[str, Array]) -> float:
    return min(FAR, max(_difference(one, others[name]) for name, one in answers.items()))


def _difference(left: Array, right: Array) -> float:
    return largest_difference(left, right) if left.shape == right.shape else FAR


def _skipped(rows: int, reason: str) -> OnnxReferenceAnswer:
    return OnnxReferenceAnswer(rows=rows, to_reference=None, to_model=None, skipped=reason)
