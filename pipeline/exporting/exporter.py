"""Torch's exporter: a PyTorch graph as an ONNX model that does not tell where it was made."""

import contextlib
import io
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import torch

from pipeline.errors import causes, first_line, running
from pipeline.exporting import onnxmodel, tokenizer
from pipeline.exporting.folding import fold_standardisation
from pipeline.exporting.signatures import BATCH
from pipeline.models.parts.graph import Graph
from pipeline.records.ready import Kind
from serving.errors import ModelError

INPUTS: dict[Kind, str] = {"image": "images", "table": "features", "text": tokenizer.IDS}
"""The name of what PyTorch's graph takes; the words of a sentence are looked up before it."""
OPERATOR = re.compile(r"target=torch\.ops\.([\w.]+)|OpOverload\(op='([\w.]+)'")
DATA_DEPENDENT = ("GuardOnDataDependentSymNode", "PendingUnbackedSymbolNotFound")
ModelAndProgram = tuple[onnx.ModelProto, torch.export.ExportedProgram]
"""An ONNX model beside the PyTorch graph that it was made from."""
PLACE = re.compile(r'File "([^"]+)", line (\d+), in ')


def to_onnx(
    graph: Graph, example: np.ndarray[Any, Any], opset: int, *, fold: bool = True
) -> onnx.ModelProto:
    """Export a graph with a symbolic batch axis, named by its modules and without local paths.

    Its standardisation is folded into the first layer where that can be; without `fold` it stays
    in nodes of its own.

    `example` is two raw rows, for instance uint8 [2, H, W, C]: a batch of one would be taken for a
    constant. A graph that reads sentences takes them as strings [batch]. Raises ModelError when
    torch cannot export it.
    """
    made, _ = to_program(graph, example, opset)
    onnxmodel.name_by_module(made.graph)
    onnxmodel.strip(made)
    if fold:
        fold_standardisation(made)
    if graph.kind == "text":
        tokenizer.prepend(made, graph.vocabulary)
    return made


def to_program(graph: Graph, example: np.ndarray[Any, Any], opset: int) -> ModelAndProgram:
    """What torch's exporter makes of a graph."""
    return run_exporter(
        graph.eval(),
        (graph.tensor(example),),
        ({0: torch.export.Dim(BATCH)},),
        opset=opset,
        inputs=[INPUTS[graph.kind]],
        outputs=graph.head.outputs,
    )


def traced(graph: Graph, example: np.ndarray[Any, Any]) -> torch.export.ExportedProgram:
    """A graph as PyTorch's exported program, without local paths and without the example.

    The one of `to_program` does not run: it is taken apart for ONNX, and a view in it may want
    another memory layout than the layer before it gives. Raises ModelError when torch cannot.
    """
    shapes = ({0: torch.export.Dim(BATCH)},)
    with running(f"torch {torch.__version__} cannot trace the module"), _exporting():
        program = torch.export.export(graph.eval(), (graph.tensor(example),), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program


def run_exporter(
    module: torch.nn.Module,
    examples: tuple[torch.Tensor, ...],
    shapes: Any,
    *,
    opset: int,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> ModelAndProgram:
    """Export a module that takes `examples`.

    `shapes` are the symbolic axes of each argument of its `forward`, as `torch.onnx.export` takes
    them in `dynamic_shapes`; `inputs` and `outputs` are the names in the ONNX model. Raises
    ModelError for what torch cannot export.
    """
    with running(f"torch {torch.__version__} cannot export the module"):
        with _exporting():
            program = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=opset,
                input_names=inputs,
                output_names=outputs,
                verbose=False,
            )
        if program is None:
            raise ModelError("torch exported nothing")
        _rename_inner(program, {*inputs, *outputs})
        if program.exported_program is None:
            raise ModelError("torch kept no graph of the module")
        return program.model_proto, program.exported_program


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    """Keep torch's exporter silent, and say its reason in one line."""
    try:
        # Without gradients: a mask that has some makes torch trace one kernel of attention and
        # decompose another, whose memory layout is not the traced one.
        with onnxmodel.quiet(), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
            # Nor what torch logs of an export that fails: the error says it.
            logging.disable(logging.CRITICAL)
            yield
    except torch.onnx.errors.OnnxExporterError as error:
        raise ModelError(
            f"torch {torch.__version__} cannot export the module: {_reason(error)}"
        ) from error


def _rename_inner(program: torch.onnx.ONNXProgram, names: Collection[str]) -> None:
    """Give other names to values within that are called as an input or an output is.

    Torch calls them as their operators, and so may a user call an output: "softmax".
    """
    graph = program.model.graph
    outside = [id(value) for value in (*graph.inputs, *graph.outputs)]
    inner = [value for node in graph.all_nodes() for value in node.outputs]
    inner += [value for below in graph.subgraphs() for value in below.inputs]
    for value in (*inner, *graph.initializers.values()):
        if value.name in names and id(value) not in outside:
            value.name = f"{value.name}.inner"


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
