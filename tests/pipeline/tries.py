"""Made-up tries of a search, and the budget they are held against."""

from pipeline.records.quantize import Budget, Quality, Try
from serving.measuring.pairing import PairedRatio

BUDGET = Budget(accuracy_loss=0.3, error_increase=5.0, min_speedup=1.0)


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
