"""Where every file of the pipeline lies: the one place that knows the folders.

Paths are relative to the folder of params.yaml; `D` is a data set, `E` an experiment.
"""

from pathlib import Path

__all__ = [
    "METRICS",
    "MODEL_FILES",
    "REPORT",
    "VARIANTS",
    "bundle",
    "checkpoint",
    "metrics",
    "model",
    "models",
    "plots",
    "raw",
    "ready",
    "weights",
]

MODEL_FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
VARIANTS = tuple(MODEL_FILES)
METRICS = Path("metrics")
REPORT = Path("reports/index.html")


def raw(dataset: str) -> Path:
    """The official files of a data set: `data/raw/D`."""
    return Path("data/raw") / dataset


def ready(dataset: str) -> Path:
    """The arrays of a data set: `data/ready/D`."""
    return Path("data/ready") / dataset


def weights(experiment: str) -> Path:
    """The trained weights: `models/E/model.safetensors`."""
    return Path("models") / experiment / "model.safetensors"


def checkpoint(experiment: str) -> Path:
    """Where an interrupted training goes on: `models/E/checkpoint.safetensors`."""
    return Path("models") / experiment / "checkpoint.safetensors"


def model(experiment: str, variant: str = "fp32") -> Path:
    """An ONNX file: `models/E/model.onnx`, or a variant of it."""
    return Path("models") / experiment / MODEL_FILES[variant]


def models(experiment: str) -> dict[str, Path]:
    """The ONNX file of each variant."""
    return {variant: model(experiment, variant) for variant in VARIANTS}


def metrics(experiment: str, stage: str) -> Path:
    """What a stage measured: `metrics/E/STAGE.json`."""
    return METRICS / experiment / f"{stage}.json"


def plots(experiment: str, stage: str) -> Path:
    """The folder of a stage's rows that `dvc plots` draws: `plots/E/STAGE`."""
    return Path("plots") / experiment / stage


def bundle(experiment: str) -> Path:
    """The folder that is deployed: `bundles/E`."""
    return Path("bundles") / experiment
