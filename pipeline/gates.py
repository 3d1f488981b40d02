"""What `ferry parity` compares, and how far a variant may be off: the `parity` of params.yaml."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from pipeline.ranges import (
    STRICT,
    Count,
    Counts,
    NaturalNumber,
    NonNegativeNumber,
    PositiveNumber,
)

__all__ = ["GateConfig", "ParityConfig"]

Level = Literal["none", "basic", "extended", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """How far one variant may be from the trained weights, over the whole test set."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    max_abs_diff: PositiveNumber | None
    """Largest absolute difference of any logit, or of any pixel of a reconstruction, over the test
    set and over hostile rows; null where their scale is no measure, as for int8."""
    max_probability_diff: PositiveNumber | None
    """The same of any probability; null where there are none, or they are not looked at."""
    min_snr_db: PositiveNumber | None
    """Least signal-to-noise ratio of any output, in decibels: 20 more is a tenth of the noise."""
    flips: NaturalNumber | None
    """Most rows whose predicted class may really change, near-ties not counted; null where no
    class is predicted."""
    accuracy_loss: NonNegativeNumber | None
    """Most percentage points of accuracy that may be lost; null where no class is predicted."""
    batch_diff: NonNegativeNumber
    """Largest absolute difference of a value of one row between batches. Kernels sum in another
    order there, which half precision shows, and int8 where a value lies between two steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityConfig:
    """What is compared, and the gates, one per variant."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    batch_sizes: Counts
    levels: Annotated[tuple[Level, ...], Field(min_length=1)]
    """Of ONNX Runtime's graph optimization; "all" is what ships and must be among them."""
    exporters: Annotated[tuple[Literal["dynamo", "torchscript"], ...], Field(min_length=1)]
    """Which of torch's exporters are compared; what "dynamo" makes ships and must be among them."""
    sample_rows: Count
    """Rows of the cells that are not asked the whole test set."""
    opinion_rows: Count
    """Rows that `onnx.reference`, which is slow, is asked."""
    seed: NaturalNumber
    """Of the sample."""
    fp32: GateConfig
    fp16: GateConfig
    int8: GateConfig

    def gate(self, variant: str) -> GateConfig:
        """The gate of `variant`, one of "fp32", "fp16" and "int8"."""
        gates = {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8}
        return gates[variant]
