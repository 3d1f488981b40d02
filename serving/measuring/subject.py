"""What a measuring process measures: something that answers batches of rows.

`serving.measuring.onnx_subject` is a model in ONNX Runtime; the pipeline has others, to compare.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from serving.session import ProviderProof
from serving.settings import SessionSettings
from serving.timing import Call

__all__ = ["Share", "Started", "Subject"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A subject that is ready to answer."""

    ready_ms: float
    """Time to read, check and optimise the model: of ONNX Runtime the median of three sessions."""
    sha256: str | None
    """Of the model's file; None where there is no single one."""
    file_bytes: int | None
    proof: ProviderProof | None
    """None for what does not run in ONNX Runtime."""
    fixed_batch: int | None
    """The one batch size that the model takes, or None where any will do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Where the time goes, by ONNX Runtime's own profile of some calls."""

    time_us: Mapping[str, float]
    """Microseconds in nodes, per provider."""
    share: float
    """The part, 0 to 1, of that time that was spent on the provider that was asked for."""


class Subject(Protocol):
    """Something whose speed is measured."""

    def start(self, settings: SessionSettings) -> Started:
        """Make ready, anew each time it is called."""

    def call(self, batch_size: int) -> Call:
        """What runs one batch of so many rows, on inputs made beforehand; InputError if none can.

        Each call of this method gives one that may run beside the others, in a thread of its own.
        """

    def answer(self, rows: npt.NDArray[Any]) -> object:
        """Answer rows of the first input."""

    def rows(self, count: int) -> npt.NDArray[Any]:
        """So many rows of the first input, real ones or made up: what scenarios ask about."""

    def share(self, batch_size: int) -> Share | None:
        """Where the time of a batch goes; None where nothing tells."""

    def gpu_bytes(self) -> int | None:
        """Memory of a GPU that this process holds; None without one."""
