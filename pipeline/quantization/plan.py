"""Which recipes are tried, and in what order: cheap and likely ones first.

A group is left out where what was tried before it already says that it cannot help.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx

from pipeline.config.experiment import Variant
from pipeline.quantization import recipes
from pipeline.quantization.apply import STATIC_OPERATORS, Source
from pipeline.quantization.prepare import constants
from pipeline.quantization.quality import Goal
from pipeline.quantization.recipes import Recipe
from pipeline.records.quantize import Try

Tries = Sequence[Try]
MOST_FLOAT = (1, 2, 4, 8)
"""Layers that are left in float, as long as half of them stay quantized."""
RECURRENT = ("LSTM", "GRU", "RNN")
PRODUCTS = ("Gemm", "MatMul")
HALF, TENTH = 0.5, 0.1
"""Parts of all weights below which it is of no use to quantize some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A group of recipes that is tried together."""

    name: str
    recipes: Callable[[Tries], Sequence[Recipe]]
    """Made of what was tried so far."""
    unless: Callable[[Tries], str | None] = lambda _tries: None
    """The reason to leave the group out, if there is one."""
    first_inside_ends: bool = False
    """Whether the recipes behind one that is inside both budgets can only be worse."""


def plan(source: Source, variant: Variant, goal: Goal, only: Sequence[str]) -> Iterator[Step]:
    """The steps for a variant; of the recipes named in `only` alone, where some are of it.

    Raises UnknownNameError for a name that is no recipe.
    """
    named = [recipes.parse(name) for name in only]
    wanted = [recipe for recipe in named if recipes.variant_of(recipe) == variant]
    if wanted:
        yield Step(name="the recipes that are named", recipes=lambda _: wanted)
    elif variant == "fp16":
        yield from _half(source)
    else:
        yield from _int8(source, goal)


def _half(source: Source) -> Iterator[Step]:
    count = len(_layers(source.model, STATIC_OPERATORS))
    yield Step(name="half", recipes=lambda _: [recipes.HALF])
    yield Step(
        name="half with layers in float",
        recipes=lambda _: _with_float(recipes.HALF, count),
        unless=lambda tries: _unless_inaccurate(tries, count),
        first_inside_ends=True,
    )


def _int8(source: Source, goal: Goal) -> Iterator[Step]:
    recurrent = bool(_layers(source.prepared, RECURRENT))
    if recurrent:
        yield Step(name="dynamic", recipes=lambda _: recipes.DYNAMIC)
    yield from _static(source)
    if not recurrent:
        products = _minority(source.prepared, PRODUCTS, HALF)
        yield Step(
            name="dynamic",
            recipes=lambda _: recipes.DYNAMIC,
            unless=lambda tries: products or _unless_inside(tries),
        )
    if goal == "size":
        yield Step(name="weights alone", recipes=lambda _: recipes.WEIGHTS)
    else:
        yield Step(
            name="weights alone", recipes=lambda _: recipes.WEIGHTS[:1], unless=_unless_inside
        )


def _static(source: Source) -> Iterator[Step]:
    count = len(_layers(source.prepared, STATIC_OPERATORS))
    minority = _minority(source.prepared, STATIC_OPERATORS, TENTH)
    types = [recipe for recipe in recipes.STATIC if source.raw or not recipe.static.raw_input]

    def unless(tries: Tries) -> str | None:
        return minority or _unless_inaccurate(tries, count)

    yield Step(name="static types", recipes=lambda _: types, unless=lambda _: minority)
    yield Step(name="static, other calibrations", recipes=_calibrations, unless=unless)
    yield Step(
        name="static, layers in float",
        recipes=lambda tries: _with_float(_nearly(tries)[0], count),
        unless=lambda tries: unless(tries) or _unless_several(count),
        first_inside_ends=True,
    )


def _minority(model: onnx.ModelProto, operators: Sequence[str], least: float) -> str | None:
    """Why quantizing these operators is of no use to a model that has its weights elsewhere."""
    known = {name: array for name, array in constants(model).items() if array.dtype.kind == "f"}
    every = sum(array.size for array in known.values())
    names = {node.input[1] for node in _layers(model, operators)}
    own = sum(known[name].size for name in names & set(known))
    if own > least * every:
        return None
    return f"{', '.join(operators)} hold {own:,} of {every:,} weights"


def _unless_inaccurate(tries: Tries, count: int) -> str | None:
    """Calibration and layers in float win accuracy, and never speed."""
    if any(one.inside for one in tries):
        return "a recipe without them is inside both budgets already"
    if not _nearly(tries):
        return "no recipe so far is fast and small enough, and these are no faster and no smaller"
    return _unless_several(count) if count == 0 else None


def _unless_several(count: int) -> str | None:
    return "there are fewer than two layers" if count < 2 else None


def _unless_inside(tries: Tries) -> str | None:
    inside = [one.recipe for one in tries if one.inside]
    return f"{inside[0]} is inside both budgets already" if inside else None


def _nearly(tries: Tries) -> list[Recipe]:
    """The recipes that accuracy alone keeps out, the fastest first."""
    found = [one for one in tries if one.fast and not one.accurate]
    return [recipes.parse(one.recipe) for one in sorted(found, key=lambda one: -one.speed)]


def _calibrations(tries: Tries) -> list[Recipe]:
    fastest = _nearly(tries)[0]
    return [fastest.with_calibration(name) for name in recipes.CALIBRATIONS]


def _with_float(recipe: Recipe, count: int) -> list[Recipe]:
    return [recipe.with_float_layers(most) for most in MOST_FLOAT if 2 * most <= count]


def _layers(model: onnx.ModelProto, operators: Sequence[str]) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in operators]
