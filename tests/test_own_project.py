"""A project of a user's own, made by the built wheel, with a data set and a model of its own."""

import contextlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

NAME = "suns-line"
DATASET = '''"""Points beside a line."""
from pathlib import Path
import numpy as np
from pipeline.datasets import Dataset, RawRows, with_test_rows
from pipeline.records.ready import Split

def read(_raw: Path) -> RawRows:
    points = np.random.default_rng(1).normal(size=(400, 3)).astype(np.float32)
    return with_test_rows(Split(points, (points[:, 0] > 0).astype(np.int64)), 100, 1)

DATASET = Dataset(title="Suns", kind="table", homepage="", citation="", licence="",
    labels=("down", "up"), files=(), read=read)
'''
MODEL = '''"""A line."""
from dataclasses import dataclass
from torch import nn
from my_project.models._layers import Layer
from pipeline.config.experiment import StrictSettings
from pipeline.models import Shape
TAKES, GIVES = ("table",), "logits"

@dataclass(frozen=True, slots=True, kw_only=True)
class LineSettings(StrictSettings):
    bias: bool

def build(settings: LineSettings, shape: Shape) -> nn.Module:
    return Layer(shape.features, shape.outputs, bias=settings.bias)
'''
EXPERIMENT = {
    "dataset": "suns",
    "epochs": 30,
    "model": {"name": "line", "bias": True},
    "train": {"lr": 0.1, "batch_size": 32},
    "evaluate": {"against": "suns"},
    "export": {},
    "quantize": {"calibration_rows": 1, "skip": {"fp16": "too small", "int8": "too small"}},
    "parity": {"batch_sizes": [1, 7], "levels": ["all"], "exporters": ["dynamo"]},
    "benchmark": {"batch_sizes": [1], "threads": [1], "seconds": 0.02, "rounds": 2}
    | {"baselines": ["eager"], "growth_calls": 0, "cold_starts": 0},
    "bundle": {"golden_rows": 4},
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs, of which Python imports first."""
    folder = tmp_path_factory.mktemp("installed")
    wheel.extractall(folder)
    return folder


def run(installed: Path, folder: Path, *command: str) -> str:
    """Run a command of this environment with the wheel's ferry, and return what it prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(installed), "FERRY_TRACK": "false"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def project(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with an experiment of its own, run up to its bundle."""
    home = tmp_path_factory.mktemp("a home")
    made = json.loads(run(installed, home, "ferry", "init", "my project", "--json"))
    folder = home / "my project"
    assert made["package"] == "my_project"
    package = folder / "my_project"
    (package / "datasets" / "suns.py").write_text(DATASET)
    (package / "models" / "line.py").write_text(MODEL)
    (package / "models" / "_layers.py").write_text("from torch.nn import Linear as Layer\n")
    settings = yaml.safe_load((folder / "params.yaml").read_text())
    settings["datasets"]["suns"] = {"validation_rows": 60}
    settings["experiments"][NAME] = EXPERIMENT
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    run(installed, folder, "dvc", "repro", f"bundle@{NAME}")
    return folder


def test_a_data_set_and_a_model_of_ones_own_run_to_a_bundle(installed: Path, project: Path) -> None:
    where = "import pipeline; print(pipeline.__file__)"
    ferry = run(installed, project, sys.executable, "-c", where).strip()
    assert ferry == str(installed / "pipeline" / "__init__.py")
    run(installed, project, "ferry", "verify", f"bundles/{NAME}")
    below = project / "my_project" / "models"
    (row,) = json.loads(run(installed, below, "ferry", "results", "--json"))
    assert (row["experiment"], row["shipped"]) == (NAME, True)
    assert row["accuracy"] > 0.8


def test_another_model_leaves_a_training_up_to_date_and_a_part_of_its_own_does_not(
    installed: Path, project: Path
) -> None:
    def stale() -> set[str]:
        with contextlib.chdir(project), Repo() as repo:
            found = repo.status()
        return {stage for stage, why in found.items() if why != ["always changed"]}

    made = {stage for stage in stale() if stage.endswith(("@suns", f"@{NAME}"))}
    assert made <= {f"evaluate@{NAME}"}, "what is done is not done again"
    models = project / "my_project" / "models"
    (models / "other.py").write_text(MODEL)
    run(installed, project, "dvc", "repro", "--single-item", f"check@{NAME}")
    assert f"train@{NAME}" not in stale()
    (models / "_layers.py").write_text("from torch.nn import Linear as Layer  # as it is\n")
    run(installed, project, "dvc", "repro", "--single-item", f"check@{NAME}")
    assert {f"{stage}@{NAME}" for stage in ("train", "export", "parity")} <= stale()
