"""Pieces of C: numbers, tables, index expressions, indented blocks, and steps on one value."""

import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np

from pipeline.targets.c99.kernels import (
    RANGES,
    Arithmetic,
    Buffer,
    Clamp,
    Curve,
    Dequantize,
    Dtype,
    Grid,
    Quantize,
    Source,
    TailStep,
)
from serving.runtime.tensors import Array

C_TYPES = {
    "float": "float",
    "float32": "float",
    "uint8": "uint8_t",
    "int8": "int8_t",
    "int32": "int32_t",
}
WIDTH = 98


def ctype(dtype: Dtype | str) -> str:
    """The C type of a dtype."""
    return C_TYPES[dtype]


def number(value: float | np.floating) -> str:
    """A float literal that gives this very float32, in the fewest digits."""
    single = np.float32(value)
    if np.isnan(single):
        return "NAN"
    if np.isinf(single):
        return "INFINITY" if single > 0 else "-INFINITY"
    return f"{single!s}f"


def c_string(text: str) -> str:
    """A string literal, of ASCII alone."""
    return '"' + "".join(_letter(byte) for byte in text.encode()) + '"'


def _letter(byte: int) -> str:
    """Three octal digits end by themselves; a question mark could begin a trigraph."""
    plain_letter = 32 <= byte < 127 and chr(byte) not in '"\\?'
    return chr(byte) if plain_letter else f"\\{byte:03o}"


def plain(name: str) -> str:
    """A name of the graph for a comment: whatever could end one or begin something is left out."""
    return re.sub(r"[^\w./:, -]", "_", name, flags=re.ASCII)[:120]


def table(name: str, values: Array, note: str) -> str:
    """A constant array, which stays in flash."""
    flat = values.ravel()
    texts = [number(one) for one in flat] if flat.dtype.kind == "f" else [str(one) for one in flat]
    lines = textwrap.wrap(", ".join(texts), WIDTH, break_on_hyphens=False)
    body = "\n".join(f"  {line}" for line in lines)
    kind = ctype(str(flat.dtype))
    return f"/* {note} */\nstatic const {kind} {name}[{flat.size}] = {{\n{body}\n}};\n"


def times(expression: str, factor: int) -> str:
    """A product, as short as it can be written."""
    if factor == 1 or expression == "0":
        return expression
    return f"{f'({expression})' if ' ' in expression else expression} * {factor}"


def total(*terms: tuple[str, int], start: int = 0) -> str:
    """A sum of expressions by their factors; "0" is left out."""
    parts = [times(name, factor) for name, factor in terms if name != "0" and factor]
    made = " + ".join(parts)
    if not made:
        return str(start)
    return f"{made} {'-' if start < 0 else '+'} {abs(start)}" if start else made


class Block:
    """Lines of C, indented by the loops they stand in."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._depth = 1

    def add(self, *lines: str) -> None:
        """Append lines at the present depth."""
        self.lines += [f"{'    ' * self._depth}{line}" for line in lines]

    def call(self, opening: str, arguments: Sequence[str]) -> None:
        """A call, in as many lines as it takes."""
        room = max(WIDTH - 4 * self._depth - len(opening), 20)
        whole = [argument.replace(" ", "~") for argument in arguments]
        lines = textwrap.wrap(f"{', '.join(whole)});", room, break_long_words=False)
        first, *others = [line.replace("~", " ") for line in lines]
        self.add(f"{opening}{first}", *(f"{' ' * len(opening)}{line}" for line in others))

    @contextmanager
    def braces(self, opening: str) -> Iterator[None]:
        """Everything within stands between braces."""
        self.add(f"{opening} {{")
        self._depth += 1
        yield
        self._depth -= 1
        self.add("}")

    @contextmanager
    def loop(self, name: str, count: int) -> Iterator[str]:
        """A loop from 0, whose variable is given; none, and "0", where it would run once."""
        if count == 1:
            yield "0"
            return
        with self.braces(f"for (int32_t {name} = 0; {name} < {count}; {name}++)"):
            yield name

    @contextmanager
    def loops(self, *counts: tuple[str, int]) -> Iterator[list[str]]:
        """Loops in each other, the outermost first."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.loop(*one)) for one in counts]


@dataclass
class KernelNames:
    """The constants and the operands of one kernel, by the names that its C has for them."""

    prefix: str
    tables: list[tuple[str, Array, str]] = field(default_factory=list)
    """Name, values, note."""
    operands: list[Buffer] = field(default_factory=list)
    """x2, x3, ..."""

    def table(self, kind: str, values: Array, note: str) -> str:
        """The name of a table of these very values: a new one, or the one that is there."""
        for name, known, _ in self.tables:
            if known is values:
                return name
        name = f"{self.prefix}_{kind}"
        same = sum(known.startswith(name) for known, _, _ in self.tables)
        name = f"{name}{same + 1}" if same else name
        self.tables.append((name, values, note))
        return name

    def each(self, kind: str, values: Array, channel: str, note: str) -> str:
        """The number of a channel: of a table, or a literal where all are the same."""
        if (values == values.ravel()[0]).all():
            first = values.ravel()[0]
            return str(first) if values.dtype.kind in "iu" else number(first)
        return f"{self.table(kind, values, note)}[{channel}]"

    def operand(self, buffer: Buffer) -> str:
        """The C name of a buffer that the tail reads."""
        self.operands.append(buffer)
        return f"x{len(self.operands) + 1}"


class Tail:
    """Writes statements on one value, the variable `v`, or `q` where it is a whole number.

    `i` is the place of the value in the answer. What is stored at once gets no variable.
    """

    def __init__(self, block: Block, names: KernelNames, channel: tuple[str, int]) -> None:
        """`channel` is the C expression of the value's channel, and how many there are."""
        self.block = block
        self.names = names
        self.channel = channel
        self.whole = False
        self._expression = ""
        self._declared: set[str] = set()

    def value(self, expression: str) -> None:
        """Let the value be that of a C expression of floats."""
        self.whole, self._expression = False, expression

    def number(self, expression: str) -> None:
        """Let it be that of an expression of integers."""
        self.whole, self._expression = True, expression

    @property
    def _variable(self) -> str:
        """The variable that holds the value by now."""
        if not self._expression.isidentifier():
            name, kind = ("q", "int32_t") if self.whole else ("v", "float")
            declared = name in self._declared
            self._declared.add(name)
            self.block.add(f"{'' if declared else f'{kind} '}{name} = {self._expression};")
            self._expression = name
        return self._expression

    def write(self, steps: Sequence[TailStep]) -> None:
        """Do the steps."""
        for step in steps:
            match step:
                case Clamp():
                    self._clamp(step)
                case Curve(expression):
                    self.value(expression.format(v=self._variable))
                case Arithmetic(sign, operand, swapped):
                    sides = self._variable, self._operand(operand)
                    self.value(f" {sign} ".join(reversed(sides) if swapped else sides))
                case Quantize(grid):
                    self.number(rounded(in_steps(self._variable, grid), step))
                case Dequantize(grid):
                    self.value(value_of(self._variable, grid))

    def _clamp(self, step: Clamp) -> None:
        for bound, sign in ((step.low, ">"), (step.high, "<")):
            if math.isfinite(bound):
                v = self._variable
                self.value(f"{v} {sign} {number(bound)} ? {v} : {number(bound)}")

    def store(self, buffer: Buffer) -> None:
        """Write the value to its place."""
        if self.whole:  # a cast takes one operand, which a call or a variable is
            calls = self._expression.startswith("rounded(")
            self._expression = self._expression if calls else self._variable
        cast = f"({ctype(buffer.dtype)})" if self.whole else ""
        self.block.add(f"y[i] = {cast}{self._expression};", "i++;")

    def _operand(self, operand: float | Array | Source) -> str:
        if isinstance(operand, Source):
            read = f"{self.names.operand(operand.buffer)}[i]"
            return value_of(f"(int32_t){read}", operand.grid) if operand.grid else read
        if isinstance(operand, np.ndarray):
            variable, count = self.channel
            at = variable if operand.size == count else f"i % {operand.size}"
            name = self.names.table("constants", operand, "Constants, by channel or by value.")
            return f"{name}[{at}]"
        return number(operand)


def rounded(expression: str, step: Quantize, clamp: Clamp | None = None) -> str:
    """A float in steps of the grid as a whole number, of the values that a clamp lets through."""
    low, high = RANGES[step.dtype]
    if clamp:
        low, high = (_clamped(bound, step, (low, high)) for bound in (clamp.low, clamp.high))
    bounds = ", ".join(number(one) for one in (step.grid.zero, low, high))
    return f"rounded({expression}, {bounds})"


def _clamped(bound: float, step: Quantize, limits: tuple[int, int]) -> int:
    """Where a bound lies on the grid: rounding never changes the order of two values."""
    steps = np.rint(np.float32(bound) / step.grid.scale) + np.float32(step.grid.zero)
    return int(min(max(float(steps), limits[0]), limits[1]))


def in_steps(value: str, grid: Grid) -> str:
    """A value in steps of the grid; divided as `QuantizeLinear` does it, so that ties are alike."""
    return value if grid.scale == 1 else f"{value} / {number(grid.scale)}"


def value_of(whole: str, grid: Grid) -> str:
    """What a whole number stands for."""
    sign = "-" if grid.zero > 0 else "+"
    centred = f"(float)({whole} {sign} {abs(grid.zero)})" if grid.zero else f"(float){whole}"
    return centred if grid.scale == 1 else f"{centred} * {number(grid.scale)}"
