"""The records that params.yaml is read into, with the range of every key.

They hold no defaults, for those live in params.yaml alone; `pipeline.params` reads the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from pipeline.errors import UnknownNameError

__all__ = [
    "STRICT",
    "AugmentConfig",
    "BenchmarkConfig",
    "BundleConfig",
    "Count",
    "Counts",
    "DatasetConfig",
    "Experiment",
    "ExportConfig",
    "Fraction",
    "GateConfig",
    "ModelConfig",
    "NaturalNumber",
    "NonNegativeNumber",
    "Params",
    "ParityConfig",
    "PositiveNumber",
    "QuantizeConfig",
    "TrainConfig",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """How the rows of a data set are split."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    validation_rows: Count
    """Rows taken from the training part, stratified by class."""
    seed: NaturalNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """An architecture of `pipeline/models` and its settings, which its own `Settings` checks."""

    name: str
    settings: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """Random changes of each training image; zeros switch them off."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    translate: NaturalNumber
    """Largest shift along each axis, in pixels."""
    rotate: Annotated[float, Field(ge=0, le=180, allow_inf_nan=False)]
    """Largest turn either way, in degrees."""
    scale: Fraction
    """Largest relative change of size either way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The training loop, except for its number of epochs."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    batch_size: Count
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"]
    lr: PositiveNumber
    """Peak learning rate of the schedule."""
    momentum: Fraction
    """Of sgd (Nesterov) and rmsprop; the decay of the first moment of adam and adamw."""
    weight_decay: NonNegativeNumber
    schedule: Literal["onecycle", "cosine"]
    label_smoothing: Fraction
    augment: AugmentConfig
    ema: Fraction
    """Decay per step of the moving average of the weights that is kept; 0 keeps the weights."""
    seed: NaturalNumber
    device: Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """The ONNX file."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    opset: Annotated[int, Field(ge=18, le=23)]
    """Below 18 torch's exporter ignores the request without a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeConfig:
    """How activations are calibrated for int8."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    calibration_rows: Count
    method: Literal["minmax", "entropy", "percentile"]
    seed: NaturalNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """How far one variant may be from the trained weights, over the whole test set."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    max_abs_diff: PositiveNumber
    """Largest absolute difference of any logit."""
    flips: NaturalNumber
    """Most rows whose predicted class may change."""
    accuracy_loss: NonNegativeNumber
    """Most percentage points of accuracy that may be lost."""
    batch_diff: NonNegativeNumber
    """Largest absolute difference of a logit of one row between batch sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityConfig:
    """The gates, one per variant."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    batch_sizes: Counts
    fp32: GateConfig
    fp16: GateConfig
    int8: GateConfig

    def gate(self, variant: str) -> GateConfig:
        """The gate of `variant`, one of "fp32", "fp16" and "int8"."""
        gates = {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8}
        return gates[variant]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkConfig:
    """What is timed, and for how long."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    batch_sizes: Counts
    seconds: PositiveNumber
    """Time spent on each batch size, after warm-up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleConfig:
    """Which of the variants that passed is shipped."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    goal: Literal["latency", "throughput", "size"]
    min_gain: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    """How many times better than fp32 another variant must be to be shipped in its place."""
    golden_rows: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A data set, a model and their settings: one section of params.yaml."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    dataset: str
    epochs: Count
    model: ModelConfig
    train: TrainConfig
    export: ExportConfig
    quantize: QuantizeConfig
    parity: ParityConfig
    benchmark: BenchmarkConfig
    bundle: BundleConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """The whole of params.yaml."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    mirrors: tuple[str, ...]
    datasets: Mapping[str, DatasetConfig]
    experiments: Mapping[str, Experiment]

    def experiment(self, name: str) -> Experiment:
        """The experiment of that name; UnknownNameError with the nearest one if there is none."""
        if name not in self.experiments:
            raise UnknownNameError("experiment", name, self.experiments)
        return self.experiments[name]

    def dataset(self, name: str) -> DatasetConfig:
        """The settings of a data set; UnknownNameError with the nearest one if there are none."""
        if name not in self.datasets:
            raise UnknownNameError("data set", name, self.datasets)
        return self.datasets[name]
