"""Hold a try against its two budgets, and choose the best of those inside both."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pipeline.records.quantize import Budget, Quality, Try
from serving.pairing import PairedRatio

__all__ = [
    "Goal",
    "best_of",
    "reason_of",
    "told",
    "too_inaccurate",
    "too_noisy",
    "too_slow_or_large",
]

Goal = Literal["speed", "size"]
DECIBELS = 1.0
"""Of margin to parity's limit, which is held on other rows."""
MARGIN = 0.02
"""How much better a later recipe must be to be preferred: less is noise."""


def too_inaccurate(judged: Quality, budget: Budget) -> Iterator[str]:
    """Why the answers are outside the budget, if they are: the loss as it was measured counts."""
    counts = judged.measure in ("accuracy", "agreement")
    limit = budget.accuracy_loss if counts else budget.error_increase
    if judged.loss is None:
        yield "answers what is no number"
    elif judged.loss > limit:
        unit = "points" if counts else "%"
        interval = f"{judged.low:.2f} to {judged.high:.2f}"
        yield f"loses {judged.loss:.2f} {unit} of {judged.measure} ({interval}), {limit:g} allowed"


def too_noisy(snr_db: float | None, limit: float | None) -> Iterator[str]:
    """Why parity would not let it pass, on other rows than these: numbers that are too far off.

    Decisions alone do not tell: on processors without VNNI products of u8 and s8 overflow.
    """
    if snr_db is not None and limit is not None and snr_db < limit + DECIBELS:
        yield f"{snr_db:.0f} dB of signal over the noise, parity asks {limit:.0f} dB"


def too_slow_or_large(
    speedup: Mapping[str, PairedRatio], size_ratio: float, budget: Budget
) -> Iterator[str]:
    """Why speed or size are outside: the lower end of the speedup's interval counts."""
    for size, ratio in speedup.items():
        if ratio.low < budget.min_speedup:
            interval = f"{ratio.low:.2f} to {ratio.high:.2f}"
            yield (
                f"{ratio.median:.2f} times as fast as fp32 at batch {size} ({interval}), "
                f"{budget.min_speedup:g} asked"
            )
    if size_ratio >= 1:
        yield f"{size_ratio:.2f} times the size of fp32"


def best_of(tries: Sequence[Try], goal: Goal) -> Try | None:
    """The fastest or smallest of those inside both budgets, the first of nearly equal ones."""
    best: Try | None = None
    for one in tries:
        if one.inside and (best is None or _gain(one, best, goal) > 1 + MARGIN):
            best = one
    return best


def reason_of(best: Try | None, tries: Sequence[Try], goal: Goal) -> str:
    """Why a recipe was kept, or why none was, with the figures."""
    if best:
        inside = sum(one.inside for one in tries)
        word = "fastest" if goal == "speed" else "smallest"
        which = f"the {word} of {inside} recipes" if inside > 1 else "the one recipe"
        return f"{best.recipe} is {which} inside both budgets, of {len(tries)} tried: {told(best)}"
    if not tries:
        return "no recipe fits the model, so fp32 ships"
    nearest = max(tries, key=lambda one: (one.accurate + one.fast, one.speed))
    return (
        f"none of {len(tries)} recipes is inside both budgets, so fp32 ships; nearest is "
        f"{nearest.recipe}: {nearest.verdict}"
    )


def told(one: Try) -> str:
    """The figures of a try on one line."""
    parts = []
    if one.quality and one.quality.loss is not None:
        unit = "points" if one.quality.flips is not None else "%"
        parts.append(f"{one.quality.loss:.2f} {unit} of {one.quality.measure} lost")
    if one.size_ratio is not None:
        parts.append(f"{one.size_ratio:.2f} of the size")
    for size, ratio in one.speedup.items():
        parts.append(f"{ratio.median:.2f} times as fast at batch {size}")
    return ", ".join(parts) or one.verdict


def _gain(one: Try, other: Try, goal: Goal) -> float:
    if goal == "speed":
        return one.speed / other.speed
    return (other.bytes or 0) / (one.bytes or 1)
