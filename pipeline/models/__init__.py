"""The architectures: one file each, with `Settings` and `build`; the file name is the name.

A network takes normalised float32 images [batch, C, H, W] and returns logits [batch, classes].
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import registry
from pipeline.config import ModelConfig
from pipeline.errors import ConfigError
from pipeline.sections import read_section

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Shape", "build", "names"]

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a network takes and gives."""

    height: int
    width: int
    channels: int
    classes: int


def names() -> tuple[str, ...]:
    """The architectures there are."""
    return registry.names(FOLDER)


def build(config: ModelConfig, shape: Shape, *, where: str) -> "nn.Module":
    """Make an untrained network.

    `where` is the path of the section in params.yaml, for the message of the ConfigError that a
    wrong setting raises, be it wrong by itself or for this shape. Raises UnknownNameError for an
    architecture that does not exist.
    """
    module = registry.load("model", __name__, FOLDER, config.name)
    settings = read_section(module.Settings, dict(config.settings), where)
    try:
        network: nn.Module = module.build(settings, shape)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return network
