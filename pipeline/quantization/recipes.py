"""The recipes of quantization: a name such as `static-u8s8-raw-entropy` says all of one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from pipeline.config.experiment import Variant
from pipeline.errors import ConfigError
from serving.errors import UnknownNameError

Kind = Literal["static", "dynamic", "weights", "half"]
Calibration = Literal["minmax", "entropy", "percentile", "few"]
"""Where the ranges of activations come from; "few" is the least and largest of an eighth of the
rows."""
TYPES = {"u8s8": ("U8", "S8"), "s8s8": ("S8", "S8"), "u8u8": ("U8", "U8")}
BLOCK = 32
"""Weights of a matrix that share a scale where the weights alone are quantized."""
CALIBRATIONS: Final[tuple[Calibration, ...]] = ("percentile", "entropy", "few")


@dataclass(frozen=True, slots=True, kw_only=True)
class Static:
    """Ranges of activations that are measured beforehand: what only static quantization has."""

    activation: str = "U8"
    """"U8" or "S8", as `weight`."""
    weight: str = "S8"
    per_channel: bool = True
    """Whether each output channel of a weight has a scale of its own."""
    raw_input: bool = False
    """Whether uint8 rows are taken for quantized ones, without a quantizer of the input."""
    calibration: Calibration = "minmax"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One way to make a model smaller."""

    name: str
    kind: Kind
    static: Static = Static()
    per_channel: bool = False
    """Of dynamic quantization."""
    reduced: bool = False
    """Whether weights of int8 stay within ±64, so that kernels without VNNI cannot overflow."""
    bits: int = 8
    """Of the weights, where they alone are quantized."""
    float_layers: int = 0
    """How many of the layers stay in float, those with the worst signal-to-noise ratio first."""


def parse(name: str) -> Recipe:
    """Make the recipe of a name; UnknownNameError for one that is none.

    The parts of a name, in any order behind the first two: `static-TYPES` with `-reduced`, `-raw`,
    `-tensor`, `-entropy`, `-percentile` or `-few`; `dynamic` with `-reduced` or `-channel`;
    `weights-int8`, `weights-int4`; `half`; and `-floatN` behind `static` and `half`.
    """
    recipe = _parse(name)
    if recipe is None:
        raise UnknownNameError("recipe", name, [*BASIC, f"{STATIC[0].name}-entropy"])
    return recipe


def check(names: Sequence[str], where: str) -> None:
    """Refuse a name that is no recipe's; `where` is the path of the list, for the ConfigError."""
    for number, name in enumerate(names):
        try:
            parse(name)
        except UnknownNameError as error:
            raise ConfigError(f"{where}.{number}: {error}") from error


def variant_of(recipe: Recipe) -> Variant:
    """The variant whose file a recipe makes."""
    return "fp16" if recipe.kind == "half" else "int8"


def describe_recipe(recipe: Recipe) -> str:
    """What a recipe does, for a person."""
    match recipe.kind:
        case "static":
            message = _describe_static(recipe.static)
        case "dynamic":
            scales = "a scale per channel" if recipe.per_channel else "a scale per tensor"
            message = f"int8 weights, {scales}, activations measured at each call"
        case "weights":
            message = (
                f"int{recipe.bits} weights of matrices, int8 of other layers, ranges never measured"
            )
        case "half":
            message = "half precision, inputs and outputs as they are"
    if recipe.reduced:
        message = f"{message}, weights of 7 bits"
    if recipe.float_layers:
        layers = "layer" if recipe.float_layers == 1 else f"{recipe.float_layers} layers"
        message = f"{message}, noisiest {layers} in float"
    return message


def _describe_static(static: Static) -> str:
    names = {"U8": "uint8", "S8": "int8"}
    ranges = {
        "minmax": "least and largest values",
        "entropy": "ranges of least divergence",
        "percentile": "ranges without the rarest values",
        "few": "least and largest values of few rows",
    }
    scales = "channel" if static.per_channel else "tensor"
    raw = ", pixels as they are" if static.raw_input else ""
    return (
        f"{names[static.activation]} activations, {names[static.weight]} weights, a scale per "
        f"{scales}, {ranges[static.calibration]}{raw}"
    )


def _parse(name: str) -> Recipe | None:
    kind, *parts = name.split("-")
    match kind, parts:
        case "static", [types, *flags] if types in TYPES:
            return _parse_static(name, types, flags)
        case "dynamic", flags if {*flags} <= {"channel", "reduced"}:
            channel, reduced = "channel" in flags, "reduced" in flags
            return Recipe(name=name, kind="dynamic", per_channel=channel, reduced=reduced)
        case "weights", ["int8" | "int4" as bits]:
            return Recipe(name=name, kind="weights", bits=int(bits.removeprefix("int")))
        case "half", []:
            return Recipe(name=name, kind="half")
        case "half", [flag] if layers := _float_layers(flag):
            return Recipe(name=name, kind="half", float_layers=layers)
    return None


def _parse_static(name: str, types: str, flags: list[str]) -> Recipe | None:
    activation, weight = TYPES[types]
    static, layers, reduced = Static(activation=activation, weight=weight), 0, False
    for flag in flags:
        if flag == "reduced" and weight == "S8":
            reduced = True
        elif flag == "raw":
            static = replace(static, raw_input=True)
        elif flag == "tensor":
            static = replace(static, per_channel=False)
        elif flag in CALIBRATIONS:
            static = replace(static, calibration=flag)
        elif found := _float_layers(flag):
            layers = found
        else:
            return None
    return Recipe(name=name, kind="static", static=static, reduced=reduced, float_layers=layers)


def _float_layers(flag: str) -> int:
    found = re.fullmatch(r"float([1-9]\d{0,3})", flag)
    return int(found[1]) if found else 0


def with_full_range(reduced: Recipe) -> Recipe:
    """The same recipe with weights of all 8 bits."""
    return parse(reduced.name.replace("-reduced", ""))


BASIC = (
    *("static-u8s8-reduced", "static-u8s8-raw-reduced", "static-s8s8-reduced", "static-u8u8"),
    *("static-u8s8-tensor-reduced", "dynamic-reduced", "dynamic-channel-reduced"),
    *("weights-int8", "weights-int4", "half"),
)
STATIC: Final = tuple(parse(name) for name in BASIC[:5])
"""The types, with the least and largest values of all calibration rows for ranges."""
DYNAMIC: Final = tuple(parse(name) for name in BASIC[5:7])
WEIGHTS: Final = tuple(parse(name) for name in BASIC[7:9])
HALF: Final = parse("half")
