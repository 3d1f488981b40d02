"""Faults planted in files of other makers, and the node that each of them spoils.

The files are deep ones that are drawn, with names as makers give them, and the small ones of
`foreign_files`; half of them are held against what ONNX Runtime simplifies them to. Each fault is
planted where it changes an answer: a weight that is larger as a whole or in one place, an operator
or an attribute that is another one. `benchmarks/planted_faults.py` prints what the tests assert.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from foreign_files import CLASSES, FEATURES, FILES, TABLE, ForeignFile, simple
from onnx import helper, numpy_helper
from onnxruntime.quantization.shape_inference import quant_pre_process
from small_onnx import copied

from pipeline.proof.tracing.divergence import first_divergence
from pipeline.proof.tracing.values import node_name, reads, users
from pipeline.quantization.prepare import rewritten
from serving.errors import FerryError
from serving.runtime.session import open_session
from serving.runtime.tensors import as_fed

LIMIT = 1e-4
DEEP = 20
PER_FILE = 3
UNREADABLE = ("names_in_another_encoding",)
SWAPPED = {"Relu": "Sigmoid", "Tanh": "Sigmoid", "Add": "Sub", "Sub": "Add", "Mul": "Add"}
Plant = Callable[[onnx.ModelProto, onnx.NodeProto], None]


@dataclass(frozen=True)
class ForeignFault:
    """A file, and what it has become."""

    file: str
    kind: str
    sound: onnx.ModelProto
    spoilt: onnx.ModelProto
    node: str
    feeds: dict[str, np.ndarray]

    def named(self) -> str | None:
        """The node that is named for it."""
        found = first_divergence(self.sound, self.spoilt, self.feeds, LIMIT)
        return None if found is None else found.node


@functools.cache
def faults() -> tuple[ForeignFault, ...]:
    """Some faults of every file, of different nodes, the same ones each time."""
    found: list[ForeignFault] = []
    for at, file in enumerate([*map(deep, range(DEEP)), *FILES]):
        chosen: dict[str, ForeignFault] = {}
        for fault in every_fault(file, simplified=at % 2 == 1, seed=at):
            chosen.setdefault(fault.node, fault)
            if len(chosen) == PER_FILE:
                break
        found += chosen.values()
    return tuple(found)


# Deep files


STYLES: tuple[tuple[Callable[[str, int], str], Callable[[str, int], str]], ...] = (
    # Of a value and of a node, by the operator and its place.
    (lambda op, at: f"model/block_{at}/{op}:0", lambda op, at: f"model/block_{at}/{op}"),
    (lambda op, at: str(100 + at), lambda op, at: ""),
    (lambda op, at: f"{op.lower()}_{at}.tmp_0", lambda op, at: f"p2o.{op}.{at}"),
    (lambda op, at: f"/layers.{at}/{op}_output_0", lambda op, at: f"/layers.{at}/{op}"),
)


class Drawn:
    """A deep model on its way, drawn node by node from a seed."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.value, self.node = STYLES[seed % len(STYLES)]
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def weight(self, *shape: int, around: float = 0.0) -> str:
        name = f"w{len(self.weights)}"
        drawn = around + self.generator.normal(size=shape) / np.sqrt(shape[0])
        self.weights[name] = drawn.astype(np.float32)
        return name

    def add(self, operator: str, *read: str, **attributes: object) -> str:
        at = len(self.nodes)
        made = self.value(operator, at)
        name = self.node(operator, at)
        self.nodes.append(helper.make_node(operator, read, [made], name, **attributes))
        return made

    def block(self, x: str) -> str:
        """What a network is made of, one of its parts."""
        match int(self.generator.integers(7)):
            case 0:
                return self.add("Relu", self.dense(x))
            case 1:
                return self.add("Add", x, self.add("Tanh", self.dense(x)))
            case 2:
                ends = self.weight(FEATURES, around=1), self.weight(FEATURES)
                return self.add("LayerNormalization", x, *ends, axis=-1)
            case 3:
                return self.add("Mul", x, self.add("Sigmoid", self.dense(x)))
            case 4:
                both = self.add("Concat", self.dense(x), self.add("Neg", x), axis=1)
                return self.add("MatMul", both, self.weight(2 * FEATURES, FEATURES))
            case 5:
                bias = self.weight(FEATURES)
                return self.add("Gemm", x, self.weight(FEATURES, FEATURES), bias, alpha=0.9)
            case _:
                parts = self.add("Softmax", self.dense(x), axis=-1)
                return self.add(
                    "Sub", x, self.add("MatMul", parts, self.weight(FEATURES, FEATURES))
                )

    def dense(self, x: str) -> str:
        product = self.add("MatMul", x, self.weight(FEATURES, FEATURES))
        return self.add("Add", product, self.weight(FEATURES, around=0.5))


def deep(seed: int) -> ForeignFile:
    """A model of some dozens of nodes from a row of the table to four numbers."""
    drawn, x = Drawn(seed), "x"
    for _ in range(8):
        x = drawn.block(x)
    drawn.add("MatMul", x, drawn.weight(FEATURES, CLASSES))
    drawn.nodes[-1].output[0] = "y"
    made = simple(drawn.nodes, drawn.weights)
    return ForeignFile(f"deep {seed}", "drawn", lambda: made, {"x": TABLE})


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """As ONNX Runtime writes it at its lowest level of optimization."""
    return rewritten(model, functools.partial(quant_pre_process, skip_symbolic_shape=True))


# The faults


def every_fault(
    file: ForeignFile, *, simplified: bool = False, seed: int = 0
) -> Iterator[ForeignFault]:
    """Every fault of a file, or of what is made of it, that changes one of its answers."""
    if file.name in UNREADABLE:
        return
    try:
        sound = onnx.load_from_string(file.content())
        session = open_session(file.content(), threads=1)
    except FerryError:
        return
    shape = session.inputs[0].shape if session.inputs else ()
    count = shape[0] if shape and isinstance(shape[0], int) else 1
    feeds = {name: as_fed(rows[:count]) for name, rows in file.rows.items()}
    other = simplify(sound) if simplified else sound
    readers = users(other.graph)
    known = [
        (at, kind, plant)
        for at, one in enumerate(other.graph.node)
        for kind, plant in plants(other, one, readers).items()
    ]
    for index in np.random.default_rng(seed).permutation(len(known)):
        at, kind, plant = known[index]
        spoilt = copied(other)
        plant(spoilt, spoilt.graph.node[at])
        if _differs(sound, spoilt, feeds):
            named = node_name(spoilt.graph.node[at])
            yield ForeignFault(file.name, kind, sound, spoilt, named, feeds)


def _differs(sound: onnx.ModelProto, spoilt: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> bool:
    """Whether both run, and differ by far more than the limit."""
    try:
        wanted, found = (
            open_session(one.SerializeToString(), threads=1, optimize="none").run(feeds)
            for one in (sound, spoilt)
        )
    except FerryError:
        return False
    return any(
        isinstance(one, np.ndarray)
        and one.dtype.kind == "f"
        and one.shape == found[name].shape
        and float(np.abs(one.astype(float) - found[name].astype(float)).max(initial=0)) > 10 * LIMIT
        for name, one in wanted.items()
    )


def plants(
    model: onnx.ModelProto, node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]]
) -> dict[str, Plant]:
    """The faults that a node can have, by their kind; a weight of several nodes has none."""
    floats = {
        one.name
        for one in model.graph.initializer
        if one.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        and len(readers.get(one.name, ())) == 1
    }
    found: dict[str, Plant] = {}
    for name in [one for one in reads(node) if one in floats]:
        found[f"{name} larger"] = functools.partial(_weight, name, lambda array: array * 1.25)
        found[f"{name} off in one place"] = functools.partial(_weight, name, _one_off)
    if node.op_type in SWAPPED and not node.domain:
        found[f"{node.op_type} replaced"] = _swapped
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.FLOATS:
            found[f"{attribute.name} larger"] = functools.partial(_floats, attribute.name)
        elif attribute.type == onnx.AttributeProto.FLOAT:
            found[f"{attribute.name} larger"] = functools.partial(_float, attribute.name)
        elif attribute.name == "perm":
            found["axes swapped"] = _perm
    return found


def _weight(
    name: str,
    change: Callable[[np.ndarray], np.ndarray],
    model: onnx.ModelProto,
    _node: onnx.NodeProto,
) -> None:
    (tensor,) = [one for one in model.graph.initializer if one.name == name]
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(array).astype(array.dtype), name))


def _one_off(array: np.ndarray) -> np.ndarray:
    """Where it is largest, for a weight that is near zero changes nothing."""
    changed = array.copy()
    changed.flat[np.abs(array).argmax()] *= 1.1
    return changed


def _swapped(_model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    node.op_type = SWAPPED[node.op_type]
    del node.attribute[:]


def _floats(name: str, _model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    for one in node.attribute:
        if one.name == name:
            one.floats[:] = [value * 1.25 + 0.01 for value in one.floats]


def _float(name: str, _model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    for one in node.attribute:
        if one.name == name:
            one.f = one.f * 1.25 + 0.01


def _perm(_model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    for one in node.attribute:
        if one.name == "perm":
            one.ints[-2:] = [one.ints[-1], one.ints[-2]]
