"""Golden rows: an input and the outputs it gave, which every device must give again.

They travel in the bundle as `golden.npz`: `input`, and each output by its name. They are the rows
that are decided most narrowly, so that a device that answers otherwise shows it there first.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.bundles.bundle import BundleManifest
from serving.bundles.integrity import RunnerError
from serving.bundles.npz import GoldenFile, difference, refuse_lax
from serving.errors import InputError, IntegrityError, ModelError
from serving.runtime.classes import ClassOutputs, margins
from serving.runtime.session import Session, open_session
from serving.runtime.tensors import Array, as_fed, refuse_other_rows

INPUT = "input"
SEARCHED = 4000
"""Rows among which the hardest are looked for; more would only take longer."""
BATCH, FEW = 100, 7
"""The rows that are answered at once."""
LEAST_NOISE = 1e-6
"""What kernels of another processor may differ by, of the largest score, where none do here."""


def hardest(
    model: bytes,
    rows: Array,
    count: int,
    labels: Sequence[str],
    shared: Mapping[str, str] | None = None,
    *,
    batch: int | None = None,
) -> tuple[Array, float]:
    """The `count` rows that are decided most narrowly, or fewer, and the margin of a tie.

    `rows` are of the model's own dtype and shape, [rows, ...]. The margin of a row is the
    difference of its two largest scores. Within twice the largest difference of a score between
    the graph as it is written and as ONNX Runtime rewrites it, answered in smaller batches, it is a
    tie, which says nothing of a device, so such rows are left out: dynamic quantization measures
    ranges over a batch, whose rows move each other. Without classes to decide between, it is the
    first rows and a tie of 0. `batch` is the one batch size that the model takes, if there is one.

    Raises InputError where too few rows are no ties.
    """
    shipped = open_session(model, threads=1, shared=shared)
    scores = shipped.tells(labels).scores
    if scores is None or scores.shape[1] == 1:
        return np.array(rows[:count]), 0.0
    plain = open_session(model, threads=1, shared=shared, optimize="none")
    searched = min(len(rows), SEARCHED)
    asked = rows[: searched - searched % (batch or 1)]
    found = _scores(shipped, scores.name, asked, batch or BATCH)
    others = _scores(plain, scores.name, asked, batch or FEW)
    noise = max(float(np.abs(found - others).max(initial=0)), LEAST_NOISE * np.abs(found).max())
    tie = 2 * noise
    apart = margins(found)
    order = np.argsort(apart, kind="stable")
    chosen = order[apart[order] > tie][:count]
    if len(chosen) < (batch or 1):
        raise InputError(
            f"{len(chosen)} of {len(apart)} rows are decided by more than {tie:.1e}, which "
            f"kernels differ by; golden rows must be, and {batch or 1} are needed"
        )
    return np.array(rows[np.sort(chosen)]), tie


def _scores(session: Session, name: str, rows: Array, size: int) -> Array:
    """An output of all rows, which are answered in batches of that size."""
    batches = [as_fed(np.array(rows[at : at + size])) for at in range(0, len(rows), size)]
    found = [session.run({session.inputs[0].name: one})[name] for one in batches]
    return np.concatenate(found).astype(np.float64)


def make_golden(session: Session, rows: Array) -> bytes:
    """Run `rows`, of the model's own dtype and shape, and return the bytes of `golden.npz`.

    Strings may be an array of numpy's text or of Python's `str`. Raises InputError for no rows and
    for outputs that are not finite, and ModelError for an output that is no array.
    """
    if not len(rows):
        raise InputError("golden rows are needed, there are none")
    for info in session.outputs:
        if not info.is_array:
            raise ModelError(f"output {info.name} is {info.dtype}, which is no array")
    arrays = {INPUT: rows} | _answers(session, rows)
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"golden {name} holds a value that is not finite")
    file = io.BytesIO()
    # Strings are saved with a fixed length, as an array of objects would need pickle.
    saved: dict[str, Any] = {name: _without_objects(array) for name, array in arrays.items()}
    np.savez_compressed(file, allow_pickle=False, **saved)
    return file.getvalue()


def check_golden(session: Session, content: bytes, manifest: BundleManifest) -> float:
    """Run the golden rows again and return the largest absolute difference of any output.

    Raises IntegrityError when an array is missing or malformed, the difference is over the
    manifest's limit, that limit is none, or a row gets another class: golden rows are none that
    are nearly a tie.
    """
    golden, classes = manifest.golden, manifest.classes
    try:
        if len(session.inputs) != 1 or golden.rows < 1:
            raise IntegrityError(f"{golden.rows} golden rows of {len(session.inputs)} inputs")
        info, answered = session.inputs[0], session.answered("the model")
        file = GoldenFile(content, [INPUT, *(output.name for output in answered)])
        rows = file.read(INPUT, info.dtype, [golden.rows, *info.shape[1:]])
        outputs = _answers(session, rows)
        arrays = {name: file.read(name, str(a.dtype), a.shape) for name, a in outputs.items()}
        refuse_lax(golden.max_abs_diff, arrays, bool(classes.scores))
    except (InputError, ModelError) as error:
        raise IntegrityError(f"golden.npz: {error}") from error
    except RunnerError as error:
        raise IntegrityError(str(error)) from error
    worst = max(difference(arrays[name], outputs[name]) for name in outputs)
    if not worst <= golden.max_abs_diff:
        raise IntegrityError(
            f"the golden outputs differ by {worst:.3e} here, the limit is {golden.max_abs_diff:.3e}"
        )
    flips = int((_decisions(arrays, classes) != _decisions(outputs, classes)).sum())
    if flips:
        raise IntegrityError(f"{flips} of {len(rows)} golden rows get another class here")
    return worst


def _decisions(outputs: Mapping[str, Array], classes: ClassOutputs) -> Array:
    """The class of each row, as text or by number; nothing of a model without classes."""
    told = classes.label or classes.scores
    if told is None:
        return np.empty(0)
    found = outputs.get(told.name)
    if found is None or (told is classes.scores and (found.ndim != 2 or not found.shape[1])):
        raise IntegrityError(f"the model does not tell its classes by {told.name}")
    return found.astype(str).ravel() if classes.label else found.argmax(axis=1)


def _answers(session: Session, rows: Array) -> dict[str, Array]:
    """What the model answers to rows, each output one entry a row."""
    answered = session.answered("the model")
    found = session.run({session.inputs[0].name: as_fed(rows)})
    outputs = {info.name: found[info.name] for info in answered}
    refuse_other_rows("the model", outputs, len(rows))
    return outputs


def load_golden(content: bytes) -> Mapping[str, Array]:
    """The arrays that `make_golden` has just made, by name: `INPUT` and each output."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return dict(archive)


def _without_objects(array: Array) -> Array:
    if array.dtype.kind != "O":
        return array
    if not all(isinstance(value, str) for value in array.flat):
        raise ModelError("golden arrays hold numbers or strings only")
    return array.astype(np.str_)
