"""The architectures: one file each; the file name is the name.

Each has `TAKES`, the kinds of rows, `GIVES`, logits or a reconstruction, and `build`, whose
`settings` are the record of its section in params.yaml. A network takes standardised float32 values
(images [batch, C, H, W], table rows [batch, features]) or ids of words, int64 [batch, length], and
gives logits [batch, outputs] or planes from 0 to 1, [batch, C, H, W].
"""

from dataclasses import MISSING, dataclass, fields, is_dataclass
from math import prod
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from pipeline.config import reading
from pipeline.config.experiment import ModelConfig
from pipeline.config.reading import read_section
from pipeline.errors import ConfigError
from pipeline.records.ready import DatasetManifest, Kind
from serving.files import sha256_of_file

if TYPE_CHECKING:
    from torch import nn

FOLDER = Path(__file__).parent
Gives = Literal["logits", "reconstruction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a network takes and gives."""

    kind: Kind
    row: tuple[int, ...]
    """Of one row: (channels, height, width) of an image, (features,) of a table, () of text."""
    outputs: int
    """Values of a row: a logit per class, or one alone for two classes; one per target of a
    regression; 0 for a reconstruction."""

    @classmethod
    def of(cls, manifest: DatasetManifest, outputs: int) -> "Shape":
        """That of a network for a data set; the channels of an image come first."""
        axes = manifest.arrays["train_inputs.npy"].shape[1:]
        row = (axes[-1], *axes[:-1]) if axes else ()
        return cls(kind=manifest.kind, row=row, outputs=outputs)

    @property
    def channels(self) -> int:
        """Planes of an image."""
        return self.row[0]

    @property
    def height(self) -> int:
        """Of an image, in pixels."""
        return self.row[1]

    @property
    def width(self) -> int:
        """Of an image, in pixels."""
        return self.row[2]

    @property
    def features(self) -> int:
        """Values of a row, all taken together."""
        return prod(self.row)


def names() -> tuple[str, ...]:
    """The architectures there are."""
    return reading.names(FOLDER)


def takes(name: str) -> tuple[Kind, ...]:
    """The kinds of rows that an architecture is made for."""
    kinds: tuple[Kind, ...] = _module(name).TAKES
    return kinds


def gives(name: str) -> Gives:
    """What an architecture answers."""
    answer: Gives = _module(name).GIVES
    return answer


def own_sources(name: str) -> list[str]:
    """A line with the sha256 of each file that a project's own architecture may be made of.

    Those are its own and the private ones beside it; there is none for an architecture of ferry.
    """
    path = reading.own_modules(FOLDER).get(name)
    files = sorted({path, *path.parent.glob("_*.py")}) if path else []
    return [f"{file.name} {sha256_of_file(file)}\n" for file in files]


def settings(config: ModelConfig, *, where: str) -> Any:
    """Read the settings of an architecture into its own record.

    `where` is the path of the section in params.yaml, for the message of the ConfigError that a
    wrong setting raises. Raises UnknownNameError for an architecture that does not exist.
    """
    return read_section(_record(config.name), dict(config.settings), where)


def needed_settings(name: str) -> tuple[str, ...]:
    """The settings that an architecture has no default for."""
    return tuple(
        field.name
        for field in fields(_record(name))
        if field.default is MISSING and field.default_factory is MISSING
    )


def build(config: ModelConfig, shape: Shape, *, where: str) -> "nn.Module":
    """Make an untrained network; ConfigError also for settings that are wrong for this shape."""
    checked = settings(config, where=where)
    try:
        network: nn.Module = _module(config.name).build(checked, shape)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return network


def _record(name: str) -> type[Any]:
    """The record of an architecture's settings."""
    module = _module(name)
    record = get_type_hints(module.build).get("settings")
    if not (isinstance(record, type) and is_dataclass(record)):
        raise ConfigError(
            f"{module.__file__}: the settings of build must be a record, as in models/mlp.py of "
            f"ferry"
        )
    return record


def _module(name: str) -> ModuleType:
    return reading.load("model", __name__, FOLDER, name, ["TAKES", "GIVES", "build"])
