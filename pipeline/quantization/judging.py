"""Measure what a recipe makes beside fp32, and hold it against its two budgets.

Both models answer the same rows, and their speeds are measured in pairs, turn by turn.
"""

import functools
import logging
import traceback
from collections.abc import Collection, Iterator, Mapping

import onnx

from pipeline.config.experiment import QuantizeConfig, Variant
from pipeline.proof.overflow import Overflows, without_vnni
from pipeline.proof.rows import Rows
from pipeline.quantization.apply import Quantizer
from pipeline.quantization.quality import (
    Answers,
    compare_answers,
    too_inaccurate,
    too_noisy,
    unsettled,
)
from pipeline.quantization.recipes import Recipe, describe_recipe, variant_of
from pipeline.records.quantize import Budget, Try, WithoutVnni
from serving.errors import FerryError, ModelError, one_line
from serving.files import sha256_of_bytes
from serving.measuring.feeds import feeds_of, fixed_batch
from serving.measuring.pairing import PairedRatio, paired_ratio
from serving.runtime.classes import Task
from serving.runtime.kernels import VNNI, needs_in
from serving.runtime.session import Session, open_session
from serving.runtime.tensors import Array, TensorInfo, answer_in_batches, as_fed

logger = logging.getLogger(__name__)

BATCH = 64
LONGER = 5
"""How many times as long a speedup is measured whose interval holds the one that is asked for."""
OVERFLOW_ROWS = 256
"""Rows on which products are computed as they come out without VNNI."""


class Judge:
    """Measures what recipes make beside the model that they are made of, fp32."""

    def __init__(
        self,
        quantizer: Quantizer,
        rows: Rows,
        config: QuantizeConfig,
        min_snr_db: Mapping[Variant, float | None],
        task: Task | None = None,
    ) -> None:
        """Answer `rows` with fp32; `min_snr_db` is what is asked of a variant, if anything.

        `task` is the user's word of what the model tells, where nothing else says it.
        """
        self.quantizer = quantizer
        self.rows = rows
        self.config = config
        self.min_snr_db = min_snr_db
        self.task = task
        self.fp32 = quantizer.model.SerializeToString(deterministic=True)
        self.given = {one.info.name: one.value for one in rows.shared}
        self.session = open_session(self.fp32, threads=1, shared=self.given)
        self.wanted = _answers(self.session, rows)

    def attempt(
        self, recipe: Recipe, budget: Budget, trained: onnx.ModelProto | None = None
    ) -> tuple[Try, bytes]:
        """Apply a recipe and measure what it makes; the file's bytes, empty where none was made.

        `trained` is the model after `qat_epochs` of training, if it is to be tried in place of
        fp32; it is held against fp32 all the same.
        """
        quantizer = self.quantizer
        if trained:
            quantizer = Quantizer(trained, quantizer.calibration, quantizer.fixed_batch)
        try:
            layers = quantizer.float_layers(recipe)
            content = quantizer.apply(recipe, layers).SerializeToString(deterministic=True)
            session = open_session(content, threads=1, shared=self.given)
            self._refuse_other_ends(session)
            found = _answers(session, self.rows)
        except Exception as error:  # noqa: BLE001 - a quantizer's bug refuses a recipe, no more
            return _failed(recipe, error), b""
        quality = compare_answers(self.wanted, found, self.rows.labels, self.task)
        speedup = self._speedup(session, budget.min_speedup)
        size_ratio = len(content) / len(self.fp32)
        least = self.min_snr_db.get(variant_of(recipe))
        elsewhere = self._without_vnni(content, session)
        inaccurate = (
            *too_inaccurate(quality, budget),
            *too_noisy(quality, least),
            *unmet_needs(elsewhere, self.config.needs),
        )
        slow = tuple(too_slow_or_large(speedup, size_ratio, budget))
        tried = Try(
            recipe=recipe.name,
            what=describe_recipe(recipe),
            accurate=not inaccurate,
            fast=not slow,
            verdict="; ".join((*inaccurate, *slow)) or "inside both budgets",
            quality=quality,
            unsettled="" if inaccurate or slow else unsettled(quality, budget),
            bytes=len(content),
            size_ratio=size_ratio,
            speedup=speedup,
            float_layers=tuple(layers),
            sha256=sha256_of_bytes(content),
            qat_epochs=self.config.qat_epochs if trained else 0,
            without_vnni=elsewhere,
        )
        logger.info("%s: %s", recipe.name, tried.figures())
        return tried, content

    def _without_vnni(self, content: bytes, session: Session) -> WithoutVnni | None:
        """What it would answer to some rows; None for what answers alike everywhere."""
        if not needs_in(session.metadata):
            return None
        count = min(self.quantizer.fixed_batch or OVERFLOW_ROWS, len(self.rows))
        found = without_vnni(onnx.load_model_from_string(content), self.rows.fed(0, count))
        wanted = {name: array[:count] for name, array in self.wanted.items()}
        return lost_without_vnni(wanted, found, self.rows, self.task)

    def _refuse_other_ends(self, session: Session) -> None:
        before, after = ((*one.inputs, *one.outputs) for one in (self.session, session))
        if len(before) != len(after) or not all(map(TensorInfo.is_like, before, after)):
            raise ModelError(f"its inputs and outputs are {after}, those of fp32 {before}")

    def _speedup(self, session: Session, asked: float) -> dict[str, PairedRatio]:
        fixed = self.quantizer.fixed_batch
        sizes = (fixed,) if fixed else self.config.batch_sizes
        return {str(size): self._ratio(session, size, asked) for size in sizes}

    def _ratio(self, session: Session, size: int, asked: float) -> PairedRatio:
        feeds = session.whole(feeds_of(session.inputs, self.rows.slice(0, size), size))
        names = [output.name for output in session.outputs]
        # On one thread each: several wait for each other, and most where others use the machine.
        measure = functools.partial(
            paired_ratio,
            functools.partial(self.session.raw.run, names, feeds),
            functools.partial(session.raw.run, names, feeds),
            seed=self.config.seed,
        )
        ratio = measure(seconds=self.config.seconds)
        if ratio.low < asked <= ratio.high:  # too short to tell
            ratio = measure(seconds=LONGER * self.config.seconds)
        return ratio


def _answers(session: Session, rows: Rows) -> dict[str, Array]:
    """All outputs for all rows, by name."""
    answered = session.answered("the model")

    def call(feeds: Mapping[str, Array]) -> dict[str, Array]:
        found = session.run({name: as_fed(array) for name, array in feeds.items()})
        return {info.name: found[info.name] for info in answered}

    fixed = fixed_batch(session.inputs)
    return answer_in_batches(call, rows.inputs, BATCH, name="the model", fixed=fixed)


def lost_without_vnni(
    wanted: Answers, found: Overflows, rows: Rows, task: Task | None
) -> WithoutVnni:
    """Judge what a model answers without VNNI beside the answers that are `wanted`.

    Both are of the first `rows`.
    """
    answered = {name: found.answers[name] for name in wanted}
    count = len(next(iter(wanted.values())))
    labels = None if rows.labels is None else rows.labels[:count]
    quality = compare_answers(wanted, answered, labels, task)
    return WithoutVnni(quality=quality, overflows=found.overflows)


def unmet_needs(elsewhere: WithoutVnni | None, needs: Collection[str]) -> Iterator[str]:
    """Why it may not ship where it would not answer alike everywhere, unless `needs` allows it."""
    if elsewhere and VNNI not in needs:
        yield f"{elsewhere.describe()}; `needs: [{VNNI}]` allows it"


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


def _failed(recipe: Recipe, error: Exception) -> Try:
    """A recipe that does not suit the model, or that ferry itself fails to try."""
    verdict, place = f"cannot be applied: {one_line(error, 200)}", _origin(error)
    if place.startswith(("pipeline.", "serving.")) and not isinstance(error, FerryError):
        cause = f"{type(error).__name__}: {one_line(error, 200)}"
        verdict = f"not tried, by a fault of ferry's own at {place}, please report it: {cause}"
    logger.info("%s: %s", recipe.name, verdict)
    return Try(
        recipe=recipe.name,
        what=describe_recipe(recipe),
        accurate=False,
        fast=False,
        verdict=verdict,
    )


def _origin(error: Exception) -> str:
    """The module and the line that raised an error; within numpy, those that called it."""
    frames = traceback.walk_tb(error.__traceback__)
    places = [f"{frame.f_globals['__name__']}:{line}" for frame, line in frames]
    return next(place for place in reversed(places) if not place.startswith("numpy"))
