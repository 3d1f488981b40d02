"""A recipe is its name: parsed again it is the same, and what is no recipe is refused."""

import pytest

from pipeline.quantization import recipes
from pipeline.quantization.recipes import Recipe, describe_recipe, parse, variant_of
from serving.errors import UnknownNameError

NAMES = [
    *("static-u8s8", "static-s8s8", "static-u8u8", "static-u8s8-raw", "static-u8s8-tensor"),
    *("static-u8s8-entropy", "static-s8s8-tensor-percentile", "static-u8s8-raw-few-float2"),
    *("dynamic", "dynamic-channel", "weights-int8", "weights-int4", "half", "half-float4"),
]
NONE = [
    *("", "static", "static-f8", "static-u8s8-", "static-u8s8-dense", "static-u8s8-float0"),
    *("static-u8s8-float", "dynamic-tensor", "weights", "weights-int3", "half-int8", "quarter"),
    *("static-u8u8-reduced", "dynamic-reduced-few", "weights-int8-reduced", "half-reduced"),
    *("half-float2-float3", "static-u8s8-float99999", "STATIC-U8S8"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_kept(name: str) -> None:
    assert parse(name).name == name
    assert parse(name) == parse(name)


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_recipe_is_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match="no recipe named"):
        parse(name)


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'static-u8s8-tensor-reduced'"):
        parse("static-u8s8-tensor-reducd")


def test_the_parts_of_a_name_say_what_is_done() -> None:
    recipe = parse("static-s8s8-raw-tensor-percentile-float3")
    static = recipe.static
    assert (static.activation, static.weight) == ("S8", "S8")
    assert static.raw_input
    assert not static.per_channel
    assert static.calibration == "percentile"
    assert recipe.float_layers == 3
    assert parse("weights-int4").bits == 4
    assert parse("dynamic-channel").per_channel


def test_every_usual_recipe_has_a_name_of_its_own_and_says_what_it_does() -> None:
    every: list[Recipe] = [*recipes.STATIC, *recipes.DYNAMIC, *recipes.WEIGHTS, recipes.HALF]
    assert len({recipe.name for recipe in every}) == len(every)
    assert len({describe_recipe(recipe) for recipe in every}) == len(every)
    assert all(parse(recipe.name) == recipe for recipe in every)


def test_a_recipe_makes_one_variant() -> None:
    assert variant_of(parse("half-float1")) == "fp16"
    assert {variant_of(parse(name)) for name in NAMES if not name.startswith("half")} == {"int8"}


def test_layers_in_float_are_told() -> None:
    assert "noisiest layer in float" in describe_recipe(parse("half-float1"))
    assert "noisiest 4 layers in float" in describe_recipe(parse("static-u8s8-float4"))
