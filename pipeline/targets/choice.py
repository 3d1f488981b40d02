"""Which of an experiment's variants a target takes.

What ships for this machine's kind is the best by what was measured here. Another kind is another
machine, whose speed nobody knows: it takes the smallest variant that it has room for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import onnx

from pipeline.config.experiment import BundleConfig, TargetBudget
from pipeline.errors import TargetError
from pipeline.records.benchmark import BenchmarkReport, Gain, gains_over_fp32
from pipeline.targets.boards import boards
from pipeline.targets.c99 import emit
from serving.bundles import Target
from serving.errors import ModelError

MEASURED_HERE: Final = ("cpu", "triton")
"""The targets whose variant is chosen by the speed of this machine."""
KIB = 1024
UNLIMITED = TargetBudget(size_kib=None, ram_kib=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """The room that a variant takes on a target."""

    bytes: int
    """Of its file; of C, of flash."""
    ram_bytes: int | None = None
    """None where it is not known beforehand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What ships, and why."""

    variant: str
    reason: str
    goal: str | None = None
    """By which it was chosen; None where there was nothing to choose."""
    gains: Mapping[str, Gain] = field(default_factory=dict)
    """Over fp32, of each variant that passed and that the target has room for."""
    flash_bytes: int | None = None
    ram_bytes: int | None = None
    """What it takes there, where that is known beforehand."""
    boards: str | None = None
    """The well-known ones that it fits on; None for a target that is no board."""


def choose_for(
    name: str,
    target: Target,
    models: Mapping[str, bytes],
    timed: BenchmarkReport,
    config: BundleConfig,
) -> Choice:
    """Choose the variant of the experiment `name` for a target, of `models`, the files that passed.

    Raises TargetError for a target that has no room for any.
    """
    rooms, refused = _rooms(name, target, models)
    budget = config.budgets.get(target, UNLIMITED)
    over = refused | {variant: _too_large(room, budget) for variant, room in rooms.items()}
    fitting = [variant for variant in rooms if not over[variant]]
    if not rooms:
        raise TargetError(f"{name} does not fit {target}: {next(iter(refused.values()))}")
    if not fitting:
        said = "; ".join(f"{variant} {over[variant]}" for variant in rooms)
        least = min(rooms.values(), key=lambda room: room.ram_bytes or room.bytes)
        would = f"; there is room on {_on_boards(least)['boards']}" if target == "c" else ""
        raise TargetError(
            f"{name} does not fit {target}: {said}; the budget is "
            f"experiments.{name}.bundle.budgets.{target} of params.yaml{would}"
        )
    goal: str
    if target in MEASURED_HERE:
        goal, gains = config.goal, gains_over_fp32(timed, fitting, config.goal)
    else:
        goal, gains = "size", _smaller(rooms, fitting)
    variant, reason = choose(gains, goal, config.min_gain)
    chosen = Choice(variant=variant, reason=reason, goal=goal, gains=gains)
    return replace(chosen, **_on_boards(rooms[variant])) if target == "c" else chosen


def _rooms(
    name: str, target: Target, models: Mapping[str, bytes]
) -> tuple[dict[str, Footprint], dict[str, str]]:
    """The room of each file on the target, and why the target cannot compute the others."""
    if target != "c":
        return {variant: Footprint(bytes=len(content)) for variant, content in models.items()}, {}
    rooms: dict[str, Footprint] = {}
    refused: dict[str, str] = {}
    for variant, content in models.items():
        try:
            made = emit(onnx.load_model_from_string(content), name)
        except ModelError as error:
            refused[variant] = str(error)
        else:
            rooms[variant] = Footprint(bytes=made.flash_bytes, ram_bytes=made.ram_bytes)
    return rooms, refused


def _on_boards(room: Footprint) -> dict[str, Any]:
    """What a person wants to know of a program for microcontrollers."""
    fitting = [board.name for board in boards(room.bytes, room.ram_bytes or 0)]
    names = ", ".join(fitting) or "none of those that ferry knows"
    return {"flash_bytes": room.bytes, "ram_bytes": room.ram_bytes, "boards": names}


def choose(gains: Mapping[str, Gain], goal: str, min_gain: float) -> tuple[str, str]:
    """The variant to ship, and why: the best by the goal, if it is enough better than fp32.

    `gains` has each variant that passed its gate and fits. One counts as better only if the whole
    interval of its gain is, and the best of those must be `min_gain` times as good.
    """
    if "fp32" not in gains:
        best = max(gains, key=lambda name: gains[name].times)
        return best, "fp32 does not fit"
    better = {
        name: gain
        for name, gain in gains.items()
        if name != "fp32" and gain.low > 1 and gain.times >= min_gain
    }
    if better:
        best = max(better, key=lambda name: better[name].times)
        return best, f"{_describe(better[best])} times as good as fp32 in {goal}"
    others = ", ".join(
        f"{name} {_describe(gain)}" for name, gain in gains.items() if name != "fp32"
    )
    message = f" ({others} times as good)" if others else ""
    return "fp32", f"no other variant is {min_gain:g} times better in {goal}{message}"


def _describe(gain: Gain) -> str:
    if gain.low == gain.high:
        return f"{gain.times:.2f}"
    return f"{gain.times:.2f} [{gain.low:.2f} to {gain.high:.2f}]"


def _too_large(room: Footprint, budget: TargetBudget) -> str:
    """What there is no room for; "" for nothing."""
    wanted = (("", room.bytes, budget.size_kib), (" of RAM", room.ram_bytes, budget.ram_kib))
    over = [
        f"takes {found / KIB:.1f} KiB{what}, the budget is {limit:g} KiB"
        for what, found, limit in wanted
        if found is not None and limit is not None and found > limit * KIB
    ]
    return " and ".join(over)


def _smaller(rooms: Mapping[str, Footprint], names: list[str]) -> dict[str, Gain]:
    """How many times smaller than fp32 each is."""
    largest = rooms.get("fp32") or max(rooms.values(), key=lambda room: room.bytes)
    times = {name: largest.bytes / rooms[name].bytes for name in names}
    return {name: Gain(times=one, low=one, high=one) for name, one in times.items()}
