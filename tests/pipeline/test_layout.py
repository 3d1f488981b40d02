"""Where files lie: relative to the folder of params.yaml, and no two in one place."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import layout

PATHS: dict[str, Callable[[str], Path]] = {
    "data/raw/N": layout.raw,
    "data/ready/N": layout.ready,
    "models/N/model.safetensors": layout.weights,
    "models/N/checkpoint.safetensors": layout.checkpoint,
    "models/N/model.onnx": layout.model,
    "models/N/quantized": layout.quantized,
    "models/N/quantized/model.fp16.onnx": lambda name: layout.models(name)["fp16"],
    "models/N/quantized/model.int8.onnx": lambda name: layout.models(name)["int8"],
    "metrics/N/train.json": lambda name: layout.metrics(name, "train"),
    "plots/N/train": lambda name: layout.plots(name, "train"),
    "models/N/tune": layout.tune,
    "reports/pictures/N": layout.pictures,
    "bundles/N": layout.bundle,
}


@pytest.mark.parametrize(("path", "function"), PATHS.items(), ids=list(PATHS))
def test_each_path(path: str, function: Callable[[str], Path]) -> None:
    assert function("mine").as_posix() == path.replace("N", "mine")


def test_nothing_is_absolute() -> None:
    paths = [function("mine") for function in PATHS.values()]
    for path in [*paths, layout.METRICS, layout.REPORT]:
        assert not path.is_absolute()
        assert ".." not in path.parts


def test_no_two_things_share_a_path() -> None:
    paths = [function(name) for function in PATHS.values() for name in ("one", "two")]
    assert len(set(paths)) == len(paths)


def test_fp32_is_the_model_itself() -> None:
    assert tuple(layout.models("mine")) == layout.VARIANTS == ("fp32", "fp16", "int8")
    assert layout.models("mine")["fp32"] == layout.model("mine")


def test_a_variant_that_is_skipped_has_no_place() -> None:
    assert tuple(layout.models("mine", {"int8": "too small"})) == ("fp32", "fp16")


def test_metrics_lie_below_the_folder_that_the_report_reads() -> None:
    assert layout.metrics("mine", "parity").is_relative_to(layout.METRICS)
