"""Golden rows: an input and the outputs it gave, which every device must give again.

They travel in the bundle as `golden.npz`: `input`, and each output by its name.
"""

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.bundles.bundle import Golden
from serving.errors import InputError, IntegrityError, ModelError
from serving.runtime.session import Session
from serving.runtime.tensors import Array, as_fed, refuse_other_rows

INPUT = "input"


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
    np.savez(file, allow_pickle=False, **saved)
    return file.getvalue()


def check_golden(session: Session, content: bytes, golden: Golden) -> float:
    """Run the golden rows again and return the largest absolute difference of any output.

    Raises IntegrityError when an array is missing or malformed, or the difference is over
    `golden.max_abs_diff`.
    """
    arrays = _load(content)
    names = [INPUT, *(output.name for output in session.answered("the model"))]
    if sorted(arrays) != sorted(names):
        raise IntegrityError(f"golden.npz holds {sorted(arrays)}, expected {sorted(names)}")
    rows = arrays[INPUT]
    if len(rows) != golden.rows:
        raise IntegrityError(f"golden.npz holds {len(rows)} rows, expected {golden.rows}")
    try:
        outputs = _answers(session, rows)
    except (InputError, ModelError) as error:
        raise IntegrityError(f"golden.npz: {error}") from error
    worst = max(_difference(name, arrays[name], outputs[name]) for name in outputs)
    if not worst <= golden.max_abs_diff:
        raise IntegrityError(
            f"the golden outputs differ by {worst:.3e} here, the limit is {golden.max_abs_diff:.3e}"
        )
    return worst


def _answers(session: Session, rows: Array) -> dict[str, Array]:
    """What the model answers to rows, each output one entry a row."""
    answered = session.answered("the model")
    found = session.run({session.inputs[0].name: as_fed(rows)})
    outputs = {info.name: found[info.name] for info in answered}
    refuse_other_rows("the model", outputs, len(rows))
    return outputs


def _load(content: bytes) -> Mapping[str, Array]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise IntegrityError(f"golden.npz cannot be read: {error}") from error


def _difference(name: str, expected: Array, found: Array) -> float:
    if expected.shape != found.shape:
        raise IntegrityError(f"golden {name} has shape {found.shape} here, not {expected.shape}")
    if found.dtype.kind not in "fiub" or expected.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(found.astype(str), expected.astype(str)) else np.inf
    difference = np.abs(expected.astype(np.float64) - found.astype(np.float64))
    # NaN compares as nothing; as an infinite difference it fails every limit.
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))


def _without_objects(array: Array) -> Array:
    if array.dtype.kind != "O":
        return array
    if not all(isinstance(value, str) for value in array.flat):
        raise ModelError("golden arrays hold numbers or strings only")
    return array.astype(np.str_)
