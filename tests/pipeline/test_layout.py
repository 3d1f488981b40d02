"""Where files lie: relative to the folder of params.yaml, and no two in one place."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import layout

PATHS: dict[str, Callable[[str], Path]] = {
    "data/raw/N": layout.raw,
    "data/ready/N": layout.ready,
    "models/N/model.safetensors": layout.weights,
    "models/N/checkpoint.safetensors": layout.checkpoint,
    "models/N/model.onnx": layout.model,
    "models/N/quantized": layout.quantized,
    "reports/details/N/train.json": lambda name: layout.details(name, "train"),
    "metrics/N/train.json": lambda name: layout.report_files(name, "train").metrics,
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
    for path in [*paths, layout.DETAILS, layout.REPORT]:
        assert not path.is_absolute()
        assert ".." not in path.parts


def test_no_two_things_share_a_path() -> None:
    paths = [function(name) for function in PATHS.values() for name in ("one", "two")]
    assert len(set(paths)) == len(paths)


def test_fp32_is_the_model_itself_whether_it_is_there_or_not() -> None:
    assert layout.VARIANTS == ("fp32", "fp16", "int8")
    assert layout.models("no-such-experiment") == {"fp32": layout.model("no-such-experiment")}


def test_a_variant_is_what_lies_in_its_place(tmp_path: Path) -> None:
    folder = tmp_path / layout.quantized("mine")
    folder.mkdir(parents=True)
    (folder / "model.int8.onnx").touch()
    (folder / "model.fp16.onnx").mkdir()  # a folder is no file
    (folder / "model.int4.onnx").touch()  # nor is this a variant
    assert layout.models("mine", tmp_path) == {
        "fp32": tmp_path / "models/mine/model.onnx",
        "int8": tmp_path / "models/mine/quantized/model.int8.onnx",
    }


def test_details_lie_below_the_folder_that_the_report_reads() -> None:
    assert layout.report_files("mine", "parity").details == layout.details("mine", "parity")
    assert layout.details("mine", "parity").is_relative_to(layout.DETAILS)
