"""Every value that an ONNX model computes on its way, and the first that is NaN or infinite.

Values are asked for by name and in parts, so that memory is bounded by what is asked for at once.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline.exporting.onnxmodel import subgraphs
from pipeline.records.parity import NonFinite
from serving.runtime.session import open_session
from serving.runtime.tensors import Array, as_fed

NONFINITE_CHUNK = 64
"""Nodes whose values are held at once in the search for one that is not finite."""
BELOW = "-infinity"
"""What attention masks are made of."""
MOVES = {
    *("Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Range"),
    *("Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
}
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
    for graph in subgraphs(node):
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
    feeds: Mapping[str, Array],
    output: str,
) -> onnx.ModelProto:
    """Some nodes of a model, in graph order, as a model of their own with the weights they read.

    It takes inputs of the names and dtypes of `feeds`, of any shape.
    """
    read = {name for node in nodes for name in reads(node)} | {output}
    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = "part"
    part.graph.node.extend(nodes)
    for name, array in feeds.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(as_fed(array).dtype)
        part.graph.input.add(name=name).type.tensor_type.elem_type = kind
    part.graph.output.add(name=output)
    part.graph.initializer.extend(
        one for one in model.graph.initializer if one.name in read and one.name not in feeds
    )
    return part


class OnnxValues:
    """The values of an ONNX model in ONNX Runtime, which computes the graph as it is written."""

    describe = "unoptimized ONNX Runtime"
    """What computes them, for a reader."""

    def __init__(
        self, model: onnx.ModelProto, feeds: Mapping[str, Array], provider: str = "cpu"
    ) -> None:
        """`feeds` are by input name."""
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.computed = frozenset(name for node in model.graph.node for name in outputs_of(node))
        self.names: Collection[str] = self.computed | self.constants.keys()
        self.feeds = {name: as_fed(array) for name, array in feeds.items()}
        self.provider = provider
        self._model = model

    def fetch(self, names: Collection[str]) -> dict[str, Array]:
        """The values of that name; a sequence, which is no array, is left out.

        Raises ModelError and InputError when ONNX Runtime cannot run the model on its feeds.
        """
        found = {
            name: numpy_helper.to_array(self.constants[name])
            for name in names
            if name in self.constants
        }
        computed = [name for name in names if name in self.computed]
        if not computed:
            return found
        exposed = onnx.ModelProto()
        exposed.CopyFrom(self._model)
        known = {output.name: output for output in self._model.graph.output}
        del exposed.graph.output[:]
        exposed.graph.output.extend(
            known.get(name) or onnx.ValueInfoProto(name=name) for name in computed
        )
        session = open_session(
            exposed.SerializeToString(), threads=1, provider=self.provider, optimize="none"
        )
        # A scalar that a kernel gives as a number is an array as well.
        return found | {
            name: np.asarray(value)
            for name, value in session.run(self.feeds).items()
            if isinstance(value, np.ndarray | np.generic)
        }


def first_nonfinite(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> NonFinite | None:
    """The first node in graph order whose output is NaN or infinite while its inputs are finite.

    `feeds` are raw rows by input name, [rows, ...] each. A weight that is not finite counts for the
    node that reads it. Of nodes that lead to an output of the model which is not finite only; None
    when all outputs are finite. A negative infinity is what attention masks are made of, so it is
    named only where nothing else that comes before the output makes NaN or a positive infinity.

    Raises ModelError and InputError for a model that does not run on its feeds.
    """
    values = OnnxValues(model, feeds)
    answers = _kinds(values, [output.name for output in model.graph.output])
    leading = _leading(model, [name for name, kind in answers.items() if kind])
    mask: NonFinite | None = None
    kinds: dict[str, str] = {}
    for start in range(0, len(leading), NONFINITE_CHUNK):
        nodes = leading[start : start + NONFINITE_CHUNK]
        kinds |= _kinds(values, [name for node in nodes for name in outputs_of(node)])
        for node in nodes:
            made = _made(node, kinds)
            if made is not None and kinds[made.tensor] != BELOW:
                return made
            mask = mask or made
    return mask


def _kinds(values: OnnxValues, names: Sequence[str]) -> dict[str, str]:
    """What each value of floats holds that is not finite, the worst of it; "" for nothing."""
    tests: dict[str, Callable[[Array], Array]] = {
        "NaN": np.isnan,
        "infinity": np.isposinf,
        BELOW: np.isneginf,
    }
    return {
        name: next((kind for kind, test in tests.items() if test(array).any()), "")
        for name, array in values.fetch(names).items()
        if array.dtype.kind == "f"
    }


def _made(node: onnx.NodeProto, kinds: Mapping[str, str]) -> NonFinite | None:
    """What a node makes of finite inputs that is not finite."""
    if any(kinds.get(name) for name in reads(node)):
        return None
    for name in outputs_of(node):
        if kind := kinds.get(name):
            return NonFinite(
                node=node_name(node),
                operator=node.op_type,
                tensor=name,
                kind="NaN" if kind == "NaN" else "infinity",
            )
    return None


def _leading(model: onnx.ModelProto, names: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that some values depend on, in graph order."""
    made = makers(model.graph)
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in made and name not in seen:
            seen.add(name)
            waiting += reads(made[name])
    return [node for node in model.graph.node if seen & set(outputs_of(node))]
