"""Export any module with torch's exporter, to one file that says nothing of the machine it is from.

Nodes and weights have the names of the user's own modules, and the batch axis is symbolic.
"""

import contextlib
import hashlib
import io
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from pipeline.exporting import onnxmodel
from pipeline.exporting.signatures import BATCH, FlatModule, InputSpec, causes, example, first_line
from pipeline.proof.tracing.torch_values import Traced
from serving.errors import ModelError

LARGEST = 2**31 - 2**20
"""Bytes of weights that protobuf can hold in one message, with room for the graph."""
OWN = "module."
"""What `FlatModule` puts before the names of the user's modules."""
OPERATOR = re.compile(r"target=torch\.ops\.([\w.]+)|OpOverload\(op='([\w.]+)'")
DATA_DEPENDENT = ("GuardOnDataDependentSymNode", "PendingUnbackedSymbolNotFound")
PLACE = re.compile(r'File "([^"]+)", line (\d+), in ')


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An ONNX model beside the graph of PyTorch's operators that it was made of."""

    model: onnx.ModelProto
    traced: Traced
    padded_pools: int
    """How many were held apart from their padding; see `keep_padding`."""


def export_flat(
    flat: FlatModule, specs: Sequence[InputSpec], opset: int, facts: Mapping[str, object]
) -> Exported:
    """Export a module with a symbolic batch axis; `facts` become the model's metadata.

    Raises ModelError for what torch cannot export, with the operator and the line of the user's
    code where they are known, and for a batch axis that it fixes.
    """
    program = _program(flat, specs, opset)
    model, traced = program.model_proto, program.exported_program
    if traced is None:
        raise ModelError("torch kept no graph of the module")
    onnxmodel.name_by_module(model.graph)
    onnxmodel.strip(model)
    _drop_prefix(model.graph)
    padded_pools = keep_padding(model.graph)
    onnxmodel.set_metadata(model, facts)
    _check_batch(model)
    onnxmodel.check(model, opset)
    return Exported(
        model=model,
        traced=Traced(program=traced, inputs=flat.inputs, outputs=flat.outputs),
        padded_pools=padded_pools,
    )


def weights_sha256(module: torch.nn.Module) -> str:
    """The sha256 of a module's state: each tensor's name, dtype, shape and bytes, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            # As bytes, for numpy has no bfloat16.
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _program(flat: FlatModule, specs: Sequence[InputSpec], opset: int) -> torch.onnx.ONNXProgram:
    examples = tuple(torch.from_numpy(np.array(example(spec))) for spec in specs)
    try:
        # Without gradients: a mask that has some makes torch trace one kernel of attention and
        # decompose another, whose memory layout is not the traced one.
        with _silent(), torch.no_grad():
            program = torch.onnx.export(
                flat,
                examples,
                dynamo=True,
                dynamic_shapes=(tuple(_symbols(specs)),),
                opset_version=opset,
                input_names=list(flat.inputs),
                output_names=list(flat.outputs),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ModelError(
            f"torch {torch.__version__} cannot export the module: {_reason(error)}"
        ) from error
    if program is None:
        raise ModelError("torch exported nothing")
    return program


def _symbols(specs: Sequence[InputSpec]) -> Iterator[dict[int, torch.export.Dim]]:
    """The axes of each input that may have any length; those of one name are of one length."""
    known = {BATCH: torch.export.Dim(BATCH)}
    for spec in specs:
        names = dict(enumerate((BATCH, *spec.axes)))
        yield {
            at: known.setdefault(axis, torch.export.Dim(axis))
            for at, axis in names.items()
            if isinstance(axis, str)
        }


def check_weights(module: torch.nn.Module) -> None:
    """Refuse, by ModelError, weights of more than 2 GB, and those that are not on the CPU."""
    tensors = {id(one): one for one in (*module.parameters(), *module.buffers())}.values()
    size = sum(tensor.element_size() * math.prod(tensor.shape) for tensor in tensors)
    if size > LARGEST:
        raise ModelError(
            f"the module has {size / 1e9:.1f} GB of weights; one ONNX file holds at most 2 GB, and "
            f"ferry writes no weights beside it"
        )
    elsewhere = {str(tensor.device) for tensor in tensors} - {"cpu"}
    if elsewhere:
        raise ModelError(f"the module's weights lie on {elsewhere.pop()}; return it on the cpu")


def _check_batch(model: onnx.ModelProto) -> None:
    """Name the cause where the exporter made a number of the batch axis."""
    for value in model.graph.input:
        axis = value.type.tensor_type.shape.dim[0]
        if not axis.dim_param:
            raise ModelError(
                f"the module fixes the batch axis: traced with {axis.dim_value} rows of "
                f"{value.name}, it takes no other number (an `if` on the batch size, or a tensor "
                f"made with as many rows, does this)"
            )


def keep_padding(graph: onnx.GraphProto) -> int:
    """Put `Max(x, lowest)` between each `Pad` and the `MaxPool` behind it; how many there were.

    ONNX Runtime's optimizer puts a `Pad` into the `MaxPool` behind it (`Pad_Fusion`, seen in
    version 1.31.1), whose own padding never wins the maximum: where all values of a window are
    negative, the zero of the file was the answer and is no more. `Max` with the lowest value of the
    dtype, minus infinity for floats, changes no value and holds the two apart.
    """
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    pads = {node.output[0] for node in graph.node if node.op_type == "Pad"}
    kept = 0
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


def _drop_prefix(graph: onnx.GraphProto) -> None:
    """Name nodes and weights as the user's own module does."""
    taken = {value.name for value in (*graph.input, *graph.output)}
    taken |= {name for node in graph.node for name in node.output}
    shorter = {
        tensor.name: tensor.name.removeprefix(OWN)
        for tensor in graph.initializer
        if tensor.name.removeprefix(OWN) not in taken
    }
    for tensor in graph.initializer:
        tensor.name = shorter.get(tensor.name, tensor.name)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = shorter.get(name, name)
        node.name = _own_name(node.name)
    for value in graph.value_info:
        value.name = shorter.get(value.name, value.name)


def _own_name(node: str) -> str:
    """`module.head/Gemm` is `head/Gemm`; what no module within it computes is `main/Gemm`."""
    scope, slash, operator = node.partition("/")
    own = "main" if f"{scope}." == OWN else scope.removeprefix(OWN)
    return f"{own}{slash}{operator}"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Also without what torch logs and prints of an export that fails; the error says it."""
    level = logging.root.manager.disable
    with onnxmodel.quiet(), contextlib.redirect_stderr(io.StringIO()):
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)


def _reason(error: BaseException) -> str:
    """The deepest cause in one line, with the operator and the place in the user's code."""
    chain = causes(error)
    text = "\n".join(str(one) for one in chain)
    operator = next((a or b for a, b in OPERATOR.findall(text)), None)
    place = next((at for at in reversed(PLACE.findall(text)) if "/torch/" not in at[0]), None)
    known = [f"operator {operator}"] if operator else []
    known += [f"at {place[0]}:{place[1]}"] if place else []
    said = first_line(chain[-1])
    if type(chain[-1]).__name__ in DATA_DEPENDENT:
        said = f"what it computes depends on the values of its input: {said}"
    return " ".join([said, *([f"({', '.join(known)})"] if known else [])])
