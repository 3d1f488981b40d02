"""`ferry export --module package.file:function`: export any module, and prove what was written.

A file that answers as the module does takes its place. One that does not is kept beside it under
another name, with the report that says why.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch

from pipeline.errors import ParityError
from pipeline.exporting.exporter import Exported, check_weights, export_flat, weights_sha256
from pipeline.exporting.signatures import BATCH, FlatModule, InputSpec, example, random_rows
from pipeline.proof.pair import compare_module, failure, limits_of_pair
from pipeline.proof.rows import Rows, open_rows
from pipeline.proof.sides import ModuleSide, model_side
from pipeline.records.parity import PairReport
from serving.errors import InputError, UsageError
from serving.files import write_bytes, write_json
from serving.machine.environment import ferry_version
from serving.runtime.tensors import TensorInfo

SUFFIX, REPORT_SUFFIX = ".onnx", ".parity.json"
SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleReport:
    """A module of anybody's as it was exported, and how it was proven."""

    module: str
    """Its import path, or its class where it was handed over in Python."""
    model: str
    """The file that was written."""
    bytes: int
    parameters: int
    torch: str
    opset: int
    ir_version: int
    nodes: int
    inputs: tuple[str, ...]
    """As the model declares them: "pixels float32 [batch, 3, 224, 224]"."""
    export_seconds: float
    notes: tuple[str, ...]
    """What a reader should know of the export."""
    parity: PairReport
    """How far the model is from the module; the file beside the model holds this part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleOptions:
    """How a module is exported and proven."""

    opset: int = 20
    limit: float = 1e-4
    """Largest absolute difference of any output."""
    batch_sizes: tuple[int, ...] = (1, 2, 7, 32)
    num_rows: int = 64
    """Random rows, where no real ones are given."""
    source: str | None = None
    """The import path, for the model's metadata; None: the name of the class."""


def export_module(
    module: torch.nn.Module,
    inputs: Sequence[InputSpec],
    model: Path,
    *,
    rows: str | None = None,
    options: ModuleOptions | None = None,
) -> ModuleReport:
    """Export a module to `model`, prove that it answers the same, and return the report.

    `inputs` are made by `pipeline.exporting.signatures.parse_input`. The proof runs over `rows`, as
    `pipeline.proof.rows.open_rows` takes them, else over the rows of `.npy` inputs, else over
    seeded random ones. The report is written to `model.parity.json` beside `model.onnx`.

    Raises UsageError for a name that does not end in .onnx, InputError for inputs or rows that the
    module has not, ModelError for a module that refuses them or that cannot be exported, and
    ParityError when an output is beyond the limit or its largest value another: then the files are
    `model.failed.onnx` and `model.failed.parity.json`, and `model.onnx` is as it was.
    """
    options = options or ModuleOptions()
    _check(model, inputs, options)
    check_weights(module)
    flat = FlatModule(module, inputs)
    made = _export(flat, inputs, options)
    side = model_side(model.name, made.content)
    tested = _rows(rows, inputs, side.inputs, options)
    reference = _module_side(flat, inputs, made)
    limits = limits_of_pair(options.limit)
    parity = compare_module(reference, side, tested, limits, options.batch_sizes)
    target = model if parity.passed else _failed_name(model)
    parity = replace(parity, other=replace(parity.other, name=target.name))
    write_bytes(target, made.content)
    write_json(target.with_suffix(REPORT_SUFFIX), parity)
    if not parity.passed:
        raise ParityError(
            f"{failure(reference.name, parity.result)}; "
            f"the model is kept as {target}, see {target.with_suffix(REPORT_SUFFIX)}"
        )
    for stale in (_failed_name(model), _failed_name(model).with_suffix(REPORT_SUFFIX)):
        stale.unlink(missing_ok=True)
    return _report(made, parity, options)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """An exported model, before it is proven."""

    exported: Exported
    content: bytes
    facts: Mapping[str, object]
    parameters: int
    seconds: float


def _check(model: Path, inputs: Sequence[InputSpec], options: ModuleOptions) -> None:
    if model.suffix != SUFFIX:
        raise UsageError(f"the output must end in {SUFFIX}, got {model}")
    if not inputs:
        raise UsageError("a module needs at least one --input")
    if not options.limit > 0:
        raise UsageError(f"the limit must be above 0, got {options.limit:g}")


def _export(flat: FlatModule, inputs: Sequence[InputSpec], options: ModuleOptions) -> _Made:
    module = flat.module
    facts = {
        "version": ferry_version() or "unknown",
        "module": options.source or type(module).__qualname__,
        "torch": str(torch.__version__),
        "weights_sha256": weights_sha256(module),
    }
    start = time.perf_counter()
    exported = export_flat(flat, inputs, options.opset, facts)
    return _Made(
        exported=exported,
        content=exported.model.SerializeToString(deterministic=True),
        facts=facts,
        parameters=sum(one.numel() for one in module.parameters()),
        seconds=round(time.perf_counter() - start, 3),
    )


def _rows(
    rows: str | None,
    inputs: Sequence[InputSpec],
    taken: Sequence[TensorInfo],
    options: ModuleOptions,
) -> Rows:
    """The rows of the proof; those of `.npy` inputs only where all of them are such files."""
    if rows is not None:
        return open_rows(rows, taken)
    names = [info.name for info in taken]
    real = [spec.rows for spec in inputs if spec.rows is not None]
    if len(real) == len(inputs):
        if len({len(array) for array in real}) > 1:
            counts = ", ".join(str(len(array)) for array in real)
            raise InputError(f"the files of the inputs must hold as many rows, got {counts}")
        return Rows(
            name="the inputs' files", inputs=dict(zip(names, real, strict=True)), labels=None
        )
    made = random_rows(inputs, options.num_rows, seed=SEED)
    return Rows(
        name=f"random, seed {SEED}", inputs=dict(zip(names, made, strict=True)), labels=None
    )


def _module_side(flat: FlatModule, inputs: Sequence[InputSpec], made: _Made) -> ModuleSide:
    """The module as a side of the comparison; what it answers is known by asking it."""
    answers = flat.answer(dict(zip(flat.inputs, map(example, inputs), strict=True)))
    return ModuleSide(
        name=str(made.facts["module"]),
        inputs=tuple(
            TensorInfo(name=name, dtype=spec.dtype, shape=(BATCH, *spec.axes))
            for name, spec in zip(flat.inputs, inputs, strict=True)
        ),
        outputs=tuple(
            TensorInfo(name=name, dtype=array.dtype.name, shape=(BATCH, *array.shape[1:]))
            for name, array in answers.items()
        ),
        sha256=str(made.facts["weights_sha256"]),
        flat=flat,
        traced=made.exported.traced,
    )


def _report(made: _Made, parity: PairReport, options: ModuleOptions) -> ModuleReport:
    model = made.exported.model
    return ModuleReport(
        module=str(made.facts["module"]),
        model=parity.other.name,
        bytes=len(made.content),
        parameters=made.parameters,
        torch=str(made.facts["torch"]),
        opset=options.opset,
        ir_version=model.ir_version,
        nodes=len(model.graph.node),
        inputs=tuple(map(_describe, model.graph.input)),
        export_seconds=made.seconds,
        notes=tuple(_notes(made.exported)),
        parity=parity,
    )


def _notes(exported: Exported) -> Iterator[str]:
    if exported.padded_pools:
        yield (
            f"{exported.padded_pools} MaxPool read a padding of zeros; they are held apart by "
            f"an operator that changes nothing, or ONNX Runtime would pad with minus infinity"
        )


def _describe(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    axes = ", ".join(axis.dim_param or str(axis.dim_value) for axis in kind.shape.dim)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return f"{value.name} {dtype} [{axes}]"


def _failed_name(model: Path) -> Path:
    return model.with_suffix(f".failed{SUFFIX}")
