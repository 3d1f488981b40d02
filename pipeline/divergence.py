"""Find the first layer at which an ONNX variant leaves the trained model.

The exporter names the values of the ONNX graph after the nodes of PyTorch's own graph, and the
quantizers keep these names; so the two can be walked side by side, in the order of the graph.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from pipeline.export import to_program
from pipeline.graph import Graph
from pipeline.records.parity import Divergence
from serving.session import open_session

__all__ = ["first_divergence"]

Array = npt.NDArray[Any]


def first_divergence(
    graph: Graph, model: onnx.ModelProto, row: Array, limit: float
) -> Divergence | None:
    """The first node, in graph order, that is further off than the gate allows the answer to be.

    `row` is one raw row, for instance uint8 [1, H, W, C], and `limit` the gate on the graph's first
    output. Both are taken relative to the largest value of their tensor, so that layers of
    different scale compare. Where no node alone is beyond that, the one that is furthest off; None
    when no value can be compared.
    """
    wanted = _torch_values(graph, row, _opset(model))
    found = _onnx_values(model, row)
    allowed = limit / max(float(np.abs(wanted[graph.head.outputs[0]]).max()), 1e-12)
    compared = []
    for node in model.graph.node:
        for name in node.output:
            if name in wanted and name in found and wanted[name].shape == found[name].shape:
                divergence = _difference(node, name, wanted[name], found[name])
                if not divergence.relative_diff <= allowed:
                    return divergence
                compared.append(divergence)
    return max(compared, key=lambda one: one.relative_diff, default=None)


class _Recorder(torch.fx.Interpreter):
    """Runs a traced module and keeps every value by the name of its node."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Array] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            # The graph was traced for one memory layout; this run may have chosen another.
            value = value.contiguous()
            self.values[n.name] = value.numpy()
        return value


def _torch_values(graph: Graph, row: Array, opset: int) -> dict[str, Array]:
    """Every value that PyTorch computes on the way, by the names that the exporter gives."""
    program = to_program(graph, np.concatenate([row, row]), opset).exported_program
    assert program is not None  # noqa: S101 - the exporter keeps what it exported
    recorder = _Recorder(program.module())
    with torch.no_grad():
        outputs = recorder.run(graph.tensor(row))
    answers = zip(graph.head.outputs, outputs, strict=True)
    named = {name: value.numpy() for name, value in answers}
    return recorder.values | named


def _onnx_values(model: onnx.ModelProto, row: Array) -> dict[str, Array]:
    """Every value that the ONNX graph computes, without any optimization."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    known = {output.name for output in exposed.graph.output}
    names = [name for node in exposed.graph.node for name in node.output if name]
    exposed.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in known
    )
    session = open_session(exposed.SerializeToString(), threads=1, optimize=False)
    values = session.run({session.inputs[0].name: row})
    # Behind a quantizer the value that goes on is the dequantized one: it may do a ReLU's clipping.
    return {name: values.get(f"{name}_DequantizeLinear_Output", values[name]) for name in values}


def _opset(model: onnx.ModelProto) -> int:
    versions: dict[str, int] = {entry.domain: entry.version for entry in model.opset_import}
    return versions[""]


def _difference(node: onnx.NodeProto, name: str, wanted: Array, found: Array) -> Divergence:
    wide, other = wanted.astype(np.float64), found.astype(np.float64)
    worst = float(np.abs(wide - other).max(initial=0.0))
    scale = max(float(np.abs(wide).max(initial=0.0)), 1e-12)
    return Divergence(
        node=node.name,
        operator=node.op_type,
        tensor=name,
        max_abs_diff=worst,
        relative_diff=worst / scale,
    )
