"""Read an ONNX graph for one row of the batch: what is constant, and where each tensor lies.

What moves values without changing them (Transpose, Reshape, Gather by constants, ...) makes no
code: a tensor is a view that knows the place of each of its values in a buffer.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from pipeline.targets.c99.ctext import plain
from pipeline.targets.c99.kernels import (
    RANGES,
    Buffer,
    Dtype,
    Elementwise,
    Grid,
    Kernel,
    Reorder,
    Source,
)
from serving.errors import ModelError
from serving.runtime.tensors import Array

DTYPES: Mapping[int, Dtype] = {
    TensorProto.FLOAT: "float",
    TensorProto.UINT8: "uint8",
    TensorProto.INT8: "int8",
}
STATIC = "quantize with ranges that are measured beforehand, `quantize: {recipes: \
[static-u8s8-reduced]}`, or bundle the fp32 variant"
ELSEWHERE = "a C program holds convolutions and linear layers; bundle it for `--target cpu`"
CURES: Mapping[str, str] = {
    **dict.fromkeys(("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"), STATIC),
    **dict.fromkeys(("DynamicQuantizeLSTM", "MatMulNBits", "QLinearConv", "QGemm"), STATIC),
}
RESERVED = """
alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t class co_await
co_return co_yield compl concept const const_cast consteval constexpr constinit continue decltype
default delete do double dynamic_cast else enum explicit export extern false float for friend goto
if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private
protected public register reinterpret_cast requires restrict return short signed sizeof static
static_assert static_cast struct switch template this thread_local throw true try typedef typeid
typename typeof typeof_unqual union unsigned using virtual void volatile while xor xor_eq
arena i386 linux unix
"""
"""Names that an argument cannot have: words of C, to C23, and of C++, which may include the header;
what the program itself uses there; and what GNU's dialects define."""


@dataclass(frozen=True, slots=True)
class View:
    """A computed tensor: the place of each of its values in a buffer."""

    source: Source
    index: Array
    """int64, of the tensor's shape with a batch of 1."""

    @property
    def raw(self) -> bool:
        """Whether it holds whole numbers that nothing has made values of."""
        return self.source.grid is None and self.source.buffer.dtype != "float"

    @property
    def covers(self) -> bool:
        """Whether it holds every value of its buffer exactly once."""
        flat = np.sort(self.index, axis=None)
        return np.array_equal(flat, np.arange(self.source.buffer.size))


@dataclass(frozen=True, slots=True)
class QuantizedConstant:
    """A constant of whole numbers behind a `DequantizeLinear`."""

    whole: Array
    scale: Array
    """float32, a scalar or one for each place along `axis`."""
    zero: Array
    axis: int

    def along(self, values: Array) -> Array:
        """Scales or zero points in a shape that goes with the whole numbers."""
        if values.size == 1:
            return values.reshape(())
        shape = [1] * self.whole.ndim
        shape[self.axis] = values.size
        return values.reshape(shape)

    @property
    def values(self) -> Array:
        """What it stands for, float32."""
        centred = self.whole.astype(np.int64) - self.along(self.zero)
        return centred.astype(np.float32) * self.along(self.scale)


Constant = Array | QuantizedConstant
"""A constant."""


class Node:
    """A node of the graph, and how to refuse it."""

    def __init__(self, proto: onnx.NodeProto, opset: int) -> None:
        self.proto = proto
        self.operator: str = proto.op_type
        self.opset = opset
        self.attributes = {one.name: helper.get_attribute_value(one) for one in proto.attribute}
        self.name = plain(proto.name or f"{proto.op_type} of {', '.join(proto.output)}")

    def get(self, name: str, default: Any) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def refuse(self, reason: str, cure: str = ELSEWHERE) -> NoReturn:
        """Say what C cannot do here, and what would help."""
        raise ModelError(f"no C program for {self.operator} (node {self.name!r}): {reason}; {cure}")


class Program:
    """The kernels so far, and the tensors that they make."""

    def __init__(self) -> None:
        self.kernels: list[Kernel] = []
        self.values: dict[str, View | Constant] = {}
        self.inputs: list[Buffer] = []
        self.outputs: list[Buffer] = []
        self.taken: set[str] = set()

    def constant(self, node: Node, position: int, role: str) -> Constant | None:
        """The constant that a node reads there; None where it reads nothing."""
        names = node.proto.input
        if position >= len(names) or not names[position]:
            return None
        found = self.values[names[position]]
        if isinstance(found, View):
            node.refuse(f"its {role} must be constant, it is computed")
        return found

    def array(self, node: Node, position: int, role: str) -> Array | None:
        """The same as float32, or whatever plain array it is."""
        found = self.constant(node, position, role)
        return found.values if isinstance(found, QuantizedConstant) else found

    def view(self, node: Node, position: int = 0) -> View:
        """The computed tensor that a node reads there, as values."""
        found = self.values[node.proto.input[position]]
        if not isinstance(found, View):
            node.refuse("it computes with constants alone where a tensor was expected")
        if found.raw:
            node.refuse(f"it would compute with {found.source.buffer.dtype} as they are")
        return found

    def add(self, kernel: Kernel, index: Array, grid: Grid | None = None) -> View:
        """Append a kernel; returns its answer as a tensor."""
        self.kernels.append(kernel)
        return View(Source(kernel.target, grid), index)

    def buffer(self, dtype: Dtype, size: int) -> Buffer:
        """New memory."""
        return Buffer(f"t{len(self.kernels) + 1}", dtype, size)

    def made_at(self, view: View) -> int:
        """The number of the kernel that makes a tensor; -1 for an input."""
        places = (at for at, one in enumerate(self.kernels) if one.target == view.source.buffer)
        return next(places, -1)

    def arranged(self, view: View, order: Array, title: str) -> View:
        """The tensor with its values in the order that an index of the same shape tells."""
        if view.index.size == view.source.buffer.size and np.array_equal(view.index, order):
            return view
        places = np.empty(order.size, np.int64)
        places[order.ravel()] = view.index.ravel()
        loops = nested(places)
        if loops is None:
            raise ModelError(
                f"no C program for the model: {title} takes values in an order that no nested "
                f"loops can make; {ELSEWHERE}"
            )
        source = Source(view.source.buffer)
        target = self.buffer(view.source.buffer.dtype, order.size)
        kernel = Reorder(
            title=f"{title}: reordered",
            source=source,
            target=target,
            start=int(places[0]),
            loops=loops,
        )
        return self.add(kernel, order, view.source.grid)

    def whole_buffer(self, view: View, title: str) -> View:
        """The tensor, copied where it does not hold its buffer's values exactly once."""
        if view.covers:
            return view
        return self.arranged(view, np.arange(view.index.size).reshape(view.index.shape), title)

    def identifier(self, name: str) -> str:
        """A C name that is not taken yet, in small or in capital letters."""
        wanted = re.sub(r"\W", "_", name, flags=re.ASCII)
        taken = wanted in RESERVED.split() or wanted == wanted.upper()
        if taken or re.match(r"_|\d|step\d+$|\w+_t$", wanted):
            wanted = f"v_{wanted}"  # macros are in capitals, types end in _t
        found, number = wanted, 2
        while found.upper() in self.taken:
            found, number = f"{wanted}_{number}", number + 1
        self.taken.add(found.upper())
        return found

    def take_input(self, value: onnx.ValueInfoProto) -> None:
        """Declare an input of the model."""
        described = value.type.tensor_type
        name, kind = value.name, TensorProto.DataType.Name(described.elem_type)
        if described.elem_type not in DTYPES:
            raise ModelError(
                f"no C program for the model: its input {name!r} is {kind.lower()}, C takes rows "
                f"of float, uint8 or int8; bundle it for `--target cpu`"
            )
        axes = [axis.dim_value or axis.dim_param or "?" for axis in described.shape.dim]
        batch, *shape = axes or [1]
        if batch != 1 and isinstance(batch, int):
            raise ModelError(
                f"no C program for the model: its input {name!r} takes {batch} rows at once, C "
                f"takes one; export it with a free batch axis"
            )
        if free := [axis for axis in shape if not isinstance(axis, int)]:
            raise ModelError(
                f"no C program for the model: the axis {free[0]!r} of its input {name!r} has no "
                f"fixed size, and C has no memory to grow; export it with fixed sizes"
            )
        sizes = [1, *(int(axis) for axis in shape)]
        dtype = DTYPES[described.elem_type]
        size, row = int(np.prod(sizes)), tuple(sizes[1:])
        buffer = Buffer(self.identifier(name), dtype, size, "input", row)
        self.inputs.append(buffer)
        self.values[name] = View(Source(buffer), np.arange(buffer.size).reshape(sizes))

    def give_output(self, name: str) -> None:
        """Let the values of a tensor end in an argument of the program, in the graph's order."""
        view = self.values[name]
        if not isinstance(view, View):
            raise ModelError(f"no C program for the model: its output {name!r} is constant")
        dtype: Dtype = "float" if view.source.grid else view.source.buffer.dtype
        shape = view.index.shape[1:]
        target = Buffer(self.identifier(name), dtype, view.index.size, "output", shape)
        self.outputs.append(target)
        straight = np.arange(view.index.size).reshape(view.index.shape)
        ordered = self.arranged(view, straight, plain(name))
        self.kernels.append(
            Elementwise(title=plain(name), source=ordered.source, target=target, channels=1)
        )


def fold(proto: onnx.NodeProto, known: Sequence[Array], opset: int) -> list[Array]:
    """What a node makes of constants."""
    names = [name for name in proto.input if name]
    graph = helper.make_graph(
        [proto],
        "folded",
        [],
        [onnx.ValueInfoProto(name=name) for name in proto.output if name],
        [numpy_helper.from_array(value, name) for name, value in zip(names, known, strict=True)],
    )
    opsets = [helper.make_opsetid("", opset)]
    return list(ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets)).run(None, {}))


def nested(places: Array) -> tuple[tuple[int, int], ...] | None:
    """Loops that visit places in this order, outermost first: how often, and how far each time.

    None where no loops do; the first place is where they begin.
    """
    loops: list[tuple[int, int]] = []
    starts = places
    while starts.size > 1:
        step = int(starts[1] - starts[0])
        breaks = np.flatnonzero(np.diff(starts) != step)
        count = int(breaks[0]) + 1 if breaks.size else starts.size
        if starts.size % count:
            return None
        blocks = starts.reshape(-1, count)
        if not (blocks - blocks[:, :1] == np.arange(count) * step).all():
            return None
        loops.append((count, step))
        starts = blocks[:, 0]
    return tuple(reversed(loops))


def clipped(values: Array, dtype: Dtype) -> bool:
    """Whether all values fit into a dtype."""
    low, high = RANGES[dtype]
    return bool(values.min(initial=0) >= low and values.max(initial=0) <= high)


def every_node(model: onnx.ModelProto) -> Iterator[Node]:
    """The nodes, with the opset of their domain; a domain of others is refused by the operator."""
    opsets = {one.domain or "ai.onnx": one.version for one in model.opset_import}
    for proto in model.graph.node:
        node = Node(proto, opsets.get(proto.domain or "ai.onnx", 0))
        if proto.domain not in ("", "ai.onnx"):
            node.refuse(f"it is an operator of {proto.domain}", CURES.get(proto.op_type, ELSEWHERE))
        yield node
