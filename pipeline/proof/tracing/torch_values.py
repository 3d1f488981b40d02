"""Every value that PyTorch computes on its way, by the names that the exporter gives them in ONNX.

What `torch.onnx.export(dynamo=True)` made an ONNX graph of is a graph of PyTorch's own operators,
whose nodes give the ONNX values their names; it is run node by node.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.export.graph_signature import InputKind, OutputKind

from pipeline.errors import running
from pipeline.exporting.exporter import INPUTS, to_program
from pipeline.models.parts.graph import Graph, as_tensor
from pipeline.models.parts.vocabulary import Vocabulary
from pipeline.proof.tracing.pairs import product_of
from pipeline.records.ready import words
from serving.runtime.tensors import Array

LINEAR = "aten::linear"
BIAS = 2
"""Its place among the arguments of a linear layer."""
RECURRENT = ("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu")
LAYERS, BIDIRECTIONAL, BATCH_FIRST = 4, 7, 8
"""Places of these among the arguments of torch's recurrent operators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A PyTorch module as torch's exporter traced it.

    `torch.onnx.export(module, example, dynamo=True, ...)` gives a program; then
    `Traced(program=program.exported_program, inputs=(...), outputs=(...))`.
    """

    program: torch.export.ExportedProgram
    inputs: tuple[str, ...]
    """The names of the ONNX model's inputs, in the order of the module's tensors."""
    outputs: tuple[str, ...]
    """The same of its outputs."""


@dataclass(slots=True, kw_only=True)
class TorchValues:
    """The values of a traced module on one row."""

    traced: Traced
    feeds: Mapping[str, Array]
    """By input name."""
    before: Mapping[str, Array] = field(default_factory=dict)
    """Values that Python computes before the module, by the names they have in ONNX."""
    describe: ClassVar[str] = "PyTorch"
    """What computes them, for a reader."""

    @property
    def names(self) -> Collection[str]:
        """The nodes of PyTorch's graph, its outputs and what comes before it."""
        nodes = {node.name for node in self._graph.nodes if node.op == "call_function"}
        inner = {_states(node) for node in self._graph.nodes if _is_recurrent(node)}
        inner |= {product_of(node.name) for node in self._graph.nodes if _has_bias(node)}
        # A user may have called an input as torch calls a value.
        nodes -= set(self.traced.inputs)
        return nodes | inner | set(self.traced.outputs) | set(self.before)

    @property
    def recurrent(self) -> list[tuple[str, int]]:
        """The states of each recurrent operator, in graph order, and how many layers it has."""
        return [
            (_states(node), int(node.args[LAYERS]))
            for node in self._graph.nodes
            if _is_recurrent(node)
        ]

    @property
    def _graph(self) -> torch.fx.Graph:
        graph: torch.fx.Graph = self.traced.program.graph_module.graph
        return graph

    def fetch(self, names: Collection[str]) -> dict[str, Array]:
        """The tensors of these names; the states of a recurrent operator as ONNX lays them out.

        Raises ModelError for rows that the traced operators refuse, as the module may not.
        """
        recorder = _Recorder(self.traced.program.graph_module, set(names))
        with running("the graph that torch traced refuses the rows"), torch.no_grad():
            outputs = recorder.run(*self._arguments())
        kinds = self.traced.program.graph_signature.output_specs
        answers = [
            value
            for value, spec in zip(outputs, kinds, strict=True)
            if spec.kind == OutputKind.USER_OUTPUT
        ]
        named = zip(self.traced.outputs, answers, strict=True)
        found = recorder.values | {name: _array(value) for name, value in named if name in names}
        return found | {name: self.before[name] for name in names if name in self.before}

    def _arguments(self) -> list[Any]:
        """Weights, constants and inputs, in the order in which the graph takes them."""
        program = self.traced.program
        tensors: dict[str, Any] = {**program.constants, **program.state_dict}
        inputs = iter(self.traced.inputs)
        return [
            as_tensor(self.feeds[next(inputs)])
            if spec.kind == InputKind.USER_INPUT
            else tensors[str(spec.target)]
            for spec in program.graph_signature.input_specs
        ]


def of_graph(graph: Graph, row: Array, opset: int) -> TorchValues:
    """The values of ferry's own graph on one raw row, [1, ...], as a data set keeps it."""
    _, program = to_program(graph, np.concatenate([row, row]), opset)
    name = INPUTS[graph.kind]
    traced = Traced(program=program, inputs=(name,), outputs=tuple(graph.head.outputs))
    tensor = graph.tensor(row).numpy()
    before = {name: tensor}
    if graph.kind == "text":
        before |= _looked_up(row, graph.vocabulary)
    return TorchValues(traced=traced, feeds={name: tensor}, before=before)


class _Recorder(torch.fx.Interpreter):
    """Runs a traced module and keeps the values that are wanted."""

    def __init__(self, module: torch.fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.values: dict[str, Array] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        # What a node reads is let go once it has run.
        arguments = self.fetch_args_kwargs_from_env(n)[0]
        value = super().run_node(n)
        if _has_bias(n) and product_of(n.name) in self.wanted:
            self.values[product_of(n.name)] = _array(value - arguments[BIAS])
        if isinstance(value, Tensor):
            # The graph was traced for one memory layout; this run may have chosen another.
            value = value.contiguous()
            if n.name in self.wanted:
                self.values[n.name] = _array(value)
        elif _is_recurrent(n) and _states(n) in self.wanted:
            self.values[_states(n)] = _array(_as_onnx(value[0], n.args))
        return value


def _operator(node: torch.fx.Node) -> str:
    name = getattr(node.target, "name", None)
    return str(name()).split(".")[0] if callable(name) else ""


def _is_recurrent(node: torch.fx.Node) -> bool:
    return _operator(node) in RECURRENT


def _has_bias(node: torch.fx.Node) -> bool:
    return _operator(node) == LINEAR and len(node.args) > BIAS and node.args[BIAS] is not None


def _states(node: torch.fx.Node) -> str:
    return f"{node.name}.states"


def _as_onnx(states: Tensor, arguments: Sequence[Any]) -> Tensor:
    """States of all steps as ONNX's LSTM has them: [steps, directions, batch, units]."""
    if arguments[BATCH_FIRST]:
        states = states.transpose(0, 1)
    directions = 2 if arguments[BIDIRECTIONAL] else 1
    apart: Tensor = states.unflatten(2, (directions, -1))
    return apart.transpose(1, 2)


def _array(value: Tensor) -> Array:
    return value.detach().contiguous().numpy()


def _looked_up(row: Array, vocabulary: Vocabulary) -> dict[str, Array]:
    """What the nodes of `pipeline.exporting.tokenizer` compute, by Python alone."""
    found = words(str(row[0]))
    ids = replace(vocabulary, length=len(found)).encode(row)
    return {
        "text.words": np.array([found], dtype=object).reshape(1, len(found)),
        "text.counts": np.array([len(found)], np.int64),
        "text.ids": ids,
        "text.padded": np.pad(ids, ((0, 0), (0, vocabulary.length))),
    }
