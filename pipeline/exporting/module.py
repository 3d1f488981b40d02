"""`ferry export --module package.file:function`: export any module, and prove what was written."""

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from pipeline.errors import ParityError, running
from pipeline.exporting import axes, onnxmodel
from pipeline.exporting.exporter import run_exporter
from pipeline.exporting.signatures import (
    BATCH,
    FlatModule,
    FreeAxis,
    InputSpec,
    agreed,
    example,
    random_rows,
)
from pipeline.proof.pair import compare, failure, limits_of_pair
from pipeline.proof.rows import Rows, open_rows
from pipeline.proof.sides import ModuleSide, model_side
from pipeline.proof.tracing.torch_values import Traced
from pipeline.records.parity import PairReport
from serving.errors import InputError, ModelError, UsageError
from serving.files import write_bytes, write_json
from serving.machine.environment import ferry_version
from serving.runtime.tensors import TensorInfo

SUFFIX, REPORT_SUFFIX = ".onnx", ".parity.json"
BATCH_SIZES = (1, 2, 7, 32)
"""At which a module is proven."""
RANDOM_ROWS, SEED = 64, 1
"""The rows of the proof, where no real ones are given."""
LARGEST = 2**31 - 2**20
"""Bytes of weights that protobuf can hold in one message, with room for the graph."""
OWN = "module."
"""What `FlatModule` puts before the names of the user's modules."""


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


def export_module(
    module: torch.nn.Module,
    inputs: Sequence[InputSpec],
    model: Path,
    *,
    opset: int,
    limit: float | None = None,
    rows: str | None = None,
    source: str | None = None,
) -> ModuleReport:
    """Export a module to `model`, prove that it answers the same, and return the report.

    `inputs` are made by `pipeline.exporting.signatures.parse_input`, `limit` is the largest
    absolute difference of any output; without it, differences are held to the output's own scale.
    The proof runs over `rows`, as `pipeline.proof.rows.open_rows` takes them, else over the rows of
    `.npy` inputs, else over seeded random ones; and at several sizes of every free axis. The report
    is written to `model.parity.json` beside `model.onnx`. `source` is the import path for the
    model's metadata; without it, the name of the class is there.

    Raises UsageError for a name that does not end in .onnx, InputError for inputs or rows that the
    module has not, ModelError for a module that refuses them or that cannot be exported, and
    ParityError when an output is beyond the limit or its largest value another: then the files are
    `model.failed.onnx` and `model.failed.parity.json`, and `model.onnx` is as it was.
    """
    _check(model, inputs, limit)
    inputs = agreed(inputs)
    # What torch.compile made answers as the module within, and takes minutes to.
    module = getattr(module, "_orig_mod", module)
    check_weights(module)
    flat = FlatModule(module, inputs)
    facts = _facts(module, source)
    start = time.perf_counter()
    exported = export_flat(flat, inputs, opset, facts)
    content = exported.model.SerializeToString(deterministic=True)
    seconds = round(time.perf_counter() - start, 3)
    side = model_side(model.name, content)
    tested = _rows(rows, inputs, side.inputs)
    reference = _module_side(flat, inputs, exported.traced, facts)
    limits = limits_of_pair(limit)
    parity = compare(reference, side, tested, limits=limits, batch_sizes=BATCH_SIZES)
    if parity.passed:
        parity = axes.prove_axes(parity, reference, side, inputs, exported.trials, tested)
    parity = _keep(model, content, parity)
    return ModuleReport(
        module=reference.name,
        model=parity.other.name,
        bytes=len(content),
        parameters=sum(one.numel() for one in module.parameters()),
        torch=facts["torch"],
        opset=opset,
        ir_version=exported.model.ir_version,
        nodes=len(exported.model.graph.node),
        inputs=tuple(
            f"{one.name} {one.dtype} [{', '.join(map(str, one.shape))}]" for one in side.inputs
        ),
        export_seconds=seconds,
        notes=exported.notes,
        parity=parity,
    )


def _check(model: Path, inputs: Sequence[InputSpec], limit: float | None) -> None:
    if model.suffix != SUFFIX:
        raise UsageError(f"the output must end in {SUFFIX}, got {model}")
    if not inputs:
        raise UsageError("a module needs at least one --input")
    if limit is not None and not limit > 0:
        raise UsageError(f"the limit must be above 0, got {limit:g}")


def check_weights(module: torch.nn.Module) -> None:
    """Refuse, by ModelError, weights that one ONNX file cannot hold, and TorchScript."""
    if any(isinstance(one, torch.jit.ScriptModule) for one in module.modules()):
        raise ModelError(
            "the module is TorchScript, which torch's exporter does not take; return the Python "
            "module that it was made of"
        )
    named = dict((*module.named_parameters(), *module.named_buffers()))
    for name, tensor in named.items():
        if torch.nn.parameter.is_lazy(tensor):
            raise ModelError(f"the weight {name} has no shape yet; call the module once before")
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise ModelError(
                f"the weight {name} is sparse or quantized; return it dense, as floats"
            )
    tensors = named.values()
    size = sum(tensor.element_size() * math.prod(tensor.shape) for tensor in tensors)
    if size > LARGEST:
        raise ModelError(
            f"the module has {size / 1e9:.1f} GB of weights; one ONNX file holds at most 2 GB, and "
            f"ferry writes no weights beside it"
        )
    elsewhere = {str(tensor.device) for tensor in tensors} - {"cpu"}
    if elsewhere:
        raise ModelError(f"the module's weights lie on {elsewhere.pop()}; return it on the cpu")


def _facts(module: torch.nn.Module, source: str | None) -> dict[str, str]:
    """The model's metadata."""
    return {
        "version": ferry_version() or "unknown",
        "module": source or type(module).__qualname__,
        "torch": str(torch.__version__),
        "weights_sha256": weights_sha256(module),
    }


def weights_sha256(module: torch.nn.Module) -> str:
    """The sha256 of a module's state: each tensor's name, dtype, shape and bytes, by name."""
    digest = hashlib.sha256()
    with running("the module's state cannot be read"):
        state = sorted(module.state_dict().items())
    for name, tensor in state:
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            # As bytes, for numpy has no bfloat16.
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


# The proof


def _rows(rows: str | None, inputs: Sequence[InputSpec], taken: Sequence[TensorInfo]) -> Rows:
    """The rows of the proof; where not all inputs are files, as many as are drawn."""
    if rows is not None:
        return open_rows(rows, taken)
    source = "the inputs' files"
    arrays = [spec.rows for spec in inputs if spec.rows is not None]
    if len(arrays) < len(inputs):
        source = f"{source} and random, seed {SEED}" if arrays else f"random, seed {SEED}"
        arrays = random_rows(inputs, RANDOM_ROWS, seed=SEED)
    if len({len(array) for array in arrays}) > 1:
        counts = ", ".join(str(len(array)) for array in arrays)
        raise InputError(f"the files of the inputs must hold as many rows, got {counts}")
    names = [info.name for info in taken]
    return Rows(name=source, inputs=dict(zip(names, arrays, strict=True)), labels=None)


def _module_side(
    flat: FlatModule, inputs: Sequence[InputSpec], traced: Traced, facts: Mapping[str, str]
) -> ModuleSide:
    """The module as a side of the comparison; what it answers is known by asking it."""
    answers = flat.answer(dict(zip(flat.inputs, map(example, inputs), strict=True)))
    return ModuleSide(
        name=facts["module"],
        inputs=tuple(
            TensorInfo(name=name, dtype=spec.dtype, shape=_shape(spec))
            for name, spec in zip(flat.inputs, inputs, strict=True)
        ),
        outputs=tuple(
            TensorInfo(name=name, dtype=array.dtype.name, shape=(BATCH, *array.shape[1:]))
            for name, array in answers.items()
        ),
        sha256=facts["weights_sha256"],
        flat=flat,
        traced=traced,
    )


def _keep(model: Path, content: bytes, parity: PairReport) -> PairReport:
    """Write the model and its report, under another name and with a ParityError if it failed."""
    failed = model.with_suffix(f".failed{SUFFIX}")
    target = model if parity.passed else failed
    parity = replace(parity, other=replace(parity.other, name=target.name))
    write_bytes(target, content)
    write_json(target.with_suffix(REPORT_SUFFIX), parity)
    if not parity.passed:
        raise ParityError(
            f"{failure(parity.reference.name, parity.result)}; "
            f"the model is kept as {target}, see {target.with_suffix(REPORT_SUFFIX)}"
        )
    for stale in (failed, failed.with_suffix(REPORT_SUFFIX)):
        stale.unlink(missing_ok=True)
    return parity


# The export


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An ONNX model beside the graph of PyTorch's operators that it was made of."""

    model: onnx.ModelProto
    traced: Traced
    trials: tuple[axes.SizeTrial, ...]
    """The module's answers at several sizes of its free axes."""
    padded_pools: int
    """How many were held apart from their padding; see `keep_padding`."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of the export."""
        if not self.padded_pools:
            return ()
        note = (
            f"{self.padded_pools} MaxPool read a padding of zeros; they are held apart by an "
            f"operator that changes nothing, or ONNX Runtime would pad with minus infinity"
        )
        return (note,)


def export_flat(
    flat: FlatModule, inputs: Sequence[InputSpec], opset: int, facts: Mapping[str, object]
) -> Exported:
    """Export a module with symbolic axes; `facts` become the model's metadata.

    Raises ModelError as `run_exporter` does, and for an axis that should be free and is not.
    """
    model, traced = run_exporter(
        flat,
        tuple(torch.from_numpy(np.array(example(spec))) for spec in inputs),
        (tuple(_symbols(inputs)),),
        opset=opset,
        inputs=flat.inputs,
        outputs=flat.outputs,
    )
    onnxmodel.name_by_module(model.graph, OWN)
    onnxmodel.rename_weights(model.graph, OWN)
    onnxmodel.strip(model)
    padded_pools = keep_padding(model.graph)
    onnxmodel.set_metadata(model, facts)
    _check_axes(model, inputs)
    trials = axes.ask(flat, inputs, traced)
    axes.free_outputs(model.graph, trials)
    onnxmodel.check(model, opset)
    return Exported(
        model=model,
        trials=trials,
        traced=Traced(program=traced, inputs=flat.inputs, outputs=flat.outputs),
        padded_pools=padded_pools,
    )


def _symbols(specs: Sequence[InputSpec]) -> Iterator[dict[int, torch.export.Dim]]:
    """The axes of each input that may have any length; those of one name are of one length."""
    known = {BATCH: torch.export.Dim(BATCH)}
    for spec in specs:
        for axis in spec.axes:
            if isinstance(axis, FreeAxis):
                known[axis.name] = torch.export.Dim(axis.name, min=axis.least, max=axis.most)
        yield {at: known[name] for at, name in enumerate(_shape(spec)) if isinstance(name, str)}


def _shape(spec: InputSpec) -> tuple[int | str, ...]:
    """An input's axes as ONNX has them, with the names of those that are free."""
    return (BATCH, *(axis.name if isinstance(axis, FreeAxis) else axis for axis in spec.axes))


def _check_axes(model: onnx.ModelProto, specs: Sequence[InputSpec]) -> None:
    """Name the cause where the exporter made a number, or another axis, of one that has a name."""
    for value, spec in zip(model.graph.input, specs, strict=True):
        for at, name in enumerate(_shape(spec)):
            found = value.type.tensor_type.shape.dim[at]
            if found.dim_param == name or isinstance(name, int):
                continue
            if found.dim_param:
                raise ModelError(
                    f"the module takes the axis {name} of {value.name} as {found.dim_param} alone; "
                    f"axes that are always alike must have one name"
                )
            many = f"{found.dim_value} rows" if name == BATCH else f"a length of {found.dim_value}"
            raise ModelError(
                f"the module fixes the {name} axis: traced with {many} of {value.name}, it takes "
                f"no other number (its `len`, a Python loop over it, an `if` on it, or a "
                f"tensor made with as many entries, does this)"
            )


def keep_padding(graph: onnx.GraphProto) -> int:
    """Put `Max(x, lowest)` between each `Pad` and the `MaxPool` behind it; how many there were.

    ONNX Runtime's optimizer puts a `Pad` into the `MaxPool` behind it (`Pad_Fusion`, seen in
    version 1.31.1), whose own padding never wins the maximum: where all values of a window are
    negative, the zero of the file was the answer and is no more. `Max` with the lowest value of the
    dtype, minus infinity for floats, changes no value and holds the two apart.
    """
    below = [inner for node in graph.node for inner in onnxmodel.subgraphs(node)]
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    pads = {node.output[0] for node in graph.node if node.op_type == "Pad"}
    kept = sum(keep_padding(inner) for inner in below)
    for pool in [node for node in graph.node if node.op_type == "MaxPool"]:
        padded = pool.input[0]
        if padded not in pads or padded not in types:
            continue
        kept += 1
        guard, lowest = f"{padded}.kept", f"{padded}.lowest"
        if guard not in {name for node in graph.node for name in node.output}:
            graph.initializer.append(numpy_helper.from_array(_lowest(types[padded]), lowest))
            node = helper.make_node("Max", [padded, lowest], [guard], name=f"{pool.name}.padding")
            graph.node.insert(list(graph.node).index(pool), node)
        pool.input[0] = guard
    return kept


def _lowest(elem_type: int) -> np.ndarray[tuple[()], np.dtype[np.generic]]:
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    value = -np.inf if dtype.kind == "f" else np.iinfo(dtype).min
    return np.array(value, dtype)
