"""Search every variant of one model: which recipes are tried, in what order, and which is kept.

Cheap and likely recipes come first. A group of recipes is left out where what was tried before it
already says that it cannot help. Which recipe is best depends on speeds that are measured now, on
this machine.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from pipeline.config.experiment import QuantizeConfig, Variant
from pipeline.proof.rows import Rows
from pipeline.quantization import recipes
from pipeline.quantization.apply import STATIC_OPERATORS, Quantizer
from pipeline.quantization.judging import Judge
from pipeline.quantization.prepare import constants
from pipeline.quantization.recipes import Recipe
from pipeline.records.quantize import Budget, QuantizeReport, Search, Try, VariantFile
from serving.files import sha256_of_bytes, write_bytes
from serving.machine.environment import describe

VARIANTS: tuple[Variant, ...] = ("fp16", "int8")
SMALL_GAIN = 0.02
"""How much better a later recipe must be to be preferred: less is noise."""
MOST_FLOAT = (1, 2, 4, 8)
"""Layers that are left in float, as long as half of them stay quantized."""
RECURRENT = ("LSTM", "GRU", "RNN")
PRODUCTS = ("Gemm", "MatMul")
HALF, TENTH = 0.5, 0.1
"""Parts of all weights below which it is of no use to quantize some."""

Tries = Sequence[Try]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraining:
    """The last resort: the model after training with a recipe's rounding."""

    epochs: int
    model: Callable[[Recipe], onnx.ModelProto]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationJob:
    """A model, the rows that it is calibrated and judged on, and what its variants may cost."""

    name: str
    model: onnx.ModelProto
    calibration: Rows
    judged: Rows
    variants: Sequence[Variant]
    """Those to search, and no others."""
    config: QuantizeConfig
    min_snr_db: Mapping[Variant, float | None] = field(default_factory=dict)
    """What parity asks of each variant's signal-to-noise ratio; nothing where it is not said."""
    batch: int | None = None
    """The one batch size that the model takes, or None where any will do."""
    retraining: Retraining | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchedVariants:
    """What a job came to: its report, and the files that were kept."""

    report: QuantizeReport
    contents: Mapping[str, bytes]
    """By variant; nothing is written yet."""

    def write(self, folder: Path, stem: str = "model") -> None:
        """Write STEM.int8.onnx and so on, and remove those of an earlier run that kept more."""
        folder.mkdir(parents=True, exist_ok=True)
        for variant in VARIANTS:
            path = folder / f"{stem}.{variant}.onnx"
            if variant in self.contents:
                write_bytes(path, self.contents[variant])
            else:
                path.unlink(missing_ok=True)


def run(job: QuantizationJob) -> SearchedVariants:
    """Search all variants of a job.

    Raises UnknownNameError for a recipe that does not exist, before anything is measured.
    """
    start = time.perf_counter()
    for name in job.config.recipes:
        recipes.parse(name)
    searches: dict[str, Search] = {}
    contents: dict[str, bytes] = {}
    if job.variants:
        quantizer = Quantizer(job.model, job.calibration, job.batch)
        judge = Judge(quantizer, job.judged, job.config, job.min_snr_db)
        for variant in [one for one in VARIANTS if one in job.variants]:
            searches[variant], content = search(judge, variant)
            if variant == "int8" and not content and job.retraining:
                searches[variant], content = _retrained(judge, searches[variant], job.retraining)
            if content:
                contents[variant] = content
    fp32 = job.model.SerializeToString(deterministic=True)
    refused = {name: one.reason for name, one in searches.items() if name not in contents}
    report = QuantizeReport(
        experiment=job.name,
        model_sha256=sha256_of_bytes(fp32),
        goal=job.config.goal,
        judged_on=job.judged.name,
        rows=len(job.judged) if job.variants else 0,
        calibration_rows=len(job.calibration) if "int8" in job.variants else 0,
        machine=describe().processor,
        threads=1,
        seconds=time.perf_counter() - start,
        variants={
            name: _variant_file(searches[name], content, len(fp32))
            for name, content in contents.items()
        },
        skipped={**job.config.reasons, **refused},
        searches=searches,
    )
    return SearchedVariants(report=report, contents=contents)


def search(judge: Judge, variant: Variant) -> tuple[Search, bytes]:
    """Try the recipes of a variant; the trace, and the bytes of the best file or none."""
    budget = _budget(judge.config, variant)
    tries: list[Try] = []
    contents: dict[str, bytes] = {}
    not_tried: dict[str, str] = {}
    for group in plan(judge.quantizer, variant, judge.config):
        reason = group.unless(tries)
        if reason:
            not_tried[group.name] = reason
            continue
        for recipe in group.recipes(tries):
            tried, contents[recipe.name] = judge.attempt(recipe, budget)
            tries.append(tried)
            if tried.inside and group.first_inside_ends:
                break
    found, best = _with_best(budget, tries, not_tried, judge.config)
    return found, contents[best.recipe] if best else b""


def _retrained(judge: Judge, found: Search, retraining: Retraining) -> tuple[Search, bytes]:
    """Train with the recipe that comes nearest and try it again, if accuracy alone kept it out."""
    losses = {
        one.recipe: one.quality.loss
        for one in found.tries
        if one.fast and not one.accurate and one.quality and one.quality.loss is not None
    }
    if not losses:
        return found, b""
    recipe = recipes.parse(min(losses, key=lambda name: losses[name]))
    before = judge.quantizer
    after = Quantizer(retraining.model(recipe), before.calibration, before.fixed_batch)
    tried, content = judge.attempt(recipe, found.budget, after, retraining.epochs)
    tries = (*found.tries, tried)
    found, best = _with_best(found.budget, tries, found.not_tried, judge.config)
    return found, content if best else b""


def _with_best(
    budget: Budget, tries: Tries, not_tried: Mapping[str, str], config: QuantizeConfig
) -> tuple[Search, Try | None]:
    """The trace of a search, and the try that is kept."""
    best = best_of(tries, config)
    found = Search(
        budget=budget,
        tries=tuple(tries),
        not_tried=not_tried,
        chosen=best.recipe if best else None,
        reason=reason_of(best, tries, config),
        qat_epochs=best.qat_epochs if best else 0,
    )
    return found, best


def _budget(config: QuantizeConfig, variant: Variant) -> Budget:
    return Budget(
        accuracy_loss=config.accuracy_loss,
        error_increase=config.error_increase,
        min_speedup=config.min_speedup.of(variant),
    )


def _variant_file(found: Search, content: bytes, fp32_bytes: int) -> VariantFile:
    return VariantFile(
        recipe=found.chosen or "",
        bytes=len(content),
        sha256=sha256_of_bytes(content),
        size_ratio=len(content) / fp32_bytes,
    )


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
    if not tries:
        return "no recipe fits the model, so fp32 ships"
    nearest = max(tries, key=lambda one: (one.accurate + one.fast, one.speed))
    return (
        f"none of {len(tries)} recipes is inside both budgets, so fp32 ships; nearest is "
        f"{nearest.recipe}: {nearest.verdict}"
    )


def _times_better(one: Try, other: Try, goal: str) -> float:
    if goal == "speed":
        return one.speed / other.speed
    return (other.bytes or 0) / (one.bytes or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeGroup:
    """Recipes that are tried together."""

    name: str
    recipes: Callable[[Tries], Sequence[Recipe]]
    """Made of what was tried so far."""
    unless: Callable[[Tries], str | None] = lambda _tries: None
    """The reason to leave the group out, if there is one."""
    first_inside_ends: bool = False
    """Whether the recipes behind one that is inside both budgets can only be worse."""


def plan(quantizer: Quantizer, variant: Variant, config: QuantizeConfig) -> Iterator[RecipeGroup]:
    """The groups for a variant; the recipes that `config` names alone, where some make it.

    Raises UnknownNameError for a name that is no recipe.
    """
    named = [recipes.parse(name) for name in config.recipes]
    wanted = [recipe for recipe in named if recipes.variant_of(recipe) == variant]
    if wanted:
        yield RecipeGroup(name="the recipes that are named", recipes=lambda _: wanted)
    elif variant == "fp16":
        yield from _half(quantizer)
    else:
        yield from _int8(quantizer, config.goal)


def _half(quantizer: Quantizer) -> Iterator[RecipeGroup]:
    count = len(_layers(quantizer.model, STATIC_OPERATORS))
    yield RecipeGroup(name="half", recipes=lambda _: [recipes.HALF])
    yield RecipeGroup(
        name="half with layers in float",
        recipes=lambda _: _with_float(recipes.HALF, count),
        unless=lambda tries: _unless_inaccurate(tries, count),
        first_inside_ends=True,
    )


def _int8(quantizer: Quantizer, goal: str) -> Iterator[RecipeGroup]:
    recurrent = bool(_layers(quantizer.prepared, RECURRENT))
    if recurrent:
        yield RecipeGroup(name="dynamic", recipes=lambda _: recipes.DYNAMIC)
    yield from _static(quantizer)
    if not recurrent:
        products = _minority(quantizer.prepared, PRODUCTS, HALF)
        yield RecipeGroup(
            name="dynamic",
            recipes=lambda _: recipes.DYNAMIC,
            unless=lambda tries: products or _unless_inside(tries),
        )
    if goal == "size":
        yield RecipeGroup(name="weights alone", recipes=lambda _: recipes.WEIGHTS)
    else:
        yield RecipeGroup(
            name="weights alone", recipes=lambda _: recipes.WEIGHTS[:1], unless=_unless_inside
        )


def _static(quantizer: Quantizer) -> Iterator[RecipeGroup]:
    count = len(_layers(quantizer.prepared, STATIC_OPERATORS))
    minority = _minority(quantizer.prepared, STATIC_OPERATORS, TENTH)
    types = [recipe for recipe in recipes.STATIC if quantizer.raw or not recipe.static.raw_input]

    def unless(tries: Tries) -> str | None:
        return minority or _unless_inaccurate(tries, count)

    yield RecipeGroup(name="static types", recipes=lambda _: types, unless=lambda _: minority)
    yield RecipeGroup(name="static, other calibrations", recipes=_calibrations, unless=unless)
    yield RecipeGroup(
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
