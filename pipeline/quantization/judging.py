"""Measure what a recipe makes beside fp32, and hold it against its two budgets.

Both models answer the same rows, so the loss is paired: only rows that one of them gets right and
the other wrong say anything about it, and the interval comes from these. Speeds are measured in
pairs as well, turn by turn.
"""

import functools
import logging
import math
import traceback
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx

from pipeline.config.experiment import QuantizeConfig, Variant
from pipeline.proof.differences import Differences, decided_by, wilson
from pipeline.proof.rows import Rows
from pipeline.quantization.apply import Quantizer
from pipeline.quantization.overflow import without_vnni
from pipeline.quantization.recipes import Recipe, describe_recipe, variant_of
from pipeline.records.quantize import Budget, Quality, Try, WithoutVnni
from serving.errors import FerryError, ModelError, one_line
from serving.files import sha256_of_bytes
from serving.measuring.feeds import feeds_of, fixed_batch
from serving.measuring.pairing import PairedRatio, paired_ratio
from serving.runtime.classes import Task
from serving.runtime.kernels import VNNI, needs_in
from serving.runtime.session import Session, open_session
from serving.runtime.tensors import Array, TensorInfo, answer_in_batches, as_fed

logger = logging.getLogger(__name__)

Answers = Mapping[str, Array]
BATCH = 64
LONGER = 5
"""How many times as long a speedup is measured whose interval holds the one that is asked for."""
Z = 1.959964
"""Of a normal distribution, 95 % of which lies less than this many deviations from its mean."""
ERROR = "error"
"""The output of a reconstruction that holds the error of each row."""
SNR_MARGIN_DB = 1.0
"""Of margin to parity's limit, which is held on other rows."""
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
    ) -> None:
        """Answer `rows` with fp32; `min_snr_db` is what parity asks of a variant, if anything."""
        self.quantizer = quantizer
        self.rows = rows
        self.config = config
        self.min_snr_db = min_snr_db
        self.fp32 = quantizer.model.SerializeToString(deterministic=True)
        self.session = open_session(self.fp32, threads=1)
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
            session = open_session(content, threads=1)
            self._refuse_other_ends(session)
            found = _answers(session, self.rows)
        except Exception as error:  # noqa: BLE001 - a quantizer's bug refuses a recipe, no more
            return _failed(recipe, error), b""
        quality = compare_answers(self.wanted, found, self.rows.labels)
        speedup = self._speedup(session, budget.min_speedup)
        size_ratio = len(content) / len(self.fp32)
        snr_db, limit = lowest_snr_db(self.wanted, found), self.min_snr_db.get(variant_of(recipe))
        elsewhere = self._without_vnni(content, session)
        inaccurate = (
            *too_inaccurate(quality, budget),
            *too_noisy(snr_db, limit),
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
        found = without_vnni(onnx.load_model_from_string(content), self.rows.slice(0, count))
        wanted = {name: array[:count] for name, array in self.wanted.items()}
        labels = None if self.rows.labels is None else self.rows.labels[:count]
        quality = compare_answers(wanted, found.answers, labels)
        return WithoutVnni(quality=quality, overflows=found.overflows)

    def _refuse_other_ends(self, session: Session) -> None:
        before, after = ((*one.inputs, *one.outputs) for one in (self.session, session))
        if len(before) != len(after) or not all(map(TensorInfo.is_like, before, after)):
            raise ModelError(f"its inputs and outputs are {after}, those of fp32 {before}")

    def _speedup(self, session: Session, asked: float) -> dict[str, PairedRatio]:
        fixed = self.quantizer.fixed_batch
        sizes = (fixed,) if fixed else self.config.batch_sizes
        return {str(size): self._ratio(session, size, asked) for size in sizes}

    def _ratio(self, session: Session, size: int, asked: float) -> PairedRatio:
        feeds = feeds_of(session.inputs, self.rows.slice(0, size), size)
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
    known = {info.name for info in session.outputs if info.is_array}

    def call(feeds: Mapping[str, Array]) -> dict[str, Array]:
        found = session.run({name: as_fed(array) for name, array in feeds.items()})
        return {name: array for name, array in found.items() if name in known}

    fixed = fixed_batch(session.inputs)
    return answer_in_batches(call, rows.inputs, BATCH, name="the model", fixed=fixed)


def compare_answers(
    wanted: Answers, found: Answers, labels: npt.NDArray[np.int64] | None
) -> Quality:
    """Compare the answers of fp32, `wanted`, with those of a variant, `found`.

    The accuracy where classes are answered and `labels` (int64 [rows]) are known; how often both
    decide alike where they are not; the mean error of reconstructions; and else the mean difference
    of the first output of floats, as a part of its mean size. What is not finite has no quality.
    """
    rows = len(next(iter(wanted.values())))
    if not all(np.isfinite(array).all() for array in found.values() if array.dtype.kind == "f"):
        return Quality(measure="not finite", rows=rows)
    task: Task | None = "classification" if labels is not None else None
    before, after = (decided_by(one, task) for one in (wanted, found))
    if before is not None and after is not None:
        return _decided(before.classes, after.classes, before.known(labels))
    if ERROR in wanted and wanted[ERROR].ndim == 1:
        errors, others = (array[ERROR].astype(np.float64) for array in (wanted, found))
        return _measured("mean error", errors, others - errors)
    name = next((name for name, array in wanted.items() if array.dtype.kind == "f"), None)
    if name is None:
        same = _same(wanted, found)
        return _decided(np.ones(rows, np.int64), same.astype(np.int64), None)
    left, right = (array[name].astype(np.float64).reshape(rows, -1) for array in (wanted, found))
    return _measured("difference", np.abs(left).mean(axis=1), np.abs(right - left).mean(axis=1))


def lowest_snr_db(wanted: Answers, found: Answers) -> float | None:
    """The lowest signal-to-noise ratio of any output of numbers, in dB; None where all are exact.

    As parity measures it, which holds a variant to it afterwards.
    """
    ratios = []
    for name, array in wanted.items():
        differences = Differences(name)
        differences.add(array, found[name], np.arange(len(array)))
        ratios.append(differences.report().snr_db)
    return min((ratio for ratio in ratios if ratio is not None), default=None)


def paired_loss(lost: int, gained: int, rows: int) -> tuple[float, float]:
    """The 95 % interval of the accuracy that is lost, a part of `rows`, from paired answers.

    `lost` rows are right before and wrong after, `gained` the other way round. Wald's interval with
    one row added to each of the two counts: Bonett and Price, "Adjusted Wald Confidence Interval
    for a Difference of Binomial Proportions Based on Paired Data", 2012.
    """
    left, right = (lost + 1) / (rows + 2), (gained + 1) / (rows + 2)
    width = Z * math.sqrt((left + right - (left - right) ** 2) / (rows + 2))
    return max(left - right - width, -1.0), min(left - right + width, 1.0)


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

    Decisions alone do not tell: most rows are decided by far more than noise.
    """
    if snr_db is not None and limit is not None and snr_db < limit + SNR_MARGIN_DB:
        yield f"{snr_db:.0f} dB of signal over the noise, parity asks {limit:.0f} dB"


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


def _decided(
    before: Array,
    after: Array,
    labels: npt.NDArray[np.int64] | None,
) -> Quality:
    """How many rows are decided wrongly now; without labels, otherwise than before."""
    rows, flips = len(before), int((before != after).sum())
    truth = before if labels is None else labels
    right, still = before == truth, after == truth
    lost, gained = int((right & ~still).sum()), int((~right & still).sum())
    low, high = paired_loss(lost, gained, rows)
    if labels is None:
        interval = wilson(flips, rows)
        low, high = interval.low, interval.high
    return Quality(
        measure="agreement" if labels is None else "accuracy",
        rows=rows,
        reference=float(right.mean()),
        value=float(still.mean()),
        loss=100 * (lost - gained) / rows,
        low=100 * low,
        high=100 * high,
        flips=flips,
    )


def _measured(
    measure: str, sizes: npt.NDArray[np.float64], change: npt.NDArray[np.float64]
) -> Quality:
    """The mean change as a part of the mean size, with a normal interval over the rows' changes."""
    mean = max(float(sizes.mean()), float(np.finfo(np.float32).tiny))
    middle = float(change.mean())
    spread = Z * float(change.std()) / math.sqrt(len(change))
    return Quality(
        measure=measure,
        rows=len(change),
        reference=float(sizes.mean()) if measure == "mean error" else 0.0,
        value=float(sizes.mean()) + middle if measure == "mean error" else middle / mean,
        loss=100 * middle / mean,
        low=100 * (middle - spread) / mean,
        high=100 * (middle + spread) / mean,
    )


def _same(wanted: Answers, found: Answers) -> npt.NDArray[np.bool_]:
    """Whether each row has the very same answers."""
    alike = [(array == found[name]).reshape(len(array), -1) for name, array in wanted.items()]
    same: npt.NDArray[np.bool_] = np.logical_and.reduce(np.concatenate(alike, axis=1), axis=1)
    return same
