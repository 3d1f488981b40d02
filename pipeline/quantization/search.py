"""Search the best recipe for one variant: which are tried, in what order, and which is kept.

Cheap and likely recipes come first. A group of recipes is left out where what was tried before it
already says that it cannot help. Which recipe is best depends on speeds that are measured now, on
this machine.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx

from pipeline.config.experiment import QuantizeConfig, Variant
from pipeline.exporting.onnxmodel import constants
from pipeline.quantization import recipes
from pipeline.quantization.apply import STATIC_OPERATORS, Quantizer
from pipeline.quantization.judging import Judge
from pipeline.quantization.recipes import Recipe
from pipeline.quantization.slowness import slowness
from pipeline.records.quantize import Budget, Search, Try
from serving.runtime.kernels import VNNI, overflows

SMALL_GAIN = 0.02
"""How much better a later recipe must be to be preferred: less is noise."""
MOST_FLOAT = (1, 2, 4, 8)
"""Layers that are left in float, as long as half of them stay quantized."""
RECURRENT = ("LSTM", "GRU", "RNN")
PRODUCTS = ("Gemm", "MatMul")
HALF, TENTH = 0.5, 0.1
"""Parts of all weights below which it is of no use to quantize some."""

Tries = Sequence[Try]
Training = Callable[[Recipe], onnx.ModelProto]
"""Makes the model after training with a recipe's rounding."""


def search(
    judge: Judge, variant: Variant, training: Training | None = None
) -> tuple[Search, bytes]:
    """Try the recipes of a variant; the trace, and the bytes of the best file or none.

    `training` is the last resort of int8, for the recipe that comes nearest, where accuracy alone
    kept it out.
    """
    config = judge.config
    budget = Budget(
        accuracy_loss=config.accuracy_loss,
        error_increase=config.error_increase,
        min_speedup=config.min_speedup.of(variant),
    )
    tries: list[Try] = []
    contents: dict[str, bytes] = {}
    not_tried: dict[str, str] = {}
    for group in plan(judge.quantizer, variant, config, tries):
        if group.unless:
            not_tried[group.name] = group.unless
            continue
        for recipe in group.recipes:
            tried, contents[recipe.name] = judge.attempt(recipe, budget)
            tries.append(tried)
            if tried.inside and group.first_inside_ends:
                break
    best = best_of(tries, config)
    nearest = _nearest(tries)
    if best is None and nearest and training and variant == "int8":
        tried, contents[nearest.name] = judge.attempt(nearest, budget, training(nearest))
        tries.append(tried)
        best = best_of(tries, config)
    shown = best or _nearest_inside(tries)
    found = Search(
        budget=budget,
        tries=tuple(tries),
        not_tried=not_tried,
        chosen=best.recipe if best else None,
        reason=reason_of(best, tries, config),
        qat_epochs=best.qat_epochs if best else 0,
        slowness=slowness(judge, shown, contents[shown.recipe] if shown else b"", budget),
    )
    return found, contents[best.recipe] if best else b""


def _nearest(tries: Tries) -> Recipe | None:
    """The recipe with the least loss of those that accuracy alone keeps out."""
    losses = {
        one.recipe: one.quality.loss
        for one in tries
        if one.fast and not one.accurate and one.quality and one.quality.loss is not None
    }
    return recipes.parse(min(losses, key=lambda name: losses[name])) if losses else None


def best_of(tries: Sequence[Try], config: QuantizeConfig) -> Try | None:
    """The fastest or smallest of those inside both budgets, the first of nearly equal ones."""
    best: Try | None = None
    for one in tries:
        if one.inside and (best is None or _times_better(one, best, config.goal) > 1 + SMALL_GAIN):
            best = one
    return best


def reason_of(best: Try | None, tries: Sequence[Try], config: QuantizeConfig) -> str:
    """Why a recipe was kept, or why none was, with the figures."""
    if best:
        inside = sum(one.inside for one in tries)
        word = "fastest" if config.goal == "speed" else "smallest"
        which = f"the {word} of {inside} recipes" if inside > 1 else "the one recipe"
        where = f"{which} inside both budgets, of {len(tries)} tried"
        return f"{best.recipe} is {where}: {best.figures()}"
    nearest = _nearest_inside(tries)
    if nearest is None:
        return "no recipe fits the model, so fp32 ships"
    return (
        f"none of {len(tries)} recipes is inside both budgets, so fp32 ships; nearest is "
        f"{nearest.recipe}: {nearest.verdict}"
    )


def _nearest_inside(tries: Tries) -> Try | None:
    return max(tries, key=lambda one: (one.accurate + one.fast, one.speed), default=None)


def _times_better(one: Try, other: Try, goal: str) -> float:
    if goal == "speed":
        return one.speed / other.speed
    return (other.bytes or 0) / (one.bytes or 1)


@dataclass(frozen=True, slots=True)
class RecipeGroup:
    """Recipes that are tried together."""

    name: str
    recipes: Sequence[Recipe]
    unless: str | None = None
    """The reason to leave the group out, if there is one."""
    first_inside_ends: bool = False
    """Whether the recipes behind one that is inside both budgets can only be worse."""


def plan(
    quantizer: Quantizer, variant: Variant, config: QuantizeConfig, tries: Tries
) -> Iterator[RecipeGroup]:
    """The groups for a variant; the recipes that `config` names alone, where some make it.

    Each is made when it is its turn, of the `tries` until then. Raises UnknownNameError for a name
    that is no recipe.
    """
    named = [recipes.parse(name) for name in config.recipes]
    wanted = [recipe for recipe in named if recipes.variant_of(recipe) == variant]
    if wanted:
        yield RecipeGroup("the recipes that are named", wanted)
    elif variant == "fp16":
        yield from _half(quantizer, config, tries)
    else:
        yield from _int8(quantizer, config, tries)


def _half(quantizer: Quantizer, config: QuantizeConfig, tries: Tries) -> Iterator[RecipeGroup]:
    count = len(_layers(quantizer.model, STATIC_OPERATORS))
    yield RecipeGroup("half", [recipes.HALF])
    unless = _unless_inaccurate(tries, config) or _unless_several(count)
    layers = _with_float(recipes.HALF.name, count)
    yield RecipeGroup("half with layers in float", layers, unless, first_inside_ends=True)


def _int8(quantizer: Quantizer, config: QuantizeConfig, tries: Tries) -> Iterator[RecipeGroup]:
    recurrent = bool(_layers(quantizer.prepared, RECURRENT))
    products = _minority(quantizer.prepared, PRODUCTS, HALF)
    dynamic = _of_both_ranges(recipes.DYNAMIC, config)
    if recurrent:
        yield RecipeGroup("dynamic", dynamic)
    yield from _static(quantizer, config, tries)
    if not recurrent:
        yield RecipeGroup("dynamic", dynamic, products)
    if config.goal == "size":
        yield RecipeGroup("weights alone", recipes.WEIGHTS)
    else:
        # Matrices alone are faster so: of other layers it makes floats again.
        unless = products and _unless_inside(tries)
        yield RecipeGroup("weights alone", recipes.WEIGHTS[:1], unless)


def _static(quantizer: Quantizer, config: QuantizeConfig, tries: Tries) -> Iterator[RecipeGroup]:
    count = len(_layers(quantizer.prepared, STATIC_OPERATORS))
    minority = _minority(quantizer.prepared, STATIC_OPERATORS, TENTH)
    types = [recipe for recipe in recipes.STATIC if quantizer.raw or not recipe.static.raw_input]
    yield RecipeGroup("static types", _of_both_ranges(types, config), minority)
    unless = minority or _unless_inaccurate(tries, config)
    fast = _fastest_kept_out(tries, "static")
    other = [f"{fast.recipe}-{one}" for one in recipes.CALIBRATIONS] if fast else []
    yield RecipeGroup("static, other calibrations", list(map(recipes.parse, other)), unless)
    unless = minority or _unless_inaccurate(tries, config) or _unless_several(count)
    fast = _fastest_kept_out(tries, "static")
    layers = _with_float(fast.recipe, count) if fast else []
    yield RecipeGroup("static, layers in float", layers, unless, first_inside_ends=True)


def _of_both_ranges(reduced: Sequence[Recipe], config: QuantizeConfig) -> Sequence[Recipe]:
    """Recipes of 7 bits and, where VNNI may be needed, of 8; first those that suit this processor.

    Where a file must answer alike everywhere, those of 8 bits could not be kept.
    """
    if VNNI not in config.needs:
        return reduced
    full = [recipes.with_full_range(one) for one in reduced]
    return tuple(dict.fromkeys([*reduced, *full] if overflows() else [*full, *reduced]))


def _minority(model: onnx.ModelProto, operators: Sequence[str], least: float) -> str | None:
    """Why quantizing these operators is of no use to a model that has its weights elsewhere."""
    known = {name: array for name, array in constants(model).items() if array.dtype.kind == "f"}
    every = sum(array.size for array in known.values())
    names = {node.input[1] for node in _layers(model, operators)}
    own = sum(known[name].size for name in names & set(known))
    if own > least * every:
        return None
    return f"{', '.join(operators)} hold {own:,} of {every:,} weights"


def _unless_inaccurate(tries: Tries, config: QuantizeConfig) -> str | None:
    """Calibration and layers in float win accuracy, and never speed."""
    nearest, best = _fastest_kept_out(tries), best_of(tries, config)
    if best and (nearest is None or _times_better(nearest, best, config.goal) <= 1 + SMALL_GAIN):
        return "a recipe without them is inside both budgets already"
    if nearest is None:
        return "no recipe so far is fast and small enough, and these are no faster and no smaller"
    return None


def _unless_several(count: int) -> str | None:
    return "there are fewer than two layers" if count < 2 else None


def _unless_inside(tries: Tries) -> str | None:
    inside = [one.recipe for one in tries if one.inside]
    return f"{inside[0]} is inside both budgets already" if inside else None


def _fastest_kept_out(tries: Tries, kind: str = "") -> Try | None:
    """The fastest recipe of a kind, or of all, that accuracy alone keeps out, if there is one."""
    kept_out = [one for one in tries if one.fast and not one.accurate]
    found = [one for one in kept_out if one.recipe.startswith(kind)]
    return max(found, key=lambda one: one.speed, default=None)


def _with_float(recipe: str, count: int) -> list[Recipe]:
    return [recipes.parse(f"{recipe}-float{most}") for most in MOST_FLOAT if 2 * most <= count]


def _layers(model: onnx.ModelProto, operators: Sequence[str]) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in operators]
