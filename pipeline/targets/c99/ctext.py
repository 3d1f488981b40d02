"""Pieces of C: numbers, tables, index expressions, indented blocks."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from pipeline.targets.c99.kernels import Dtype
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
        """A call, in two lines where one would be too long."""
        whole = f"{opening}{', '.join(arguments)});"
        if len(whole) + 4 * self._depth <= WIDTH:
            self.add(whole)
            return
        middle = -(-len(arguments) // 2)
        self.add(f"{opening}{', '.join(arguments[:middle])},")
        self.add(f"{' ' * len(opening)}{', '.join(arguments[middle:])});")

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
