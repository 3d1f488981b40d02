"""Rows of numbers in a CSV, TSV or Parquet file, with their labels or numbers to be predicted.

`houses: {reader: table, path: data/houses.csv, target: [price]}` or `label: species`. The features
are all other columns of numbers, or those that `features` names.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.experiment import OwnDatasetConfig
from pipeline.datasets.readers import Part, listed
from pipeline.datasets.readers._columns import Columns
from pipeline.errors import ConfigError
from serving.errors import InputError

Names = Annotated[tuple[str, ...], Field(min_length=1)]
INDEX_NAMES = ("", "Unnamed: 0", "__index_level_0__")
"""How pandas calls the numbers of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(OwnDatasetConfig):
    """`path` is a table with either `label`, the column of the class, or `target`."""

    label: str | None = None
    target: Names | None = None
    """Columns of the numbers to be predicted."""
    features: Names | None = None
    missing: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The number to take where a feature has no value; without it such a row is refused."""
    decimal: Literal[".", ","] = "."
    """What stands before the fraction of a number of a CSV."""


def files(root: Path, settings: Settings) -> Mapping[str, Path]:  # noqa: ARG001 - as all readers
    """The one file."""
    if not root.is_file():
        raise InputError(f"{root} must be a table, and is not there, or no file")
    return {root.name: root}


def read(root: Path, settings: Settings, like: Part | None) -> Part:
    """Read the features as float32 [rows, features]; those of a test are those of the training."""
    label, targets = settings.label, settings.target or ()
    columns = Columns(root, [label] if label is not None else [], settings.decimal)
    if (label is None) == (settings.target is None):
        raise ConfigError(
            f"{root}: say either label: or target:, what is to be predicted of its columns: "
            f"{listed(columns.names)}"
        )
    columns.require(targets)
    answers = tuple(targets) if label is None else (label,)
    names = like.features if like else settings.features or _features(columns, answers)
    for name, count in Counter((*names, *answers)).items():
        if count > 1:
            raise InputError(
                f"{root}: column {name!r} is chosen twice, as a feature or as what is to be "
                f"predicted"
            )
    chosen = like is not None or settings.features is not None
    others = [] if chosen else _texts(columns, answers)
    return Part(
        kind="table",
        inputs=columns.numbers(names, settings.missing),
        answers=columns.numbers(targets) if label is None else columns.texts(label),
        names=[f"row {row}" for row in range(1, len(columns) + 1)],
        features=tuple(names),
        targets=tuple(targets),
        notes=(f"left out columns of no numbers: {listed(others)}",) if others else (),
    )


def _features(columns: Columns, answers: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of numbers that are not to be predicted."""
    left = [name for name in columns.names if name not in (*answers, *INDEX_NAMES)]
    names = tuple(name for name in left if columns.is_number(name))
    if not names:
        raise InputError(
            f"{columns.path} has no column of numbers but what is to be predicted; there are "
            f"{', '.join(columns.names)}"
        )
    return names


def _texts(columns: Columns, answers: tuple[str, ...]) -> list[str]:
    """The columns that are no features because they are no numbers, each with a value of it."""
    left = [name for name in columns.names if name not in answers and not columns.is_number(name)]
    return [f"{name}: {columns.shown_text(name)}" for name in left]
