"""Try recipes in the order of the plan, measure each, and keep the best inside both budgets."""

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.config.experiment import Variant
from pipeline.proof.rows import Rows
from pipeline.quantization.apply import Source
from pipeline.quantization.plan import plan
from pipeline.quantization.quality import (
    Goal,
    answers,
    best_of,
    describe,
    faintest,
    quality,
    reason_of,
    too_inaccurate,
    too_noisy,
    too_slow_or_large,
)
from pipeline.quantization.recipes import Recipe, variant_of, words
from pipeline.records.quantize import Budget, Search, Try
from serving.errors import ModelError
from serving.files import sha256_of_bytes
from serving.measuring.pairing import PairedRatio, paired_ratio
from serving.runtime.session import Session, open_session

logger = logging.getLogger(__name__)

LONGER = 5
"""How many times as long a speedup is measured whose interval holds the one that is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How recipes are measured and compared."""

    goal: Goal
    batch_sizes: tuple[int, ...]
    seconds: float
    """Spent on each paired measurement, after warm-up."""
    seed: int
    only: tuple[str, ...] = ()
    """The recipes to try, and no others; empty for the usual ones."""
    min_snr_db: Mapping[str, float | None] = field(default_factory=dict)
    """What parity asks of each variant's signal-to-noise ratio; nothing where it is not said."""


class Judge:
    """Measures what recipes make against the model that they are made of."""

    def __init__(self, source: Source, rows: Rows, settings: Settings) -> None:
        """Answer `rows`, which accuracy is judged on, with the model as it is."""
        self.source = source
        self.rows = rows
        self.settings = settings
        self.fixed = source.batch if source.fixed else None
        self.content = source.model.SerializeToString(deterministic=True)
        self.session = open_session(self.content, threads=1)
        self.reference = answers(self.session, rows, self.fixed)

    def attempt(
        self, recipe: Recipe, budget: Budget, source: Source | None = None, qat_epochs: int = 0
    ) -> tuple[Try, bytes]:
        """Apply a recipe and measure what it makes; the file's bytes, empty where none was made.

        To `source` where it is given, a model that was trained on for `qat_epochs`; it is held
        against the model as it is all the same.
        """
        source = source or self.source
        try:
            layers = source.layers(recipe)
            made = source.apply(recipe, layers)
            content = made.SerializeToString(deterministic=True)
            session = open_session(content, threads=1)
            self._refuse_other_ends(session)
            found = answers(session, self.rows, self.fixed)
        except Exception as error:  # noqa: BLE001 - a quantizer's bug refuses a recipe, no more
            return _failed(recipe, error), b""
        judged = quality(self.reference, found, self.rows.labels)
        speedup = self._speedup(session, budget.min_speedup)
        size_ratio = len(content) / len(self.content)
        limit = self.settings.min_snr_db.get(variant_of(recipe))
        noisy = too_noisy(faintest(self.reference, found), limit)
        inaccurate = (*too_inaccurate(judged, budget), *noisy)
        slow = tuple(too_slow_or_large(speedup, size_ratio, budget))
        tried = Try(
            recipe=recipe.name,
            what=words(recipe),
            accurate=not inaccurate,
            fast=not slow,
            verdict="; ".join((*inaccurate, *slow)) or "inside both budgets",
            quality=judged,
            bytes=len(content),
            size_ratio=size_ratio,
            speedup=speedup,
            float_layers=tuple(layers),
            sha256=sha256_of_bytes(content),
            qat_epochs=qat_epochs,
        )
        logger.info("%s: %s", recipe.name, describe(tried))
        return tried, content

    def _refuse_other_ends(self, session: Session) -> None:
        before, after = ((one.inputs, one.outputs) for one in (self.session, session))
        if before != after:
            raise ModelError(f"its inputs and outputs are {after}, those of fp32 {before}")

    def _speedup(self, session: Session, asked: float) -> dict[str, PairedRatio]:
        sizes = [self.fixed] if self.fixed else self.settings.batch_sizes
        return {str(size): self._ratio(session, size, asked) for size in sizes}

    def _ratio(self, session: Session, size: int, asked: float) -> PairedRatio:
        feeds = _batch(self.rows, size, session)
        names = [output.name for output in session.outputs]
        # On one thread each: several wait for each other, and most where others use the machine.
        measure = functools.partial(
            paired_ratio,
            functools.partial(self.session.raw.run, names, feeds),
            functools.partial(session.raw.run, names, feeds),
            seed=self.settings.seed,
        )
        ratio = measure(seconds=self.settings.seconds)
        if ratio.low < asked <= ratio.high:  # too short to tell
            ratio = measure(seconds=LONGER * self.settings.seconds)
        return ratio


def search(judge: Judge, variant: Variant, budget: Budget) -> tuple[Search, bytes]:
    """Try the recipes of a variant; the trace, and the bytes of the best file or none.

    Which one is best depends on speeds that are measured now, on this machine.
    """
    tries: list[Try] = []
    contents: dict[str, bytes] = {}
    not_tried: dict[str, str] = {}
    goal = judge.settings.goal
    for step in plan(judge.source, variant, goal, judge.settings.only):
        reason = step.unless(tries)
        if reason:
            not_tried[step.name] = reason
            continue
        for recipe in step.recipes(tries):
            tried, contents[recipe.name] = judge.attempt(recipe, budget)
            tries.append(tried)
            if tried.inside and step.first_inside_ends:
                break
    best = best_of(tries, goal)
    found = Search(
        budget=budget,
        tries=tuple(tries),
        not_tried=not_tried,
        chosen=best.recipe if best else None,
        reason=reason_of(best, tries, goal),
        qat_epochs=0,
    )
    return found, contents[best.recipe] if best else b""


def _failed(recipe: Recipe, error: Exception) -> Try:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    logger.info("%s: cannot be applied: %s", recipe.name, reason)
    return Try(
        recipe=recipe.name,
        what=words(recipe),
        accurate=False,
        fast=False,
        verdict=f"cannot be applied: {reason}",
        quality=None,
        bytes=None,
        size_ratio=None,
        speedup={},
        float_layers=(),
        sha256=None,
        qat_epochs=0,
    )


def _batch(rows: Rows, size: int, session: Session) -> dict[str, Any]:
    """The first rows, and over again to fill the batch."""
    feeds = {}
    for info in session.inputs:
        array = rows.inputs[info.name][:size]
        whole = array[[index % len(array) for index in range(size)]]
        feeds[info.name] = whole.astype(object) if info.is_text else whole
    return feeds
