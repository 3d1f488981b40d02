"""The arrays of a preprocessed data set: `data/ready/D`, memory-mapped, with a manifest.

`ferry preprocess` writes them; every later stage opens them here, which checks their sha256 first,
because DVC does not notice an object that rotted in its cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.records import altered, check_recorded, read, record
from serving.errors import IntegrityError
from serving.files import atomic_write, require, sha256_of_bytes, sha256_of_file, write_json

Kind = Literal["image", "table", "text"]
"""Raw rows are uint8 [H, W, C], float32 [features] or a string."""
SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayInfo:
    """One `.npy` file."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetManifest:
    """What lies in `data/ready/D`."""

    dataset: str
    kind: Kind
    labels: tuple[str, ...]
    """Names of the classes; () for a regression."""
    class_counts: Mapping[str, tuple[int, ...]]
    """Rows of each class, per split; () for a regression."""
    mean: tuple[float, ...]
    """Per channel of images and per feature of tables, over the training split alone, in raw units
    (0 to 255 for uint8); () for text, and 0 for values that are not to be standardized."""
    std: tuple[float, ...]
    """As `mean`; 1 for values that are not to be standardized."""
    vocabulary: tuple[str, ...]
    """Every word of the training split of a text, the most frequent first, ties in alphabetical
    order; () for images and tables."""
    seed: int
    arrays: Mapping[str, ArrayInfo]
    """Per file name, for instance `train_inputs.npy`."""
    targets: tuple[str, ...] = ()
    """Names of the columns that a regression predicts; () for classes, as are the next two."""
    target_mean: tuple[float, ...] = ()
    """Of each target over the training split alone, in its own units."""
    target_std: tuple[float, ...] = ()
    features: tuple[str, ...] = ()
    """The columns of a user's own table, in the order of the features."""
    source: str = ""
    """One sha256 over the files and the settings of a user's own data set."""
    homepage: str = ""
    citation: str = ""
    licence: str = ""

    @property
    def rows(self) -> Mapping[str, int]:
        """Rows of each split."""
        return {split: self.arrays[f"{split}_inputs.npy"].shape[0] for split in SPLITS}


@dataclass(frozen=True, slots=True)
class Split:
    """The rows of one split, still raw; memory-mapped where they come from `data/ready/D`."""

    inputs: npt.NDArray[Any]
    """Images: uint8 [rows, H, W, C]; tables: float32 [rows, features]; text: str [rows]."""
    labels: npt.NDArray[Any]
    """int64 [rows], indices into the labels; of a regression float32 [rows, targets]."""
    names: npt.NDArray[np.str_] | None = None
    """str [rows]: the file, or the place in a file, that a row of a user's own data comes from."""

    def take(self, rows: npt.NDArray[np.int64]) -> "Split":
        """Some of the rows, by their indices."""
        names = None if self.names is None else self.names[rows]
        return Split(self.inputs[rows], self.labels[rows], names)


def open_manifest(folder: Path) -> DatasetManifest:
    """Read `manifest.json`.

    Raises MissingInputError when the data set is not preprocessed yet, and IntegrityError for a
    manifest that is not the recorded one.
    """
    path, name = folder / MANIFEST, folder.name
    check_recorded(path, f"preprocess@{name}")
    return read(DatasetManifest, path, f"ferry preprocess {name}")


def write_manifest(folder: Path, manifest: DatasetManifest) -> None:
    """Write `manifest.json`, and its own sha256 beside it; the arrays are there already."""
    write_json(folder / MANIFEST, manifest)
    record(folder / MANIFEST, sha256_of_file(folder / MANIFEST))


def open_split(folder: Path, split: str) -> Split:
    """Open one of "train", "validation" and "test", checked against the manifest.

    Raises MissingInputError for a file that is not there and IntegrityError for one whose bytes,
    shape or dtype are not the recorded ones.
    """
    manifest = open_manifest(folder)
    inputs = _open_array(folder, f"{split}_inputs.npy", manifest)
    labels = _open_array(folder, f"{split}_labels.npy", manifest)
    names = f"{split}_names.npy"
    if names in manifest.arrays:
        return Split(inputs, labels, _open_array(folder, names, manifest))
    return Split(inputs, labels)


def write_array(path: Path, array: npt.NDArray[Any]) -> ArrayInfo:
    """Write an array as a C-contiguous `.npy` file, whole or not at all, and return its record.

    The same values of the same dtype and shape give the same bytes. Raises ValueError for objects,
    which only pickle could write, and OSError, naming the file, when it cannot be written.
    """
    if array.dtype.hasobject:
        raise ValueError(f"{path.name} cannot hold {array.dtype} values")
    rows = np.ascontiguousarray(array)
    header = np.lib.format.header_data_from_array_1_0(rows)
    with atomic_write(path) as file:
        # Not np.save: on a full disk its error names neither the reason nor the file.
        np.lib.format.write_array_header_1_0(file, header)
        file.write(rows.data)
    return ArrayInfo(shape=array.shape, dtype=str(array.dtype), sha256=sha256_of_file(path))


def digest(manifest: DatasetManifest) -> str:
    """One sha256 over the sums of all arrays: the identity of the preprocessed data set."""
    lines = sorted(f"{name} {info.sha256}" for name, info in manifest.arrays.items())
    return sha256_of_bytes("\n".join(lines).encode())


def _open_array(folder: Path, name: str, manifest: DatasetManifest) -> npt.NDArray[Any]:
    again = f"ferry preprocess {folder.name}"
    path = require(folder / name, again)
    info = manifest.arrays.get(name)
    if info is None:
        raise IntegrityError(f"{folder / MANIFEST} does not list {name}; `{again}` makes it anew")
    found = sha256_of_file(path)
    if found != info.sha256:
        raise altered(path, found, info.sha256, f"preprocess@{folder.name}")
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.shape != info.shape or str(array.dtype) != info.dtype:
        raise IntegrityError(
            f"{path} holds {array.dtype} {array.shape}, {info.dtype} {info.shape} was recorded; "
            f"`{again}` makes it anew"
        )
    return array


BLANK = " "
"""The one character that ONNX Runtime splits at: a tab or a line break is part of a word."""


def words(text: str) -> list[str]:
    """Split a text at blanks, of which several count as one; those at either end count for none.

    The exported graph does the same: it is ONNX's StringSplit without a delimiter in ONNX Runtime.
    """
    return [word for word in text.split(BLANK) if word]
