"""The ranges that numbers of params.yaml may have, as types that the records of it are made of."""

from typing import Annotated

from pydantic import ConfigDict, Field

__all__ = [
    "LARGEST",
    "STRICT",
    "Count",
    "Counts",
    "Fraction",
    "NaturalNumber",
    "NonNegativeNumber",
    "PositiveNumber",
]

STRICT = ConfigDict(extra="forbid", strict=True)
LARGEST = 2**32 - 1
"""Where the seeds of numpy and scikit-learn end; no count comes near."""

Count = Annotated[int, Field(ge=1, le=LARGEST)]
NaturalNumber = Annotated[int, Field(ge=0, le=LARGEST)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeNumber = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]
