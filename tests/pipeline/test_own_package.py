"""A project's own package: its data sets and models beside those of ferry, and its version."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from project import REPOSITORY

from pipeline import datasets, models
from pipeline.config import params, reading
from pipeline.config.experiment import ModelConfig
from pipeline.errors import ConfigError
from pipeline.training.tuning.search import with_settings
from serving.errors import UnknownNameError

SETTINGS = (REPOSITORY / "params.yaml").read_text()
DATASET = """
import dataclasses
from pipeline import datasets
DATASET = dataclasses.replace(datasets.get("moons"), title="Suns")
"""
MODEL = """
from dataclasses import dataclass
from torch import nn
from pipeline.config.experiment import Count, StrictSettings
from pipeline.models import Shape
TAKES, GIVES = ("table",), "logits"

@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(StrictSettings):
    units: Count

def build(settings: Settings, shape: Shape) -> nn.Module:
    return nn.Linear(shape.features, shape.outputs)
"""


@pytest.fixture
def package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Path:
    """The package of a project, which no other test has imported from."""
    name = f"own_{abs(hash(request.node.name))}"
    for folder in ("datasets", "models"):
        (tmp_path / name / folder).mkdir(parents=True)
        (tmp_path / name / folder / "__init__.py").write_text("")
    (tmp_path / "params.yaml").write_text(f"package: {name}\n{SETTINGS}")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv(reading.OWN_PACKAGE, "")
    monkeypatch.chdir(tmp_path)
    return tmp_path / name


def test_own_data_sets_and_models_stand_beside_those_of_ferry(package: Path) -> None:
    (package / "datasets" / "suns.py").write_text(DATASET)
    (package / "models" / "line.py").write_text(MODEL)
    params.load()
    assert {"suns", "moons"} <= set(datasets.names())
    assert {"line", "mlp"} <= set(models.names())
    assert datasets.get("suns").title == "Suns"
    assert models.takes("line") == ("table",)
    config = ModelConfig(name="line", settings={"units": 0})
    with pytest.raises(ConfigError, match=r"^here\.units must be"):
        models.settings(config, where="here")
    with pytest.raises(UnknownNameError, match="did you mean 'suns'"):
        datasets.get("sun")
    params.load(REPOSITORY / "params.yaml")
    assert "suns" not in datasets.names()


def test_a_process_that_is_started_finds_them_as_well(package: Path) -> None:
    (package / "models" / "line.py").write_text(MODEL)
    params.load()
    code = "from pipeline import models; print(models.takes('line'))"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)
    assert done.stdout == "('table',)\n", done.stderr


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "datasets/moons.py",
            DATASET,
            "moons.py: ferry has moons in its datasets; rename the file",
        ),
        ("datasets/suns.py", "DATASET = \n", "suns.py cannot be imported: SyntaxError: "),
        ("datasets/suns.py", "import no_such", "suns.py cannot be imported: ModuleNotFoundError: "),
        ("datasets/suns.py", "raise SystemExit(1)", "suns.py cannot be imported: SystemExit: 1"),
        ("datasets/suns.py", "", "suns.py has no DATASET, which each file of datasets must have"),
        ("datasets/suns.py", "DATASET = 1", "suns.py: DATASET must be a Dataset of pipeline"),
    ],
)
def test_an_own_file_that_is_wrong_is_named_in_one_line(
    package: Path, file: str, text: str, message: str
) -> None:
    (package / file).write_text(text)
    reading.use_package(package)
    with pytest.raises(ConfigError) as caught:
        datasets.get("suns")
    assert message in str(caught.value)
    assert str(package) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", ["settings", "settings: dict"])
def test_the_settings_of_an_own_model_are_a_record(package: Path, settings: str) -> None:
    (package / "models" / "line.py").write_text(MODEL.replace("settings: Settings", settings))
    params.load()
    with pytest.raises(ConfigError, match=r"line\.py: the settings of build must be a record"):
        models.settings(ModelConfig(name="line", settings={}), where="here")


def test_settings_below_those_of_an_own_model_can_be_changed(package: Path) -> None:
    nested = MODEL.replace("    units: Count", "    inner: Inner").replace(
        "@dataclass",
        "@dataclass(frozen=True, slots=True, kw_only=True)\nclass Inner(StrictSettings):\n"
        "    units: Count\n\n@dataclass",
        1,
    )
    (package / "models" / "line.py").write_text(nested)
    experiment = params.load().experiment("moons-mlp")
    line = ModelConfig(name="line", settings={"inner": {"units": 2}})
    changed, _ = with_settings(replace(experiment, model=line), ["model.inner.units=3"])
    assert changed.model.settings == {"inner": {"units": 3}}


def test_a_package_that_is_not_there_and_one_that_is_hidden(package: Path) -> None:
    path = Path("params.yaml")
    path.write_text(f"package: nowhere\n{SETTINGS}")
    with pytest.raises(ConfigError, match=r"^package: nowhere is no folder beside params\.yaml$"):
        params.load()
    path.write_text(f"package: json\n{SETTINGS}")
    (package.parent / "json" / "datasets").mkdir(parents=True)
    (package.parent / "json" / "datasets" / "suns.py").write_text(DATASET)
    params.load()
    with pytest.raises(ConfigError, match=r"suns\.py cannot be imported: ModuleNotFoundError"):
        datasets.get("suns")


# The version whose stages a project has


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("99.0.0", r"^params\.yaml is of ferry 99\.0\.0, this is \S+: pip install --upgrade onnx-"),
        ("0.0.9", r"this is (\S+): write `ferry: \1` there and its stages run again, or pip inst"),
        ("0.2", r"^ferry must be .*, got 0\.2"),
    ],
)
def test_a_project_of_another_version_is_refused(package: Path, version: str, message: str) -> None:
    Path("params.yaml").write_text(f"ferry: {version}\n{SETTINGS}")
    with pytest.raises(ConfigError, match=message):
        params.load()
