"""A model as C99 for microcontrollers: `emit` writes it, `parts` adds it to a bundle."""

from pipeline.targets.c99.boards import KnownBoard, boards
from pipeline.targets.c99.emitting import CModel, emit
from pipeline.targets.c99.selftest import parts

__all__ = ["CModel", "KnownBoard", "boards", "emit", "parts"]
