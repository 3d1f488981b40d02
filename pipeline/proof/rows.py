"""The rows that two models are compared on: of a file, a folder of images, or a data set's split.

They stay on the disk, mapped into memory, so that their number does not matter.
"""

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pipeline.config import layout, reading
from pipeline.records import ready
from serving.errors import InputError, MissingInputError, UnknownNameError
from serving.files import refuse_special
from serving.inputs.arrays import ARRAY_NAMES, open_array, read_header
from serving.inputs.inputs import TABLES, open_source
from serving.inputs.names import format_of_file
from serving.inputs.sources import InputRow, ReadTarget, UnreadableRow, each_row, refuse_broken
from serving.runtime.classes import Task
from serving.runtime.shared import HINT, SharedInput
from serving.runtime.tensors import Array, TensorInfo

LABELS = "labels"
"""The array of a `.npz` that holds the classes."""
MODEL = Path("the model")
"""What takes the rows, in messages."""
KNOWN = ".npy, .npz, .txt, .csv, .jsonl, .parquet, an image, a folder of images or DATASET:SPLIT"
DATASETS = Path(__file__).parents[1] / "datasets"
"""Asked for the names alone: which rows there are changes nothing for the stages that read them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Raw rows for every input of a model, with the truth of each where it is known."""

    name: str
    """Where they are from, for instance "mnist:test"."""
    inputs: Mapping[str, Array]
    """By the name of the model's input, each [rows, ...]; mapped into memory where it can be."""
    labels: npt.NDArray[Any] | None
    """int64 [rows] of classes, float32 [rows, targets] of a regression, or None for not known."""
    shared: tuple[SharedInput, ...] = ()
    """The inputs that are the same for all rows."""

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def task(self) -> Task | None:
        """What the truth says of a model that it belongs to."""
        return task_of(self.labels)

    def slice(self, start: int, stop: int) -> dict[str, Array]:
        """The rows from `start` to before `stop`, by the name of the input."""
        return {name: array[start:stop] for name, array in self.inputs.items()}

    def fed(self, start: int, stop: int) -> dict[str, Array]:
        """The same with the inputs that all rows share: what the model itself takes."""
        rows = self.slice(start, stop)
        count = len(next(iter(rows.values())))
        return rows | {one.info.name: one.array(count) for one in self.shared}

    def take(self, indices: npt.NDArray[np.int64]) -> dict[str, Array]:
        """The rows at some indices, by the name of the input."""
        return {name: array[indices] for name, array in self.inputs.items()}


def task_of(labels: npt.NDArray[Any] | None) -> Task | None:
    """Whether labels, as in `Rows`, are classes or targets; None where there are none."""
    if labels is None:
        return None
    return "regression" if labels.dtype.kind == "f" else "classification"


def squared_errors(
    answers: Mapping[str, Array], labels: npt.NDArray[Any] | None
) -> npt.NDArray[np.float64] | None:
    """How far answers are from the targets of a regression, squared: float64 [rows, targets].

    By the first output of floats with a value for each target. None where no targets are known, or
    no output has them.
    """
    if labels is None or task_of(labels) != "regression":
        return None
    for answer in answers.values():
        if answer.dtype.kind == "f" and answer.size == labels.size:
            off: npt.NDArray[np.float64] = answer.reshape(labels.shape) - labels.astype(np.float64)
            return off**2
    return None


def open_rows(spec: str, inputs: Sequence[TensorInfo]) -> Rows:
    """Open the rows that `spec` names, for the inputs of a model.

    `spec` is a `.npy`, a `.npz` with an array for each input (or one array for a model of one
    input) and perhaps `labels`, lines of text, a table, an image, a folder of images, or
    `DATASET:SPLIT` of the preprocessed data, for instance "mnist:test".

    Raises MissingInputError for what is not there, UnknownNameError for a data set or a split that
    does not exist, and InputError for rows that the model does not take, and for no rows at all.
    """
    path = Path(spec)
    if not inputs:
        raise InputError(f"the model has no inputs, so there is nothing to feed it of {spec}")
    dataset, colon, split = spec.partition(":")
    if colon and not path.exists():
        return _of_dataset(dataset, split, _only(inputs, spec))
    if not path.exists():
        raise MissingInputError(f"{spec} is not there; rows are {KNOWN}")
    refuse_special(path)
    if path.suffix.lower() == ".npz":
        return _of_archive(path, inputs)
    info = _only(inputs, spec)
    if path.suffix.lower() == ".npy":
        array = open_array(path, ReadTarget(info, MODEL))
    else:
        array = _gathered(_source(path, info), info)
    return Rows(name=spec, inputs={info.name: array}, labels=None)


def rows_of_split(folder: Path, split: str, info: TensorInfo) -> Rows:
    """The rows of a preprocessed data set's split, for instance of `data/ready/mnist`.

    Raises MissingInputError, IntegrityError for altered files, and InputError for rows that the
    input does not take.
    """
    found = ready.open_split(folder, split)
    name = f"{folder.name}:{split}"
    _check(name, {info.name: found.inputs}, [info])
    return Rows(name=name, inputs={info.name: found.inputs}, labels=found.labels)


def _only(inputs: Sequence[TensorInfo], spec: str) -> TensorInfo:
    if len(inputs) != 1:
        names = ", ".join(info.name for info in inputs)
        raise InputError(
            f"{spec} has rows for one input, the model has {len(inputs)} ({names}); give a .npz "
            f"with an array of each of these names; {HINT}"
        )
    return inputs[0]


def _of_dataset(dataset: str, split: str, info: TensorInfo) -> Rows:
    known, folder = reading.names(DATASETS), layout.project() / layout.ready(dataset)
    # One that has a reader in params.yaml is in no registry.
    if dataset not in known and not folder.is_dir():
        raise UnknownNameError("data set", dataset, known)
    if split not in ready.SPLITS:
        raise UnknownNameError(f"split of {dataset}", split, ready.SPLITS)
    return rows_of_split(folder, split, info)


def _of_archive(path: Path, inputs: Sequence[TensorInfo]) -> Rows:
    errors = (ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile)
    broken = refuse_broken(str(path), "is not a .npz file that can be read", errors)
    with broken, zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        members = _members(path, names, inputs)
        arrays = {name: _mapped(archive, member) for name, member in members.items()}
        labels = _mapped(archive, LABELS) if LABELS in names else None
    _check(str(path), arrays, inputs)
    counted = len(next(iter(arrays.values())))
    return Rows(name=str(path), inputs=arrays, labels=_checked_labels(path, labels, counted))


def _members(path: Path, names: Sequence[str], inputs: Sequence[TensorInfo]) -> dict[str, str]:
    """The member of a `.npz` for each input: of its name, else the one that must be meant."""
    others = [name for name in names if name != LABELS]
    usual = [name for name in ARRAY_NAMES if name in others] or others
    found = {}
    for info in inputs:
        if info.name in names:
            found[info.name] = info.name
        elif len(inputs) == 1 and (len(others) == 1 or usual[0] in ARRAY_NAMES):
            found[info.name] = usual[0]
        else:
            raise InputError(
                f"{path} holds no array named {info.name!r}, which the model takes as "
                f"{info.takes()}; there are: {', '.join(names) or 'none'}"
            )
    return found


def _mapped(archive: zipfile.ZipFile, member: str) -> Array:
    """An array of a `.npz`, copied to a nameless file and mapped, whatever its size."""
    with archive.open(f"{member}.npy") as packed, tempfile.TemporaryFile() as file:
        shutil.copyfileobj(packed, file)
        file.seek(0)
        header = read_header(file, member)
        order = "F" if header.in_columns else "C"
        return _memmap(file, header.dtype, header.shape, offset=file.tell(), order=order)


def _memmap(
    file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...], offset: int = 0, order: Any = "C"
) -> Array:
    if 0 in shape:  # nothing to map
        return np.zeros(shape, dtype)
    return np.memmap(file, dtype, "r", offset, shape, order)


def _check(name: str, arrays: Mapping[str, Array], inputs: Sequence[TensorInfo]) -> None:
    """Refuse arrays that the inputs do not take, that hold no rows, or not the same number."""
    for info in inputs:
        array = arrays[info.name]
        if not array.ndim or not info.accepts(array.dtype, array.shape[1:]):
            raise InputError(
                f"{name} holds {array.dtype} {list(array.shape)} for the input {info.name!r}; the "
                f"model takes {info.takes()}"
            )
        if not len(array):
            raise InputError(f"{name} holds no rows")
    counts = {key: len(array) for key, array in arrays.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} of {key}" for key, count in counts.items())
        raise InputError(f"{name} must hold as many rows of each input, got {found}")


def _checked_labels(path: Path, labels: Array | None, rows: int) -> npt.NDArray[np.int64] | None:
    if labels is None:
        return None
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"{path}: {LABELS!r} must be whole numbers [{rows}], got {labels.dtype} "
            f"{list(labels.shape)}"
        )
    return labels.astype(np.int64)


def _source(path: Path, info: TensorInfo) -> Iterator[InputRow | UnreadableRow]:
    form = "images" if path.is_dir() else format_of_file(path.name)
    if form not in ("images", "text", *TABLES):
        raise InputError(f"{path}: unknown suffix {path.suffix.lower()!r}; rows are {KNOWN}")
    return each_row(open_source(form, [str(path)], ReadTarget(info, MODEL)))


def _gathered(items: Iterator[InputRow | UnreadableRow], info: TensorInfo) -> Array:
    """All rows of a stream: texts in memory, all else in a nameless file that is mapped."""
    if info.is_text:
        return np.stack([_value(item) for item in items])
    with tempfile.TemporaryFile() as file:
        first = _value(next(items))
        count = 1
        first.tofile(file)
        for item in items:
            _value(item).tofile(file)
            count += 1
        return _memmap(file, first.dtype, (count, *first.shape))


def _value(item: InputRow | UnreadableRow) -> Array:
    if isinstance(item, UnreadableRow):
        raise InputError(f"{item.id}: {item.reason}")
    return item.value
