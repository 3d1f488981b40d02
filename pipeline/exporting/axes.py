"""Free axes of a module: the sizes that each is proven at, and what torch's trace says of them.

A module is traced at one size. An `if` on a length or a table that is cut to it leaves no more in
the file than what that size needed, so that a proof at that size alone would show nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch

from pipeline.exporting.signatures import BATCH, FlatModule, FreeAxis, InputSpec, random_rows
from pipeline.proof.pair import compare
from pipeline.proof.rows import Rows
from pipeline.proof.sides import ModelSide, ModuleSide
from pipeline.records.parity import AxisProof, PairReport
from serving.errors import FerryError, ModelError
from serving.runtime.tensors import Array

ROWS, BATCH_SIZES, SEED = 4, (1, 4), 1
"""Of the proof at one size."""
FARTHEST = 2048
"""The largest size to which torch's guards are followed."""
NUMBER = re.compile(r"(?<![\w.])\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedLength:
    """What torch found out of the length of an axis while it traced a module."""

    least: int = 1
    most: int | None = None
    """The trace holds for no longer ones; None: for any."""
    guards: tuple[str, ...] = ()
    """Conditions that the module, or an operator in it, asks of the length, in torch's words."""

    @property
    def lengths(self) -> str:
        """Those that the trace holds for, in words; "" for any."""
        words = [f"from {self.least} on"] if self.least > 1 else []
        words += [f"up to {self.most}"] if self.most is not None else []
        return " ".join(words)

    @property
    def edges(self) -> set[int]:
        """Where another length may mean another computation, and the lengths beside."""
        numbers = {int(found) for guard in self.guards for found in NUMBER.findall(guard)}
        numbers |= {self.least, self.most or self.least}
        near = {one + step for one in numbers for step in (-1, 0, 1)}
        return {one for one in near if one <= FARTHEST}


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeTrial:
    """One size of one axis, with the others as in the example, and the module's answer to it."""

    axis: FreeAxis
    traced: TracedLength
    sizes: Mapping[str, int]
    """Of all axes, by name."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of each output."""
    refusal: str
    """What the module said instead of an answer; "" for none."""

    @property
    def size(self) -> int:
        """Of the axis that is tried."""
        return self.sizes[self.axis.name]

    @property
    def advice(self) -> str:
        """What torch says of the axis, and what to do."""
        traced = self.traced
        if traced.lengths:
            known = replace(self.axis, least=traced.least, most=traced.most)
            return (
                f"torch traced it for lengths {traced.lengths}: ask for those, {known}, or have "
                f"both ways traced with torch.cond"
            )
        guards = f", of which torch asked {', '.join(traced.guards[:3])}" if traced.guards else ""
        return f"torch traced it with a length of {self.axis.example}{guards}"


def traced_lengths(
    program: torch.export.ExportedProgram, specs: Sequence[InputSpec]
) -> dict[str, TracedLength]:
    """What torch found out of each free axis, by its name."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    symbols = {}
    for name, spec in zip(program.graph_signature.user_inputs, specs, strict=True):
        rows, *lengths = values[str(name)].shape
        symbols[BATCH] = rows.node.expr
        for axis, length in zip(spec.axes, lengths, strict=True):
            if isinstance(axis, FreeAxis):
                symbols[axis.name] = length.node.expr
    called = {str(symbol): name for name, symbol in symbols.items()}
    words = re.compile(rf"\b(?:{'|'.join(called)})\b")
    guards = {
        words.sub(lambda found: called[found[0]], str(one.node.expr)): words.findall(
            str(one.node.expr)
        )
        for one in values.values()
        if isinstance(one, torch.SymBool)
    }
    known = program.range_constraints
    return {
        name: TracedLength(
            least=max(1, int(known[symbol].lower)),
            # Torch's infinity is no integer.
            most=int(known[symbol].upper) if known[symbol].upper.is_Integer else None,
            guards=tuple(guard for guard, asked in guards.items() if str(symbol) in asked),
        )
        for name, symbol in symbols.items()
    }


def tried_sizes(axis: FreeAxis, traced: TracedLength) -> tuple[int, ...]:
    """The sizes to prove an axis at, in rising order, all within the user's bounds.

    The smallest, an odd one, that of the example, larger ones, the user's bounds, and those around
    the numbers in torch's guards.
    """
    example = axis.example
    sizes = {1, 2, example - 1, example, 2 * example, 2 * example + 3}
    sizes |= traced.edges | {bound for bound in (axis.least, axis.most) if bound is not None}
    return tuple(sorted(size for size in sizes if size in axis))


def ask(
    flat: FlatModule, specs: Sequence[InputSpec], program: torch.export.ExportedProgram
) -> tuple[SizeTrial, ...]:
    """Ask the module at every size of every free axis.

    Raises ModelError for a module that answers other outputs at some of them.
    """
    axes = {one.name: one for spec in specs for one in spec.axes if isinstance(one, FreeAxis)}
    examples = {name: axis.example for name, axis in axes.items()}
    traced = traced_lengths(program, specs)
    return tuple(
        _asked(flat, specs, axis, traced[name], examples | {name: size})
        for name, axis in axes.items()
        for size in tried_sizes(axis, traced[name])
    )


def _asked(
    flat: FlatModule,
    specs: Sequence[InputSpec],
    axis: FreeAxis,
    traced: TracedLength,
    sizes: Mapping[str, int],
) -> SizeTrial:
    rows, refusal = _drawn(flat, specs, sizes), ""
    answers: dict[str, Array] = {}
    try:
        answers = flat.answer(rows)
    except ModelError as error:
        refusal = str(error)
    if answers and tuple(answers) != flat.outputs:
        raise ModelError(
            f"the module answers {', '.join(answers)} where {axis.name} is {sizes[axis.name]}, and "
            f"{', '.join(flat.outputs)} where it is {axis.example}"
        )
    if any(one.dtype.kind == "f" and not np.isfinite(one).all() for one in answers.values()):
        refusal = "its answers are NaN or infinite"
    shapes = {name: array.shape for name, array in answers.items()}
    return SizeTrial(axis=axis, traced=traced, sizes=sizes, shapes=shapes, refusal=refusal)


def _drawn(
    flat: FlatModule, specs: Sequence[InputSpec], sizes: Mapping[str, int]
) -> dict[str, Array]:
    return dict(zip(flat.inputs, random_rows(specs, ROWS, seed=SEED, sizes=sizes), strict=True))


def free_outputs(graph: onnx.GraphProto, trials: Sequence[SizeTrial]) -> None:
    """Name the axes of outputs that torch declares as of one length, and that have several.

    The length of a recurrent layer's answer is such an axis.
    """
    taken = [one for one in trials if not one.refusal]
    wrong = False
    for value in graph.output:
        for at, axis in enumerate(value.type.tensor_type.shape.dim):
            lengths = [one.shapes[value.name][at : at + 1] for one in taken]
            if axis.dim_param or set(lengths) <= {(axis.dim_value,)}:
                continue
            wrong = True
            names = taken[0].sizes
            alike = (
                name
                for name in names
                if all((one.sizes[name],) == has for one, has in zip(taken, lengths, strict=True))
            )
            axis.dim_param = next(alike, f"{value.name}.{at}")
    if wrong:  # and so are the shapes within
        del graph.value_info[:]


def prove_axes(
    parity: PairReport,
    reference: ModuleSide,
    other: ModelSide,
    specs: Sequence[InputSpec],
    trials: Sequence[SizeTrial],
    rows: Rows,
) -> PairReport:
    """The report of `rows` with the proof of each free axis, or that of the first size that fails.

    Raises ModelError for a bound of the user's that the module refuses, for an axis of which it
    takes a single length, and where the model fails at a size that the module takes.
    """
    proofs = []
    known = _lengths(reference.flat, specs, rows)
    for name in known:
        own = [one for one in trials if one.axis.name == name]
        _check_taken(own)
        found = {known[name]: parity.result.max_abs_diff}
        for trial in own:
            if trial.refusal or trial.sizes == known:
                continue
            drawn = _drawn(reference.flat, specs, trial.sizes)
            report = _proven(parity, reference, other, drawn, trial)
            if not report.passed:
                return report
            found[trial.size] = max(found.get(trial.size, 0.0), report.result.max_abs_diff)
        refused = [one for one in own if one.refusal]
        proofs.append(
            AxisProof(
                name=name,
                sizes=tuple(sorted(found)),
                max_abs_diff=max(found.values()),
                traced=own[0].traced.lengths,
                refused=tuple(one.size for one in refused),
                refusal=refused[0].refusal if refused else "",
            )
        )
    return replace(parity, axes=tuple(proofs))


def _lengths(flat: FlatModule, specs: Sequence[InputSpec], rows: Rows) -> dict[str, int]:
    """Of the free axes in some rows, by name."""
    return {
        axis.name: rows.inputs[name].shape[at]
        for name, spec in zip(flat.inputs, specs, strict=True)
        for at, axis in enumerate(spec.axes, 1)
        if isinstance(axis, FreeAxis)
    }


def _proven(
    parity: PairReport,
    reference: ModuleSide,
    other: ModelSide,
    inputs: Mapping[str, Array],
    trial: SizeTrial,
) -> PairReport:
    """The comparison at one size."""
    where = f"{trial.axis.name} = {trial.size}"
    rows = Rows(name=f"random, seed {SEED}, {where}", inputs=inputs, labels=None)
    limits = parity.result.limits
    try:
        report = compare(reference, other, rows, limits=limits, batch_sizes=BATCH_SIZES)
    except FerryError as error:
        raise ModelError(
            f"where {where}, the module answers and its file does not: {error}; {trial.advice}"
        ) from error
    notes = (f"where {where}; {trial.advice}", *report.result.notes)
    return replace(report, result=replace(report.result, notes=notes))


def _check_taken(trials: Sequence[SizeTrial]) -> None:
    axis = trials[0].axis
    refused = [one for one in trials if one.refusal]
    for one in refused:
        if one.size in (axis.least, axis.most):
            raise ModelError(f"{axis} asks for a length of {one.size}: {one.refusal}")
    if len(trials) - len(refused) < 2:
        raise ModelError(
            f"the axis {axis.name} takes no length but {axis.example}: write the number, or one "
            f"name for axes that are always alike; at {refused[0].size}, {refused[0].refusal}"
        )
