"""Every value that an ONNX model computes on its way: by ONNX Runtime, and by `onnx.reference`.

Values are asked for by name and in parts, so that memory is bounded by what is asked for at once.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from pipeline.errors import InputError, ModelError
from pipeline.tracing.graphs import outputs_of, reads, submodel
from serving.session import open_session

__all__ = ["Array", "OnnxValues", "ReferenceValues", "Values", "fed"]

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


class Values(Protocol):
    """What a model computes on one row."""

    @property
    def told(self) -> str:
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
        self.told = f"{'optimized' if optimize else 'unoptimized'} ONNX Runtime"
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

    told = "onnx.reference"

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
    if array.dtype.kind == "U":
        return array.astype(object)
    if not array.ndim:
        raise InputError("a model is fed rows, got a single value")
    return np.ascontiguousarray(array)


def _arrays(values: Mapping[str, Any]) -> dict[str, Array]:
    """A scalar that a kernel gives as a number is an array as well; a sequence is none."""
    return {
        name: np.asarray(value)
        for name, value in values.items()
        if isinstance(value, np.ndarray | np.generic)
    }
