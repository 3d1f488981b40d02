"""Texts: a file for each class with one text a line, or columns of a CSV or Parquet file.

`reviews: {reader: text, path: data/reviews}` for the files CLASS.txt of a folder, or
`reviews: {reader: text, path: data/reviews.csv, text: review, label: mood}`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.config.experiment import OwnDatasetConfig
from pipeline.datasets.readers import Part, class_folder, listed, require_memory
from pipeline.datasets.readers._columns import is_table, text_columns
from serving.errors import InputError
from serving.inputs.names import TEXT_SUFFIX
from serving.inputs.text import BYTE_ORDER_MARK, decode_line, text_fault

CHARACTER = 4
"""Bytes of one in an array of texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(OwnDatasetConfig):
    """`path` is a folder of text files, one for each class, or a table."""

    classes: Mapping[str, str] | None = None
    """The file of each class in the folder; without it a class is the name of its .txt file."""
    text: str | None = None
    """Column of a table with the text."""
    label: str | None = None
    """Column of a table with the class."""


def files(root: Path, settings: Settings) -> Mapping[str, Path]:
    """The file of each class by the class, or the table."""
    if is_table(root):
        return {root.name: root}
    return _by_class(root, settings)


def read(root: Path, settings: Settings, like: Part | None) -> Part:  # noqa: ARG001 - as all readers
    """Read texts as str [rows]; blank lines are left out."""
    if is_table(root):
        return _of_table(root, settings)
    texts: list[str] = []
    labels: list[str] = []
    names: list[str] = []
    blank: list[str] = []
    for label, path in _by_class(root, settings).items():
        before = len(texts)
        for number, text in enumerate(_lines(path), 1):
            if text.strip():
                texts.append(text)
                names.append(f"{path.name} line {number}")
            else:
                blank.append(f"{path.name} line {number}")
        if len(texts) == before:
            raise InputError(f"{path} holds no text; write one a line, or take the file away")
        labels += [label] * (len(texts) - before)
    notes = (f"left out blank lines: {listed(blank)}",) if blank else ()
    return Part(
        kind="text", inputs=_array(root, texts, names), answers=labels, names=names, notes=notes
    )


def _by_class(root: Path, settings: Settings) -> dict[str, Path]:
    """The file of each class; InputError for one that is not there."""
    if not root.is_dir():
        raise InputError(f"{root} must be a folder of text files, or a table of texts")
    if settings.classes is None:
        names = [path.stem for path in root.glob(f"[!.]*{TEXT_SUFFIX}")]
        return {
            label: root / f"{label}{TEXT_SUFFIX}"
            for label in class_folder(root, names, f"files of text ({TEXT_SUFFIX})")
        }
    found = {label: root / name for label, name in settings.classes.items()}
    for path in found.values():
        if not path.is_file():
            raise InputError(f"{path} is not there, or no file")
    return found


def _lines(path: Path) -> list[str]:
    """The lines of a file; InputError for one that is not UTF-8."""
    lines = path.read_bytes().removeprefix(BYTE_ORDER_MARK).removesuffix(b"\n").split(b"\n")
    texts = [decode_line(line).removesuffix("\r") for line in lines]
    for number, text in enumerate(texts, 1):
        if fault := text_fault(text):
            raise InputError(f"{path}: line {number} {fault}")
    return texts


def _of_table(root: Path, settings: Settings) -> Part:
    texts, answers = text_columns(root, text=settings.text, label=settings.label)
    names = [f"row {row}" for row in range(1, len(texts) + 1)]
    for name, text in zip(names, texts, strict=True):
        if fault := text_fault(text):
            raise InputError(f"{root}: {name} {fault}")
    return Part(kind="text", inputs=_array(root, texts, names), answers=answers, names=names)


def _array(root: Path, texts: list[str], names: list[str]) -> npt.NDArray[np.str_]:
    """The texts as an array, in which each takes as much room as the longest."""
    lengths = [len(text) for text in texts]
    longest = lengths.index(max(lengths))
    what = f"texts of up to {lengths[longest]:,} characters ({names[longest]})"
    require_memory(root, CHARACTER * len(texts) * lengths[longest], what, "cut the longest")
    return np.array(texts)
