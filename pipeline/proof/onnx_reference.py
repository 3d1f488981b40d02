"""A third opinion: what a model means by the definition of its operators, in plain numpy.

`onnx.reference` is slow and right, so it is asked a few rows; where it agrees with one of two
runtimes, the other one is to blame.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator

from pipeline.proof.sides import ModelSide, Side
from pipeline.records.parity import Opinion

Array = npt.NDArray[Any]

LARGEST = float(np.finfo(np.float32).max)
MOST_NODES = 2000
"""Of a graph that numpy is asked to run."""


def third_opinion(reference: Side, other: Side, feeds: Mapping[str, Array]) -> Opinion:
    """Run the other side's graph in numpy on some rows, [rows, ...] by the name of the input."""
    rows = len(next(iter(feeds.values())))
    if not isinstance(other, ModelSide):
        return _skipped(rows, f"{other.name} is no ONNX model")
    model = other.model()
    if len(model.graph.node) > MOST_NODES:
        return _skipped(rows, f"{len(model.graph.node)} nodes are too many for numpy")
    try:
        answers = _run(model, other, feeds)
    # It is plain Python: an operator that it lacks, or has only in part, raises whatever it likes.
    except Exception as error:  # noqa: BLE001 - a second opinion must not stop the first
        return _skipped(rows, f"onnx.reference cannot run it: {_one_line(error)}")
    return Opinion(
        rows=rows,
        to_reference=_largest(answers, reference.answer(feeds, rows)),
        to_model=_largest(answers, other.answer(feeds, rows)),
        skipped=None,
    )


def _run(model: onnx.ModelProto, side: ModelSide, feeds: Mapping[str, Array]) -> dict[str, Array]:
    names = [info.name for info in side.outputs]
    texts = {name: rows.astype(object) for name, rows in feeds.items() if rows.dtype.kind == "U"}
    with np.errstate(all="ignore"):
        found = ReferenceEvaluator(model).run(names, {**feeds, **texts})
    return dict(zip(names, found, strict=True))


def _largest(answers: Mapping[str, Array], others: Mapping[str, Array]) -> float:
    worst = 0.0
    for name, array in answers.items():
        if array.dtype.kind in "OUSb":
            worst = max(worst, float((array != others[name]).any()))
        else:
            apart = np.abs(array.astype(np.float64) - others[name].astype(np.float64))
            # A NaN is as far off as can be, and JSON knows no infinity.
            worst = max(worst, float(np.nan_to_num(apart, nan=LARGEST, posinf=LARGEST).max()))
    return worst


def _skipped(rows: int, reason: str) -> Opinion:
    return Opinion(rows=rows, to_reference=None, to_model=None, skipped=reason)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"
