"""What is measured of each row and of each answer: a few numbers, whatever the model takes.

The same functions measure the rows of a run, batch by batch, and the training data once, as the
reference of a bundle. A model answers the rows that it was fitted to otherwise than new ones, so
the reference has its answers to rows that were held out, and the words of those that are unknown.

Rows are counted in bins at the deciles of a quantity. The population stability index compares two
sets of counts; `psi_of_chance` says how large mere chance makes it.
"""

import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.batch.answers import answer
from serving.bundles.reference import AnswerKind, Quantity, Reference, Side
from serving.errors import InputError
from serving.model import Model, open_model
from serving.runtime.classes import Task
from serving.runtime.cores import allowed_cores
from serving.runtime.settings import SessionSettings
from serving.runtime.tensors import Array

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
AnyCounts = npt.NDArray[Any]
BINS = 10
MOST_CLASSES = 31
"""Classes with a bin of their own; the others share one."""
SMOOTHING = 0.5


def quantity_of(values: Floats, of: Side) -> Quantity:
    """The distribution of a quantity, with bins at its own deciles."""
    edges = bin_edges(values)
    finite = values[np.isfinite(values)]
    return Quantity(
        of=of,
        edges=edges,
        counts=tuple(count_in_bins(edges, values).tolist()),
        low=float(finite.min()) if len(finite) else None,
        high=float(finite.max()) if len(finite) else None,
    )


def bin_edges(values: Floats) -> tuple[float, ...]:
    """The deciles of the finite values, each once, in ascending order; () where there is none.

    A bin holds the values over one edge, up to and with the next. A value of several deciles, or
    of all as in a constant feature, gets a bin for itself, so that what is less is not counted
    with it.
    """
    finite = np.sort(values[np.isfinite(values)])
    if not len(finite):
        return ()
    # Values of the sample, not between two of them: the edge of whole numbers is a whole number.
    places = [-(-len(finite) * part // BINS) - 1 for part in range(1, BINS)]
    deciles = finite[places]
    edges = set(deciles.tolist())
    for value in np.unique(deciles[1:][deciles[1:] == deciles[:-1]]):
        edges.add(math.nextafter(value, -math.inf))
    return tuple(sorted(edges - {-math.inf}))


def count_in_bins(edges: Sequence[float], values: Floats) -> Counts:
    """The rows in each bin of a quantity, of which the last is for NaN."""
    places = np.searchsorted(np.array(edges, np.float64), values)  # how many edges are less
    places[np.isnan(values)] = len(edges) + 1
    counts: Counts = np.bincount(places, minlength=len(edges) + 2)
    return counts


class ClassBins:
    """Which bin a class is in: the most frequent ones have their own, the rest the last one."""

    def __init__(self, counts: Sequence[int]) -> None:
        """How many rows of the reference were of each class."""
        rows = np.array(counts, np.int64)
        own = np.argsort(-rows, kind="stable")[:MOST_CLASSES]
        self.classes: tuple[int, ...] = tuple(own.tolist())
        """The classes with a bin of their own, in the order of the bins."""
        self.expected: Counts = np.append(rows[own], rows.sum() - rows[own].sum())
        """Those rows in each bin."""
        self._bins = np.full(len(rows) + 1, len(own))
        self._bins[own] = np.arange(len(own))

    def count(self, label_index: npt.NDArray[Any]) -> Counts:
        """The rows in each bin; one of a class that was never counted is with the rest."""
        known = np.minimum(label_index, len(self._bins) - 1)
        counts: Counts = np.bincount(self._bins[known], minlength=len(self.expected))
        return counts


def population_stability(expected: AnyCounts, found: AnyCounts) -> tuple[float, int]:
    """The population stability index of the rows in some bins, and how many bins it is of.

    PSI = sum over the bins of (q - p) ln(q / p), where p is the share of the expected rows and q
    that of the found ones: the symmetric divergence of Kullback and Leibler, as N. Siddiqi, Credit
    Risk Scorecards (Wiley, 2006) uses it. A bin without rows would make it infinite, so each count
    has half a row added; bins that are empty in both are no bins.
    """
    there = (expected + found) > 0
    p, q = _shares(expected[there]), _shares(found[there])
    return float(((q - p) * np.log(q / p)).sum()), int(there.sum())


def psi_of_chance(bins: int, expected: int, found: int, chance: float) -> float:
    """The PSI that two samples of one distribution exceed with a probability of `chance`.

    Of n and m rows in b bins it is about (1/n + 1/m) times a chi-square of b - 1 degrees of
    freedom, and so (b - 1)(1/n + 1/m) on average: B. Yurdakul and J. Naranjo, Statistical
    properties of the population stability index, Journal of Risk Model Validation 14(4), 2020.
    """
    if bins < 2 or not expected or not found:
        return 0.0
    return chi_square_quantile(bins - 1, 1 - chance) * (1 / expected + 1 / found)


def chi_square_quantile(degrees: int, probability: float) -> float:
    """The quantile of the chi-square distribution, in its upper tail a little too large.

    E. B. Wilson and M. M. Hilferty, The distribution of chi-square, PNAS 17, 1931.
    """
    part = 2 / (9 * degrees)
    return degrees * float((1 - part + NormalDist().inv_cdf(probability) * part**0.5) ** 3)


def _shares(counts: AnyCounts) -> npt.NDArray[np.float64]:
    smooth = counts + SMOOTHING
    shares: npt.NDArray[np.float64] = smooth / smooth.sum()
    return shares


Measured = dict[str, Floats]
"""A number a row by the name of the quantity: float64 [rows], NaN where there is none."""

CLASS = "class"
"""The quantity that is no number."""
UNKNOWN_WORDS = "unknown words"
"""The share of the words of a text that the model does not know, 0 to 1."""
MOST_FEATURES = 64
MOST_OUTPUTS = 8
GRID = 32
"""Pixels a side: of a larger image every second, third, ... is looked at."""
DECIMALS = 4
"""Digits of a probability that count: what processors round otherwise must not move rows between
bins, and half of the probabilities of a good model differ from 1 by less."""
CHANNELS = {3: ("mean red", "mean green", "mean blue")}
BLANK = " "
"""Where words end, as in ONNX's StringSplit."""
MOST_ROWS = 5000
"""Of the training data, evenly spaced over them; more would hardly change a decile."""


def reference_of(
    path: Path,
    training: Array,
    *,
    held_out: Array,
    data: str,
    known_words: Sequence[str] = (),
    task: Task | None = None,
) -> Reference:
    """Measure rows of the training data `data`, and the model's answers to rows `held_out`.

    Both are [rows, ...] as the model takes them; `known_words` is the vocabulary of a text model,
    `task` what the model tells where it does not say so. Raises InputError for no rows, and when
    the model gives a finite answer to none.
    """
    settings = SessionSettings(threads=1, parallel=allowed_cores())
    model = open_model(path, settings=settings, task=task)
    words = frozenset(known_words)
    training, held_out = _spaced(training), _spaced(held_out)
    if not len(training) or not len(held_out):
        raise InputError(f"{data} has no rows to measure")
    inputs = measure_rows(training, words)
    if UNKNOWN_WORDS in inputs:
        inputs[UNKNOWN_WORDS] = measure_rows(held_out, words)[UNKNOWN_WORDS]
    columns = _answers(model, held_out)
    if not len(columns["id"]):
        raise InputError(f"{path} gave no finite answer to {len(held_out)} rows of {data}")
    predictions = measure_answers(model.kind, columns)
    return Reference(
        data=data,
        kind=model.kind,
        quantities=_quantities(inputs, "inputs") | _quantities(predictions, "predictions"),
        classes=_classes(model, columns) if model.kind == "classifier" else (),
        known_words=" ".join(known_words),
    )


def measure_rows(rows: Array, known: Set[str] = frozenset()) -> Measured:
    """Measure rows as a model takes them, [rows, ...]; `known` are the words of its vocabulary.

    Images, which are uint8, give their mean brightness and contrast (0 to 255), and the mean of
    each of several channels, over a grid of at most 32 by 32 pixels; tables each feature, and of
    more than 64 as many, evenly spaced; texts their characters, their words and, with a vocabulary,
    the share of the words that it lacks; any other rows the mean and the spread of their values.
    """
    if rows.dtype.kind in "OUT":
        return _of_texts(rows, known)
    if rows.ndim <= 2:
        return _of_features(rows.reshape(len(rows), -1))
    return _of_images(rows)


def measure_answers(kind: AnswerKind, columns: Mapping[str, Array]) -> Measured:
    """Measure the answers that `serving.batch.answers.answer` gave, but for the class.

    A classifier gives its probability, or score, of the chosen class; a reconstruction its error;
    any other model the mean of each of its first outputs of numbers.
    """
    if kind == "classifier":
        if "probability" in columns:
            probability: Floats = columns["probability"].astype(np.float64)
            return {"confidence": probability.round(DECIMALS)}
        return {"score": columns["score"].astype(np.float64)}
    if kind == "reconstruction":
        return {"error": _means(columns["error"])}
    numbers = [name for name, values in columns.items() if values.dtype.kind in "fiub"]
    return {f"mean of {name}": _means(columns[name]) for name in numbers[:MOST_OUTPUTS]}


def _means(values: Array) -> Floats:
    flat: Floats = values.reshape(len(values), -1).astype(np.float64)
    # Of no values at all there is no mean; numpy would warn.
    return flat.mean(axis=1) if flat.shape[1] else np.full(len(flat), np.nan)


def _of_features(rows: Array) -> Measured:
    features = rows.shape[1]
    chosen = np.unique(np.linspace(0, max(features - 1, 0), min(features, MOST_FEATURES)).round())
    return {f"feature {int(one)}": rows[:, int(one)].astype(np.float64) for one in chosen}


def _of_images(rows: Array) -> Measured:
    """Rows of three axes or more; float32 adds up the bytes of a grid without rounding."""
    if rows.ndim == 4:
        height, width = (max(1, -(-side // GRID)) for side in rows.shape[1:3])
        rows = rows[:, ::height, ::width]
    values = rows.reshape(len(rows), -1).astype(np.float32)
    if not values.shape[1]:
        return {}
    with np.errstate(invalid="ignore", over="ignore"):  # of infinite values
        means = values.mean(axis=1)
        values -= means[:, None]
        spread = np.sqrt(np.einsum("rv,rv->r", values, values) / values.shape[1])
    names = ("mean brightness", "contrast")
    if rows.dtype != np.uint8:
        names = ("mean value", "spread of values")
    measured = {names[0]: means.astype(np.float64), names[1]: spread.astype(np.float64)}
    channels = rows.shape[3] if rows.ndim == 4 and rows.dtype == np.uint8 else 1
    if not 2 <= channels <= 4:
        return measured
    channel_names = CHANNELS.get(
        channels, tuple(f"mean of channel {one}" for one in range(channels))
    )
    for index, name in enumerate(channel_names):
        around = values[:, index::channels].mean(axis=1)
        measured[name] = (around + means).astype(np.float64)
    return measured


def _of_texts(rows: Array, known: Set[str]) -> Measured:
    texts = [BLANK.join(row) for row in rows.reshape(len(rows), -1).tolist()]
    split = [text.split(BLANK) for text in texts]
    # Between two blanks is an empty text, which is no word.
    words = np.array([len(one) - one.count("") for one in split], np.float64)
    measured = {"characters": np.array([len(text) for text in texts], np.float64), "words": words}
    if known:
        found = np.array([sum(map(known.__contains__, one)) for one in split], np.float64)
        share = np.full(len(rows), np.nan)
        np.divide(words - found, words, out=share, where=words > 0)
        measured[UNKNOWN_WORDS] = share
    return measured


def _spaced(rows: Array) -> Array:
    """At most MOST_ROWS of them, from the first to the last one."""
    if len(rows) <= MOST_ROWS:
        return np.asarray(rows)
    return np.asarray(rows[np.linspace(0, len(rows) - 1, MOST_ROWS).astype(np.int64)])


def _answers(model: Model, rows: Array) -> dict[str, Array]:
    """The columns of the rows whose answers are finite, as a run of `ferry predict` has them."""
    found = answer(
        model, [""] * len(rows), rows, batch_rows=model.batch_rows, parallel=model.parallel
    )
    return {name: np.asarray(values) for name, values in found.finite_columns().items()}


def _quantities(measured: Measured, of: Side) -> dict[str, Quantity]:
    return {name: quantity_of(values, of) for name, values in measured.items()}


def _classes(model: Model, columns: dict[str, Array]) -> tuple[int, ...]:
    scores = model.classes.scores
    axis = scores.shape[1] if scores else None
    classes = len(model.labels or ()) or (axis if isinstance(axis, int) else 0)
    counts = np.bincount(columns["label_index"], minlength=classes)
    return tuple(counts.tolist())
