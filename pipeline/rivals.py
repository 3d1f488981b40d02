"""What an experiment's variants are measured beside, and for how long."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from pipeline.ranges import STRICT, Count, Counts, NaturalNumber, PositiveNumber

__all__ = ["BenchmarkConfig", "Rival"]

Item = TypeVar("Item")
Rival = Literal["eager", "channels_last", "compile", "pyfunc"]


def _once_each(values: tuple[Item, ...]) -> tuple[Item, ...]:
    if len(set(values)) < len(values):
        raise PydanticCustomError("twice", "a list that has nothing twice")
    return values


def _with_eager(rivals: tuple[Rival, ...]) -> tuple[Rival, ...]:
    if "eager" not in rivals:
        raise PydanticCustomError("no_eager", "a list with eager, over which all speedups are")
    return rivals


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkConfig:
    """What is timed, beside what, and for how long."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    batch_sizes: Annotated[Counts, AfterValidator(_once_each)]
    threads: Annotated[tuple[NaturalNumber, ...], Field(min_length=1)]
    """Within one operator, each count in turn; 0 for all cores that the process may use. A count
    that is there already is left out, one above those cores is a row with that reason."""
    seconds: PositiveNumber
    """For each thing at each batch size and thread count, all its turns together, after warm-up."""
    rounds: Count
    """Turns that each thing gets; speedups are compared turn by turn."""
    beside: Annotated[tuple[Rival, ...], AfterValidator(_once_each), AfterValidator(_with_eager)]
    """What the variants are measured beside: PyTorch eager, which speedups are over, with
    channels_last, or with torch.compile, and MLflow's pyfunc of the exported model."""
    growth_calls: NaturalNumber
    """Calls of mixed batch sizes after which memory is looked at, of each variant with the first of
    the thread counts; 0 for none."""
    cold_starts: NaturalNumber
    """Times that each program is started until its first answer; 0 for never."""
    seed: NaturalNumber
