"""Whether a classifier is as sure as it is right: its confidence against its accuracy.

A network that says 0.9 should be right nine times in ten.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipeline.records.evaluate import Bin, Calibration

__all__ = ["BINS", "calibrate"]

BINS = 15
"""Equally wide, as in Guo et al., "On calibration of modern neural networks", 2017."""


def calibrate(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> Calibration:
    """Compare the confidence of answers with how often they are right.

    `probabilities` are [rows, classes], `labels` the actual classes, [rows]. The expected
    calibration error is that of Guo et al., 2017; the score that of Brier, "Verification of
    forecasts expressed in terms of probability", 1950.
    """
    confidences = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = tuple(_bins(confidences, right))
    truth = np.eye(probabilities.shape[1])[labels]
    return Calibration(
        error=_error(bins, len(labels)),
        mean_confidence=float(confidences.mean()),
        brier=float(np.square(probabilities - truth).sum(axis=1).mean()),
        bins=bins,
    )


def _bins(confidences: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> Iterator[Bin]:
    """Bin m holds the confidences above m / BINS up to (m + 1) / BINS."""
    places = np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)
    for place in range(BINS):
        inside = places == place
        if inside.any():
            yield Bin(
                rows=int(inside.sum()),
                confidence=float(confidences[inside].mean()),
                accuracy=float(right[inside].mean()),
            )
        else:
            yield Bin(rows=0, confidence=None, accuracy=None)


def _error(bins: tuple[Bin, ...], rows: int) -> float:
    gaps = (
        one.rows * abs(one.accuracy - one.confidence)
        for one in bins
        if one.accuracy is not None and one.confidence is not None
    )
    return sum(gaps) / rows
