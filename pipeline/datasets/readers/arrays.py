"""Arrays of numpy: an .npz file, or the .npy files of a folder.

`mine: {reader: arrays, path: data/mine.npz, inputs: x_train, labels: y_train, test_inputs: x_test,
test_labels: y_test}`, or the names of .npy files where `path` is a folder.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.experiment import OwnDatasetConfig
from pipeline.datasets.readers import Part
from serving.errors import InputError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(OwnDatasetConfig):
    """`path` is an .npz file or a folder of .npy files, which the other keys name."""

    inputs: str
    """uint8 [rows, height, width] or [rows, height, width, channels], any numbers [rows, features],
    or texts [rows]."""
    labels: str
    """Whole numbers or texts [rows] for classes, floats [rows] or [rows, targets] for numbers to be
    predicted."""
    test_inputs: str | None = None
    test_labels: str | None = None

    @property
    def test_path(self) -> str | None:
        """Where the test rows lie: in the same place, if they have names of their own."""
        return self.test or (self.path if self.test_inputs else None)


def files(root: Path, settings: Settings) -> Mapping[str, Path]:
    """The .npz file, or the .npy files that are named."""
    if root.is_file():
        return {root.name: root}
    if not root.is_dir():
        raise InputError(f"{root} must be an .npz file or a folder of .npy files")
    named = (settings.inputs, settings.labels, settings.test_inputs, settings.test_labels)
    paths = {name: root / name for name in named if name}
    return {name: path for name, path in paths.items() if path.is_file()}


def read(root: Path, settings: Settings, like: Part | None) -> Part:
    """Read the arrays; InputError for values that no model here takes."""
    names = settings.inputs, settings.labels
    if like is not None:
        names = settings.test_inputs or names[0], settings.test_labels or names[1]
    inputs, answers = (_load(root, name) for name in names)
    if answers.shape[:1] != inputs.shape[:1] or not inputs.size:
        raise InputError(
            f"{root}: {names[0]} has the shape {list(inputs.shape)} and {names[1]} "
            f"{list(answers.shape)}; both must have the same number of rows, one or more"
        )
    kind, rows = _rows(f"{root}: {names[0]}", inputs)
    numbers = answers.dtype.kind == "f"
    return Part(
        kind=kind,
        inputs=rows,
        answers=_targets(f"{root}: {names[1]}", answers) if numbers else _labels(root, answers),
        names=[f"row {row}" for row in range(len(inputs))],
        targets=tuple(f"{names[1]}_{index}" for index in range(answers[0].size)) if numbers else (),
    )


def _load(root: Path, name: str) -> npt.NDArray[Any]:
    """One array; InputError where it is not there or needs pickle."""
    try:
        if root.is_dir():
            array: npt.NDArray[Any] = np.load(root / name, allow_pickle=False)
            return array
        with np.load(root, allow_pickle=False) as archive:
            if name not in archive:
                raise InputError(f"{root} has no array {name!r}{nearest(name, archive)}")
            found: npt.NDArray[Any] = archive[name]
            return found
    except FileNotFoundError as error:
        raise InputError(f"{root / name} is not there") from error
    except (
        ValueError,
        OSError,
        EOFError,
        MemoryError,
        zipfile.BadZipFile,
        AttributeError,
    ) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{root}: {name} is no array that can be read; save it with np.save or np.savez, "
            f"without objects"
        ) from error


def _rows(name: str, inputs: npt.NDArray[Any]) -> tuple[Any, npt.NDArray[Any]]:
    """The kind of rows, and the rows as that kind has them."""
    match inputs.dtype.kind, inputs.ndim:
        case ("U", 1):
            return "text", inputs
        case ("f" | "i" | "u" | "b", 2):
            rows = inputs.astype(np.float32)
            if not np.isfinite(rows).all():
                row = int(np.argwhere(~np.isfinite(rows))[0][0])
                raise InputError(f"{name}: row {row} holds a value that is no finite float32")
            return "table", rows
        case (_, 3 | 4) if inputs.dtype == np.uint8:
            pictures = inputs[..., np.newaxis] if inputs.ndim == 3 else inputs
            if pictures.shape[-1] in (1, 3):
                return "image", pictures
    raise InputError(
        f"{name} holds {inputs.dtype} {list(inputs.shape)}; images are uint8 [rows, height, width] "
        f"or [rows, height, width, 1 or 3], tables numbers [rows, features], texts str [rows]"
    )


def _labels(root: Path, answers: npt.NDArray[Any]) -> list[str]:
    if answers.ndim != 1 or answers.dtype.kind not in "iuUb":
        raise InputError(
            f"{root}: labels must be whole numbers or texts [rows], got {answers.dtype} "
            f"{list(answers.shape)}"
        )
    return [str(value) for value in answers.tolist()]


def _targets(name: str, answers: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    rows: npt.NDArray[np.float32] = answers.reshape(len(answers), -1).astype(np.float32)
    if not np.isfinite(rows).all():
        row = int(np.argwhere(~np.isfinite(rows))[0][0])
        raise InputError(f"{name}: row {row} holds a value that is no finite float32")
    return rows
