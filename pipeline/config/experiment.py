"""The records that `pipeline.config.params` reads params.yaml into: ranges, and no defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from pipeline.errors import ConfigError
from serving.bundles import Target
from serving.errors import UnknownNameError

LARGEST = 2**32 - 1
"""Where the seeds of numpy and scikit-learn end; no count comes near."""

Count = Annotated[int, Field(ge=1, le=LARGEST)]
NaturalNumber = Annotated[int, Field(ge=0, le=LARGEST)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeNumber = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]
Loss = Literal["cross_entropy", "binary_cross_entropy", "mean_squared_error"]
Reason = Annotated[str, Field(min_length=1)]
Variant = Literal["fp16", "int8"]
Need = Literal["vnni"]


class StrictSettings:
    """A section of params.yaml: a record without unknown keys and values of another type."""

    __slots__ = ()
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)


def _rows_or_share(value: float) -> float:
    if value > 1 and not value.is_integer():
        raise PydanticCustomError("rows", "a whole number of rows, or a share below 1")
    return value


RowCount = Annotated[
    float, Field(ge=0, le=LARGEST, allow_inf_nan=False), AfterValidator(_rows_or_share)
]
"""So many rows, or below 1 this share of those that there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig(StrictSettings):
    """How the rows of a data set are split."""

    validation_rows: RowCount
    """Rows taken from the training part, stratified by class; 0 for a data set that is complete."""
    seed: NaturalNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnSplits(DatasetConfig):
    """The same of a data set whose test rows may have to be drawn as well."""

    test_rows: RowCount
    """Rows taken from all of them where no test part is given, in the same way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnDatasetConfig(DrawnSplits):
    """A data set of the user's own: what its section says whatever the reader, which adds more."""

    reader: str
    """A file of `pipeline/datasets/readers`."""
    path: str
    """The folder or the file, relative to the folder of params.yaml."""
    test: str | None = None
    """A folder or a file of the same form with the test rows; without it they are drawn."""
    citation: str = ""
    licence: str = ""

    @property
    def test_path(self) -> str | None:
        """Where the test rows lie; None where they are drawn."""
        return self.test


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSection:
    """The section of a user's own data set, filled with the defaults, which its reader checks."""

    reader: str
    settings: Mapping[str, object]
    """All of the section."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """An architecture of `pipeline/models` and its settings, which its own record checks."""

    name: str
    settings: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig(StrictSettings):
    """Random changes of each training image; zeros switch them off."""

    translate: NaturalNumber
    """Largest shift along each axis, in pixels."""
    rotate: Annotated[float, Field(ge=0, le=180, allow_inf_nan=False)]
    """Largest turn either way, in degrees."""
    scale: Fraction
    """Largest relative change of size either way."""
    flip: bool
    """Whether every second image, by chance, is mirrored left to right."""
    cutout: NaturalNumber
    """Side of the square that is blanked, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig(StrictSettings):
    """Another experiment of the same data, whose logits a training follows beside the labels."""

    experiment: str
    temperature: PositiveNumber
    """What the logits of both are divided by before they are compared as probabilities."""
    weight: Annotated[float, Field(gt=0, le=1)]
    """The teacher's part of the loss; the rest is that of the labels."""
    views: Count
    """Random changes of each training row that it answers; the epochs take them in turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(StrictSettings):
    """The training loop, except for its number of epochs."""

    loss: Loss
    batch_size: Count
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop", "muon", "lbfgs"]
    lr: PositiveNumber
    """Peak learning rate of the schedule."""
    momentum: Fraction
    """Of sgd and muon (Nesterov) and rmsprop; decay of the first moment of adam and adamw."""
    weight_decay: NonNegativeNumber
    schedule: Literal["onecycle", "cosine", "linear", "constant"]
    label_smoothing: Fraction
    clip: NonNegativeNumber
    """Largest norm of the gradient of all weights together; 0 does not clip."""
    augment: AugmentConfig
    sides: tuple[Count, ...]
    """Pixels of images in the first of equal parts of the epochs; the last has them as they are."""
    ema: Fraction
    """Decay per step of the moving average of the weights that is kept; 0 keeps the weights."""
    early_stop: NaturalNumber
    """Epochs without a better one on validation after which training ends; 0 never does."""
    init_from: str | None
    """The experiment whose trained weights are the first ones, where names and shapes agree."""
    teacher: TeacherConfig | None
    compile: bool
    """Whether torch.compile translates the network first."""
    seed: NaturalNumber
    device: Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig(StrictSettings):
    """A look inside of the trained network."""

    strengths: tuple[PositiveNumber, ...]
    """Largest changes of a pixel that attacks may make, on pixels from 0 to 1."""
    rows: Count
    """Rows of the test set that are attacked."""
    steps: Count
    """Of projected gradient descent, the stronger attack."""
    against: str | None
    """Data set whose test images a reconstruction must tell from its own; null for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig(StrictSettings):
    """The ONNX file."""

    opset: Annotated[int, Field(ge=18, le=23)]
    """Below 18 torch's exporter ignores the request without a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MinSpeedup(StrictSettings):
    """The least ratio of fp32's time to a variant's, at each batch size."""

    fp16: PositiveNumber
    """A size and no speed on CPUs: how much slower than fp32 it may be."""
    int8: PositiveNumber

    def of(self, variant: str) -> float:
        """That of `variant`, "fp16" or "int8"."""
        return {"fp16": self.fp16, "int8": self.int8}[variant]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeConfig(StrictSettings):
    """Which variants are made, what they may cost, and how the best recipe is searched."""

    goal: Literal["speed", "size"]
    """By which the best is chosen of the recipes inside both budgets."""
    accuracy_loss: NonNegativeNumber
    """Most percentage points of accuracy that a variant may lose, on rows that are no test's."""
    error_increase: NonNegativeNumber
    """The same where no class is predicted: most per cent by which the mean error may grow."""
    min_speedup: MinSpeedup
    batch_sizes: Counts
    """At each of which a variant must be fast enough."""
    seconds: PositiveNumber
    """Spent on each paired measurement, after warm-up."""
    calibration_rows: Count
    recipes: tuple[Reason, ...]
    """Names of the recipes to try, and no others; [] for the usual ones."""
    needs: tuple[Need, ...]
    """What every processor has that int8 will run on: [vnni] allows weights of all 8 bits, which
    overflow without it; [] asks for a file that answers alike everywhere."""
    qat_epochs: NaturalNumber
    """Epochs of training with quantization where nothing else is accurate enough; 0 for none."""
    seed: NaturalNumber
    skip: Mapping[Variant, Reason]
    """Why a variant is not made, where one is not."""

    @property
    def reasons(self) -> dict[str, str]:
        """The same, as the metrics keep it."""
        return {str(variant): reason for variant, reason in self.skip.items()}


Level = Literal["none", "basic", "extended", "all"]
LIMITS_OF_CLASSES = ("flips", "accuracy_loss")
"""Those of a gate that need a model which predicts a class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig(StrictSettings):
    """How far one variant may be from the trained weights, over the whole test set."""

    max_abs_diff: PositiveNumber | None
    """Largest absolute difference of any logit, or of any pixel of a reconstruction, over the test
    set and over hostile rows; null where their scale is no measure, as for int8."""
    max_scaled_diff: PositiveNumber | None
    """Largest difference of any value, between batches too, in parts of what its column varies by
    from row to row; null where it is not looked at. Two models of unknown scale are held to it."""
    max_probability_diff: PositiveNumber | None
    """The same of any probability; null where there are none, or they are not looked at."""
    min_snr_db: PositiveNumber | None
    """Least signal-to-noise ratio of any output, in decibels: 20 more is a tenth of the noise."""
    min_kernel_snr_db: PositiveNumber | None
    """The same between ONNX Runtime's optimized kernels and the graph as it is written, without
    which int8 may overflow unseen."""
    flips: NaturalNumber | None
    """Most rows whose predicted class may really change, near-ties not counted; null where no
    class is predicted."""
    accuracy_loss: NonNegativeNumber | None
    """Most percentage points of accuracy that may be lost; null where no class is predicted."""
    error_increase: NonNegativeNumber | None
    """Most per cent by which the mean squared error of targets may grow; null where it is not
    looked at, as where there are none."""
    batch_diff: NonNegativeNumber | None
    """Largest absolute difference of a value of one row between batches. Kernels sum in another
    order there, which half precision shows, and int8 where a value lies between two steps; null
    where their scale is no measure."""

    @classmethod
    def only(cls, **limits: float | None) -> "GateConfig":
        """A gate that looks at these quantities and at no others."""
        unknown = dict.fromkeys(one.name for one in fields(cls))
        return cls(**{**unknown, **limits})  # type: ignore[arg-type]  # None where none is given


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityConfig(StrictSettings):
    """What is compared, and the gates, one per variant."""

    batch_sizes: Counts
    levels: Annotated[tuple[Level, ...], Field(min_length=1)]
    """Of ONNX Runtime's graph optimization; "all" is what ships and must be among them."""
    exporters: Annotated[tuple[Literal["dynamo", "torchscript"], ...], Field(min_length=1)]
    """Which of torch's exporters are compared; what "dynamo" makes ships and must be among them."""
    sample_rows: Count
    """Rows of the cells that do not answer the whole test set."""
    reference_rows: Count
    """Rows that `onnx.reference`, which is slow, answers."""
    seed: NaturalNumber
    """Of the sample."""
    fp32: GateConfig
    fp16: GateConfig
    int8: GateConfig

    def gate(self, variant: str) -> GateConfig:
        """The gate of `variant`, one of "fp32", "fp16" and "int8"."""
        gates = {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8}
        return gates[variant]


Item = TypeVar("Item")
Baseline = Literal["eager", "channels_last", "compile", "pyfunc"]


def _once_each(values: tuple[Item, ...]) -> tuple[Item, ...]:
    if len(set(values)) < len(values):
        raise PydanticCustomError("twice", "a list that has nothing twice")
    return values


def _with_eager(baselines: tuple[Baseline, ...]) -> tuple[Baseline, ...]:
    if "eager" not in baselines:
        raise PydanticCustomError("no_eager", "a list with eager, over which all speedups are")
    return baselines


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkConfig(StrictSettings):
    """What is timed, against which baselines, and for how long."""

    batch_sizes: Annotated[Counts, AfterValidator(_once_each)]
    threads: Annotated[tuple[NaturalNumber, ...], Field(min_length=1)]
    """Within one operator, each count in turn; 0 for all cores that the process may use. A count
    that is there already is left out, one above those cores is a row with that reason."""
    seconds: PositiveNumber
    """For each thing at each batch size and thread count, all its turns together, after warm-up."""
    rounds: Count
    """Turns that each thing gets; speedups are compared turn by turn."""
    baselines: Annotated[
        tuple[Baseline, ...], AfterValidator(_once_each), AfterValidator(_with_eager)
    ]
    """What the variants are compared with: PyTorch eager, which speedups are over, PyTorch with
    channels_last or with torch.compile, and MLflow's pyfunc of the exported model."""
    growth_calls: NaturalNumber
    """Calls of mixed batch sizes after which memory is looked at, of each variant with the first of
    the thread counts; 0 for none."""
    cold_starts: NaturalNumber
    """Times that each program is started until its first answer; 0 for never."""
    seed: NaturalNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetBudget(StrictSettings):
    """The room that there is on a kind of device, in KiB; null for any."""

    size_kib: PositiveNumber | None
    """Of the model's file; of C of the flash that it takes."""
    ram_kib: PositiveNumber | None
    """What C takes; of the others nobody knows it beforehand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleConfig(StrictSettings):
    """Which of the variants that passed is shipped."""

    goal: Literal["latency", "throughput", "size"]
    min_gain: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    """How many times better than fp32 another variant must be to be shipped in its place."""
    golden_rows: Count
    budgets: Mapping[Target, TargetBudget]
    """What each target has room for; none of a target that is not named."""


Choice = bool | int | float | str | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval(StrictSettings):
    """Numbers to search between, both ends included; whole ones if both ends are."""

    low: int | float
    high: int | float
    log: bool
    """Whether each power of ten is as likely as the next."""


SearchSpace = Annotated[tuple[Choice, ...], Field(min_length=1)] | Interval
"""The values to choose from, or an interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionDefaults(StrictSettings):
    """What an experiment with targets in place of classes takes before the other defaults."""

    train: TrainConfig
    parity: ParityConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults(StrictSettings):
    """What an experiment takes where it says nothing else: one section per stage."""

    epochs: Count
    regression: RegressionDefaults
    preprocess: DrawnSplits
    train: TrainConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    quantize: QuantizeConfig
    parity: ParityConfig
    benchmark: BenchmarkConfig
    bundle: BundleConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment(StrictSettings):
    """A data set, a model and their settings: one section of params.yaml, defaults included."""

    name: str
    dataset: str
    epochs: Count
    model: ModelConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    quantize: QuantizeConfig
    parity: ParityConfig
    benchmark: BenchmarkConfig
    bundle: BundleConfig
    search: Mapping[str, SearchSpace] = field(default_factory=dict)
    """What `ferry tune` may change, by the key's path below the experiment; may be left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """The whole of params.yaml."""

    mirrors: tuple[str, ...]
    short: tuple[str, ...]
    """The experiments that `dvc repro short` runs, and no others."""
    datasets: Mapping[str, DatasetConfig | OwnSection]
    experiments: Mapping[str, Experiment]
    broken: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with each experiment that cannot be read."""

    def experiment(self, name: str) -> Experiment:
        """The experiment of that name.

        Raises ConfigError for one that cannot be read, and UnknownNameError with the nearest name
        if there is none.
        """
        if name in self.broken:
            raise ConfigError(self.broken[name])
        if name not in self.experiments:
            raise UnknownNameError("experiment", name, [*self.experiments, *self.broken])
        return self.experiments[name]

    def dataset(self, name: str) -> DatasetConfig | OwnSection:
        """The settings of a data set; UnknownNameError with the nearest one if there are none."""
        if name not in self.datasets:
            raise UnknownNameError("data set", name, self.datasets)
        return self.datasets[name]
