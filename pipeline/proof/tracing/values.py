"""Every value that an ONNX model computes on its way, by ONNX Runtime and by `onnx.reference`.

Values are asked for by name and in parts, so that memory is bounded by what is asked for at once.
What a node reads and makes is read from the graph, and a part of the graph made a model of its own.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from serving.errors import InputError, ModelError
from serving.runtime.session import open_session
from serving.runtime.tensors import as_fed

Array = npt.NDArray[Any]
STEP = 32
"""Nodes that `onnx.reference` runs at once; what no later node reads is dropped in between."""
REFERENCE_ERRORS = (
    ArithmeticError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What onnx.reference raises for an operator, a type or a shape that it does not know."""
MOVES = frozenset(
    (
        "Cast",
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "Range",
        "Reshape",
        "Shape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    )
)
"""Operators that give values another place and leave them as they are."""


def node_name(node: onnx.NodeProto) -> str:
    """The node's name; where it has none, what it makes."""
    return node.name or f"{node.op_type} of {', '.join(outputs_of(node))}"


def outputs_of(node: onnx.NodeProto) -> list[str]:
    """The names of what a node makes, without those that it leaves out."""
    return [name for name in node.output if name]


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node reads, with those that its subgraphs take from outside."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            own = {one.name for one in (*graph.input, *graph.initializer)}
            own |= {name for inner in graph.node for name in inner.output}
            within = [name for inner in graph.node for name in reads(inner)]
            within += [output.name for output in graph.output]
            yield from (name for name in within if name not in own)


def makers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node that makes each value."""
    return {name: node for node in graph.node for name in outputs_of(node)}


def users(graph: onnx.GraphProto) -> Mapping[str, list[onnx.NodeProto]]:
    """The nodes that read each value."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in set(reads(node)):
            found.setdefault(name, []).append(node)
    return found


def submodel(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[str],
    outputs: Sequence[str],
    types: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """Some nodes of a model, in graph order, as a model of their own.

    `inputs` are fed, of any shape; `types` are their element types, without which only
    `onnx.reference` can run it. Weights come along.
    """
    read = {name for node in nodes for name in reads(node)} | set(outputs)
    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = "part"
    part.graph.node.extend(nodes)
    for name in inputs:
        value = part.graph.input.add(name=name)
        value.type.tensor_type.elem_type = (types or {}).get(name, onnx.TensorProto.UNDEFINED)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    part.graph.initializer.extend(
        one for one in model.graph.initializer if one.name in read and one.name not in inputs
    )
    return part


class Values(Protocol):
    """What a model computes on one row."""

    @property
    def describe(self) -> str:
        """What computes them, for a reader."""

    @property
    def names(self) -> Collection[str]:
        """The values there are."""

    def fetch(self, names: Collection[str]) -> dict[str, Array]:
        """Those of the values that are arrays, by name."""


class OnnxValues:
    """The values of an ONNX model in ONNX Runtime."""

    def __init__(
        self,
        model: onnx.ModelProto,
        feeds: Mapping[str, Array],
        *,
        provider: str = "cpu",
        optimize: bool = False,
    ) -> None:
        """`feeds` are by input name; with `optimize` ONNX Runtime may rewrite the graph.

        A value that is asked for is never fused away: what is exposed is what is computed.
        """
        self.describe = f"{'optimized' if optimize else 'unoptimized'} ONNX Runtime"
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.computed = frozenset(name for node in model.graph.node for name in outputs_of(node))
        self.names: Collection[str] = self.computed | self.constants.keys()
        self.feeds = {name: fed(array) for name, array in feeds.items()}
        self.options: dict[str, Any] = {"provider": provider, "optimize": optimize}
        self._model = model

    def fetch(self, names: Collection[str]) -> dict[str, Array]:
        """The values of that name; a sequence, which is no array, is left out.

        Raises ModelError and InputError when ONNX Runtime cannot run the model on its feeds.
        """
        constants = {
            name: numpy_helper.to_array(self.constants[name])
            for name in names
            if name in self.constants
        }
        computed = [name for name in names if name in self.computed]
        return constants | self._computed(computed)

    def _computed(self, names: Sequence[str]) -> dict[str, Array]:
        if not names:
            return {}
        exposed = onnx.ModelProto()
        exposed.CopyFrom(self._model)
        known = {output.name: output for output in self._model.graph.output}
        del exposed.graph.output[:]
        exposed.graph.output.extend(
            known.get(name) or onnx.ValueInfoProto(name=name) for name in names
        )
        session = open_session(
            exposed.SerializeToString(),
            threads=1,
            provider=self.options["provider"],
            optimize="all" if self.options["optimize"] else "none",
        )
        return _arrays(session.run(self.feeds))


class ReferenceValues:
    """The values of an ONNX model by `onnx.reference`, the standard's own slow implementation."""

    describe = "onnx.reference"

    def __init__(self, model: onnx.ModelProto, feeds: Mapping[str, Array]) -> None:
        """`feeds` are by input name."""
        self.names: Collection[str] = {
            name for node in model.graph.node for name in outputs_of(node)
        }
        self._model = model
        self._feeds = {name: fed(array) for name, array in feeds.items()}

    def fetch(self, names: Collection[str]) -> dict[str, Array]:
        """The values of that name, computed from the start.

        Raises ModelError for an operator that onnx.reference lacks or cannot run here.
        """
        found: dict[str, Array] = {}
        live: dict[str, Any] = dict(self._feeds)
        last = max((at for at, node in self._nodes() if set(node.output) & set(names)), default=-1)
        for start in range(0, last + 1, STEP):
            nodes = [node for _, node in self._nodes()][start : start + STEP]
            live |= _referred(self._model, nodes, live)
            found |= {name: live[name] for name in names if name in live}
            needed = {
                name for at, node in self._nodes() if at >= start + STEP for name in reads(node)
            }
            live = {name: value for name, value in live.items() if name in needed}
        return _arrays(found)

    def _nodes(self) -> Iterator[tuple[int, onnx.NodeProto]]:
        return enumerate(self._model.graph.node)


def _referred(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], live: Mapping[str, Any]
) -> dict[str, Any]:
    """What some nodes that follow each other compute of the values before them."""
    wanted = [name for node in nodes for name in outputs_of(node)]
    read = {name for node in nodes for name in reads(node)} - set(wanted)
    fed_now = {name: live[name] for name in read if name in live}
    part = submodel(model, nodes, list(fed_now), wanted)
    try:
        values = ReferenceEvaluator(part).run(None, fed_now)
    except REFERENCE_ERRORS as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"onnx.reference cannot run the model: {reason}") from error
    return dict(zip(wanted, values, strict=True))


def fed(array: Array) -> Array:
    """The same rows as a runtime takes them: strings as Python's."""
    if not array.ndim:
        raise InputError("a model is fed rows, got a single value")
    return as_fed(array)


def _arrays(values: Mapping[str, Any]) -> dict[str, Array]:
    """A scalar that a kernel gives as a number is an array as well; a sequence is none."""
    return {
        name: np.asarray(value)
        for name, value in values.items()
        if isinstance(value, np.ndarray | np.generic)
    }
