"""The readers of a user's own data: one file each; the file name is what `reader` says.

Each has `read`, whose `settings` are the record of the section in params.yaml, and `files`, which
names all that it reads. Both are asked once for the training rows and once for the test rows, where
these are given; what is wrong is told in one line, by the name of the file and the row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import numpy as np
import numpy.typing as npt

from pipeline.config import reading
from pipeline.config.experiment import OwnDatasetConfig, OwnSection
from pipeline.records.ready import Kind
from serving.errors import InputError
from serving.files import printable

FOLDER = Path(__file__).parent
SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}
SHOWN = 3
"""Files, rows or columns that a message names, of many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The rows of one place: all of them, or those of the training or of the test."""

    kind: Kind
    inputs: npt.NDArray[Any]
    """As `Split` has them."""
    answers: Sequence[str] | npt.NDArray[np.float32]
    """The label of each row, or the numbers to be predicted: float32 [rows, targets]."""
    names: Sequence[str]
    """The file of each row, or its place in a file."""
    features: tuple[str, ...] = ()
    """Columns of a table."""
    targets: tuple[str, ...] = ()
    """Columns of the numbers to be predicted; () for classes."""
    notes: tuple[str, ...] = ()
    """What was left out, for the user to know."""


def settings(section: OwnSection, where: str) -> OwnDatasetConfig:
    """Read a section with the record of its reader.

    Raises UnknownNameError for a reader that does not exist and ConfigError, below the path
    `where`, for a setting that is wrong.
    """
    record = get_type_hints(_module(section.reader).read)["settings"]
    config: OwnDatasetConfig = reading.read_section(record, dict(section.settings), where)
    return config


def files(config: OwnDatasetConfig) -> dict[str, Path]:
    """Every file that the reader reads, by a name that does not say where the data lie.

    Raises InputError for what is not there, or is not laid out as the reader takes it.
    """
    module, found = _module(config.reader), {}
    for part, root in _places(config).items():
        for name, path in module.files(root, config).items():
            if name != printable(name):
                raise InputError(f"{printable(path)}: its name is not UTF-8; rename the file")
            found[f"{part}/{name}"] = path
    return dict(sorted(found.items()))


def read(config: OwnDatasetConfig) -> tuple[Part, Part | None]:
    """All rows, or those of the training and those of the test where these are given.

    Raises InputError for what cannot be used.
    """
    module, places = _module(config.reader), _places(config)
    train: Part = module.read(places["path"], config, None)
    test: Part | None = None
    if "test" in places:
        test = module.read(places["test"], config, train)
        found, expected = test.inputs.shape[1:], train.inputs.shape[1:]
        if (found, test.features) != (expected, train.features):
            raise InputError(
                f"{places['test']}: a row has the shape {list(found)}, those of {places['path']} "
                f"have {list(expected)}"
            )
    return train, test


def missing(config: OwnDatasetConfig) -> Path | None:
    """The first of the places of the section at which there is nothing; None if all are there."""
    return next((path for path in _places(config).values() if not path.exists()), None)


def _places(config: OwnDatasetConfig) -> Mapping[str, Path]:
    """Where the rows lie, by the key that says it."""
    test = {} if config.test_path is None else {"test": config.test_path}
    return {key: Path(path).expanduser() for key, path in {"path": config.path, **test}.items()}


def _module(name: str) -> ModuleType:
    return reading.load("reader", __name__, FOLDER, name)


# What several readers do


def class_folder(root: Path, names: Sequence[str], what: str) -> tuple[str, ...]:
    """The classes that a folder's entries name, sorted; InputError for none, and for splits."""
    if not names:
        raise InputError(f"{root} holds no {what}, one for each class")
    if all(name.lower() in SPLIT_NAMES for name in names):
        raise InputError(
            f"{root} holds {' and '.join(sorted(names))}, which are splits and no classes; name "
            f"the folder of the training rows in path: and that of the test rows in test:"
        )
    return tuple(sorted(names))


def require_memory(root: Path, values: int, what: str, remedy: str) -> None:
    """Refuse rows of so many bytes, which are held twice while they are split; InputError."""
    import psutil

    free = psutil.virtual_memory().available
    if 2 * values > free:
        raise InputError(
            f"{root}: {what} take {2 * values / 2**30:,.1f} GiB of memory, {free / 2**30:,.1f} are "
            f"free; {remedy}"
        )


def listed(names: Sequence[str]) -> str:
    """How many there are, and the first of them."""
    return f"{len(names)} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
