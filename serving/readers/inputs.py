"""Turn the inputs of `ferry predict` into one ordered stream of rows, one at a time.

Image folders, single images, arrays, lines of text and tables, told apart by their suffix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.errors import InputError, MissingInputError, UsageError
from serving.model import Model
from serving.readers.arrays import ARRAY_SUFFIXES, Rows, open_array
from serving.readers.formats import COLUMN_SUFFIXES
from serving.readers.images import IMAGE_SUFFIXES, open_images
from serving.readers.items import Row, Source, Unreadable
from serving.readers.lines import open_lines
from serving.readers.tables import open_table

__all__ = ["Inputs", "open_inputs"]

TEXT_SUFFIX = ".txt"


@dataclass(frozen=True, slots=True)
class Inputs:
    """All inputs of a run, in order."""

    sources: tuple[Source, ...]

    @property
    def count(self) -> int | None:
        """The number of all rows, or None where only reading them all would tell."""
        total = 0
        for source in self.sources:
            if source.count is None:
                return None
            total += source.count
        return total

    def __iter__(self) -> Iterator[Row | Unreadable]:
        for source in self.sources:
            yield from source


def open_inputs(
    paths: Sequence[Path],
    model: Model,
    *,
    array: str | None = None,
    columns: Sequence[str] = (),
    resize: bool = False,
) -> Inputs:
    """Look at every input, and return the stream of their rows.

    `array` names the array of `.npz` files, `columns` the columns of `.csv`, `.jsonl` and
    `.parquet` files, and `resize` fits images to the model in size and mode.
    Raises MissingInputError for a path that is not there, InputError for one that holds nothing
    the model takes, and UsageError for columns where no input has any.
    """
    if columns and not any(path.suffix.lower() in COLUMN_SUFFIXES for path in paths):
        raise UsageError(f"--column is for {', '.join(COLUMN_SUFFIXES)}; no input is one of these")
    return Inputs(
        tuple(_source(path, model, array, columns, resize=resize) for path in paths),
    )


def _source(
    path: Path, model: Model, array: str | None, columns: Sequence[str], *, resize: bool
) -> Source:
    if not path.exists():
        raise MissingInputError(f"{path} is not there")
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in IMAGE_SUFFIXES:
        return open_images(path, model.input, model.path, resize=resize)
    if suffix in ARRAY_SUFFIXES:
        return Rows(path, open_array(path, model.input, model.path, array))
    if suffix == TEXT_SUFFIX:
        return open_lines(path, model.input, model.path)
    if suffix in COLUMN_SUFFIXES:
        return open_table(path, model.input, model.path, columns)
    takes = ", ".join((TEXT_SUFFIX, *COLUMN_SUFFIXES, *ARRAY_SUFFIXES, *IMAGE_SUFFIXES))
    raise InputError(f"{path}: unknown suffix {suffix!r}; give a folder of images, or {takes}")
