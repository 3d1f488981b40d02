"""Measure what a recipe makes beside fp32, and hold it against its two budgets.

Both models answer the same rows, so the loss is paired: only rows that one of them gets right and
the other wrong say anything about it, and the interval comes from these. Speeds are measured in
pairs as well, turn by turn.
"""

import functools
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from pipeline.config.experiment import QuantizeConfig, Variant
from pipeline.proof.differences import decided_by, known_scores, wilson
from pipeline.proof.rows import Rows
from pipeline.proof.variation import Floats, in_pieces, is_exact, variation_of
from pipeline.quantization.apply import Quantizer
from pipeline.quantization.overflow import without_vnni
from pipeline.quantization.recipes import Recipe, describe_recipe, variant_of
from pipeline.records.quantize import Budget, Quality, Try, WithoutVnni
from serving.errors import ModelError, one_line
from serving.files import sha256_of_bytes
from serving.measuring.feeds import feeds_of, fixed_batch
from serving.measuring.pairing import PairedRatio, paired_ratio
from serving.runtime.classes import Task
from serving.runtime.kernels import VNNI, needs_in
from serving.runtime.session import Session, open_session
from serving.runtime.tensors import Array, answer_in_batches, as_fed

logger = logging.getLogger(__name__)

Answers = Mapping[str, Array]
BATCH = 64
LONGER = 5
"""How many times as long a speedup is measured whose interval holds the one that is asked for."""
Z = 1.959964
"""Of a normal distribution, 95 % of which lies less than this many deviations from its mean."""
ERROR = "error"
"""The output of a reconstruction that holds the error of each row."""
OVERFLOW_ROWS = 256
"""Rows on which products are computed as they come out without VNNI."""
PRECISION, MOST_ROWS = 0.05, 10**7
"""Of a number of rows that would settle a loss, and the most that are worth a word."""


class Judge:
    """Measures what recipes make beside the model that they are made of, fp32."""

    def __init__(
        self,
        quantizer: Quantizer,
        rows: Rows,
        config: QuantizeConfig,
        min_snr_db: Mapping[Variant, float | None],
    ) -> None:
        """Answer `rows` with fp32; `min_snr_db` is what is asked of a variant, if anything."""
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
        least = self.min_snr_db.get(variant_of(recipe))
        elsewhere = self._without_vnni(content, session)
        inaccurate = (
            *too_inaccurate(quality, budget),
            *too_noisy(quality, least),
            *unmet_needs(elsewhere, self.config.needs),
        )
        doubt = "" if inaccurate else unsettled(quality, budget)
        slow = tuple(too_slow_or_large(speedup, size_ratio, budget))
        tried = Try(
            recipe=recipe.name,
            what=describe_recipe(recipe),
            accurate=not inaccurate,
            fast=not slow,
            verdict="; ".join((*inaccurate, *slow)) or "inside both budgets",
            quality=quality,
            unsettled=doubt,
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
        before, after = ((one.inputs, one.outputs) for one in (self.session, session))
        if before != after:
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

    def call(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return session.run({name: as_fed(array) for name, array in feeds.items()})

    fixed = fixed_batch(session.inputs)
    return answer_in_batches(call, rows.inputs, BATCH, name="the model", fixed=fixed)


def compare_answers(
    wanted: Answers,
    found: Answers,
    labels: npt.NDArray[np.int64] | None,
    task: Task | None = None,
) -> Quality:
    """Compare the answers of fp32, `wanted`, with those of a variant, `found`.

    The accuracy where classes are answered and `labels` (int64 [rows]) are known; how often both
    decide alike where they are not, and where whole numbers or texts are answered; the mean error
    of reconstructions; and else how far the worst column of all outputs is off, as a part of how
    much it varies. What is not finite has no quality.
    """
    rows = len(next(iter(wanted.values())))
    if any(_breaks(wanted[name], array) for name, array in found.items()):
        return Quality(measure="not finite", rows=rows)
    task = task or ("classification" if labels is not None else None)
    before, after = (decided_by(one, task) for one in (wanted, found))
    noise = _noise(wanted, found, known_scores(wanted, task))
    exact = [name for name, array in wanted.items() if is_exact(array.dtype)]
    if before is not None and after is not None:
        quality = _decided(before.classes, after.classes, before.known(labels))
    elif ERROR in wanted and wanted[ERROR].ndim == 1:
        errors, others = (array[ERROR].astype(np.float64) for array in (wanted, found))
        quality = _mean_error(errors, others - errors)
    elif exact:
        same = _same(wanted, found, exact)
        quality = _decided(np.ones(rows, np.int64), same.astype(np.int64), None)
    else:
        quality = _off(noise.parts)
    ratio = float(noise.parts.mean())
    return replace(
        quality, snr_db=-10 * math.log10(ratio) if ratio else None, noisiest=noise.column
    )


@dataclass(frozen=True, slots=True)
class _Noise:
    """The noise of the worst column of all outputs."""

    parts: Floats
    """Its power in parts of the column's variance, [rows]."""
    column: str = ""


def _noise(wanted: Answers, found: Answers, scores: Collection[str]) -> _Noise:
    """The noisiest column; the outputs named as `scores` are one column each."""
    worst = _Noise(np.zeros(len(next(iter(wanted.values())))))
    for name, array in wanted.items():
        if is_exact(array.dtype) or not array.size:
            continue
        variation = variation_of([array], together=name in scores)
        pieces = in_pieces(len(array), array.shape[1:])
        errors = (_errors(array[piece], found[name][piece]) for piece in pieces)
        parts = np.concatenate([variation.noise_parts(one) for one in errors])
        column = int(parts.mean(axis=0).argmax())
        if parts[:, column].mean() > worst.parts.mean():
            worst = _Noise(parts[:, column], f"{name}{variation.column(column)}")
    return worst


def _errors(wanted: Array, found: Array) -> Floats:
    """How far values are apart; where neither is a finite number, they are alike."""
    left, right = wanted.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinities on both sides
        return np.nan_to_num(right - left)


def _breaks(wanted: Array, found: Array) -> bool:
    """Whether what is no finite number on one side is anything else on the other."""
    if found.dtype.kind != "f":
        return False
    broken = ~(np.isfinite(wanted) & np.isfinite(found))
    return not np.array_equal(wanted[broken], found[broken], equal_nan=True)


def paired_loss(lost: float, gained: float, rows: int) -> tuple[float, float]:
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
    limit = _limit(judged, budget)
    if judged.loss is None:
        yield "answers what is no number"
    elif judged.loss > limit:
        yield f"loses {judged.lost} ({_interval(judged)}), {limit:g} allowed"


def too_noisy(judged: Quality, least: float | None) -> Iterator[str]:
    """Why the numbers are too far off for the signal-to-noise ratio that is asked.

    Decisions alone do not tell: few rows have few of them, and most are decided by far more than
    noise.
    """
    if judged.snr_db is not None and least is not None and judged.snr_db < least:
        yield (
            f"{judged.snr_db:.0f} dB of signal over the noise at {judged.noisiest}, "
            f"{least:.0f} dB asked"
        )


def unsettled(judged: Quality, budget: Budget) -> str:
    """What the rows cannot tell of a loss that is inside the budget; "" where they tell it.

    So few rows may hide a loss beyond the budget where its interval reaches beyond.
    """
    limit = _limit(judged, budget)
    if judged.loss is None or judged.high is None or judged.loss > limit or judged.high <= limit:
        return ""
    needed = rows_needed(judged, limit)
    settles = f"about {needed:,} rows would settle it" if needed else "no number of rows settles it"
    return f"not settled on {judged.rows:,} rows, {_interval(judged)}: {settles}"


def rows_needed(judged: Quality, limit: float) -> int | None:
    """About how many rows like these bring the interval inside the limit; None where none do."""
    rows = judged.rows
    while _high(judged, rows) > limit:
        if rows > MOST_ROWS:
            return None
        rows = math.ceil(rows * (1 + PRECISION))
    step = int(10 ** max(0, len(str(rows)) - 2))
    return math.ceil(rows / step) * step


def _high(judged: Quality, rows: int) -> float:
    """The upper end of the loss's interval on so many rows, if they are like those judged on."""
    loss, high, times = judged.loss or 0.0, judged.high or 0.0, rows / judged.rows
    if not judged.counts:
        return loss + (high - loss) / math.sqrt(times)
    lost, gained = ((count or 0) * times for count in (judged.rows_lost, judged.rows_gained))
    if judged.measure == "agreement":
        return 100 * wilson(round(lost), rows).high
    return 100 * paired_loss(lost, gained, rows)[1]


def _limit(judged: Quality, budget: Budget) -> float:
    return budget.accuracy_loss if judged.counts else budget.error_increase


def _interval(judged: Quality) -> str:
    return f"{judged.low:.2f} to {judged.high:.2f}"


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
    reason = one_line(error, 200)
    logger.info("%s: cannot be applied: %s", recipe.name, reason)
    return Try(
        recipe=recipe.name,
        what=describe_recipe(recipe),
        accurate=False,
        fast=False,
        verdict=f"cannot be applied: {reason}",
    )


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
        rows_lost=lost,
        rows_gained=gained,
    )


def _mean_error(sizes: Floats, change: Floats) -> Quality:
    """The mean change as a part of the mean size, with a normal interval over the rows' changes."""
    mean = max(float(sizes.mean()), float(np.finfo(np.float32).tiny))
    middle = float(change.mean())
    spread = Z * float(change.std()) / math.sqrt(len(change))
    return Quality(
        measure="mean error",
        rows=len(change),
        reference=float(sizes.mean()),
        value=float(sizes.mean()) + middle,
        loss=100 * middle / mean,
        low=100 * (middle - spread) / mean,
        high=100 * (middle + spread) / mean,
    )


def _off(parts: Floats) -> Quality:
    """The root of the mean noise, with a normal interval over the rows' noise."""
    middle, spread = float(parts.mean()), Z * float(parts.std()) / math.sqrt(len(parts))
    return Quality(
        measure="difference",
        rows=len(parts),
        reference=0.0,
        value=math.sqrt(middle),
        loss=100 * math.sqrt(middle),
        low=100 * math.sqrt(max(0.0, middle - spread)),
        high=100 * math.sqrt(middle + spread),
    )


def _same(wanted: Answers, found: Answers, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Whether each row has the very same answers in some outputs."""
    alike = [(wanted[name] == found[name]).reshape(len(wanted[name]), -1) for name in names]
    same: npt.NDArray[np.bool_] = np.logical_and.reduce(np.concatenate(alike, axis=1), axis=1)
    return same
