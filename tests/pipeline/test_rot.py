"""One bit that rotted in a file is told by each stage that reads it, before it does anything."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from project import Project

from pipeline.stages.benchmark import benchmark
from pipeline.stages.evaluate import evaluate
from pipeline.stages.export import export
from pipeline.stages.parity import parity
from pipeline.stages.quantize import quantize
from serving.errors import IntegrityError

Stage = Callable[[Project, Path], object]


def evaluated(made: Project, out: Path) -> None:
    files = made.files("evaluate")
    evaluate(made.weights, made.data, made.data, files, out, experiment=made.experiment)


def exported_again(made: Project, out: Path) -> None:
    files, model = made.files("export"), out / "model.onnx"
    experiment = made.experiment
    export(made.weights, made.details("train"), made.data, model, files, experiment=experiment)


def quantized(made: Project, out: Path) -> None:
    model, files = made.models["fp32"], made.files("quantize")
    quantize(model, made.data, out, files, out, experiment=made.experiment)


def proven(made: Project, _: Path) -> None:
    files = made.files("parity")
    parity(made.weights, made.models, made.data, files, experiment=made.experiment)


def timed(made: Project, out: Path) -> None:
    files = made.files("benchmark")
    benchmark(made.weights, made.models, made.data, files, out, experiment=made.experiment)


READ: Mapping[Stage, tuple[str, ...]] = {
    evaluated: ("model.safetensors",),
    exported_again: ("model.safetensors",),
    quantized: ("model.onnx",),
    proven: ("model.safetensors", "model.onnx", "quantized/model.int8.onnx"),
    timed: ("model.safetensors", "model.onnx", "quantized/model.int8.onnx"),
}
MAKER = {"model.safetensors": "train", "model.onnx": "export", "model.int8.onnx": "quantize"}


@pytest.mark.parametrize(
    ("stage", "name"),
    [(stage, name) for stage, names in READ.items() for name in (*names, "manifest.json")],
    ids=lambda given: given if isinstance(given, str) else given.__name__,
)
def test_a_stage_refuses_what_has_rotted(
    exported: Project, tmp_path: Path, stage: Stage, name: str
) -> None:
    made = replace(exported, root=Path(shutil.copytree(exported.root, tmp_path / "project")))
    folder = made.data if name == "manifest.json" else made.weights.parent
    path, out = folder / name, tmp_path / "out"
    before = {one: one.stat().st_mtime_ns for one in made.root.rglob("*")}
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(IntegrityError) as caught:
        stage(made, out)
    of = made.experiment
    maker = f"{MAKER[path.name]}@{of.name}" if path.name in MAKER else f"preprocess@{of.dataset}"
    told = str(caught.value)
    assert told.startswith(f"{path} has sha256 ")
    assert f"…, {maker} recorded " in told
    assert f"`rm {path} {path}.sha256 && dvc checkout {maker}` restores it" in told
    assert "`ferry doctor --cache` says whether" in told
    assert not out.exists(), "nothing was made"
    after = {one: one.stat().st_mtime_ns for one in made.root.rglob("*")}
    assert {one for one in after if after[one] != before.get(one)} <= {path}
