"""Made-up tries of a search, the budget they are held against, and settings that take no time."""

from dataclasses import replace
from typing import Any

from pipeline.config.experiment import MinSpeedup, QuantizeConfig
from pipeline.records.quantize import Budget, Quality, Try
from serving.measuring.pairing import PairedRatio

GENEROUS = QuantizeConfig(
    goal="speed",
    accuracy_loss=100,
    error_increase=1000,
    min_speedup=MinSpeedup(fp16=0.001, int8=0.001),
    batch_sizes=(1,),
    seconds=0.005,
    calibration_rows=512,
    recipes=(),
    needs=(),
    qat_epochs=0,
    seed=1,
    skip={},
)
"""Budgets that every machine is inside of, measured for an instant."""
IMPOSSIBLE = MinSpeedup(fp16=1e6, int8=1e6)
BUDGET = Budget(accuracy_loss=0.3, error_increase=5.0, min_speedup=1.0)


def generous(**changes: Any) -> QuantizeConfig:
    """The generous settings, but for some of them."""
    return replace(GENEROUS, **changes)


def judged(loss: float) -> Quality:
    return Quality(
        measure="accuracy",
        rows=1000,
        reference=0.99,
        value=0.99 - loss / 100,
        loss=loss,
        low=loss - 0.1,
        high=loss + 0.1,
        flips=3,
    )


def ratio(median: float, low: float | None = None) -> PairedRatio:
    low = median - 0.01 if low is None else low
    return PairedRatio(median=median, low=low, high=2 * median - low, num_pairs=50)


def attempt(recipe: str, speed: float, size: float, *, loss: float = 0.0) -> Try:
    accurate, fast = loss <= BUDGET.accuracy_loss, speed > BUDGET.min_speedup
    verdict = f"{speed:.2f} times as fast" if not fast else "inside both budgets"
    return Try(
        recipe=recipe,
        what=recipe,
        accurate=accurate,
        fast=fast,
        verdict=verdict if accurate else f"loses {loss:.2f} points",
        quality=judged(loss),
        bytes=int(1000 * size),
        size_ratio=size,
        speedup={"1": ratio(speed), "32": ratio(speed)},
        float_layers=(),
        sha256="0" * 64,
        qat_epochs=0,
    )
