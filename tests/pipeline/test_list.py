"""`ferry list`: what there is, and how far it is."""

import json
import shutil
from pathlib import Path

import pytest
import sample_metrics
from click.testing import CliRunner
from project import REPOSITORY

from pipeline import models
from pipeline.cli import ferry
from pipeline.config import layout, params
from pipeline.quantization.recipes import BASIC


@pytest.fixture
def here(tmp_path: Path, ready: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with prepared digits, and one experiment that has run."""
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    sample_metrics.write_all(tmp_path, "mnist-cnn")
    (tmp_path / "data").symlink_to(ready / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(*arguments: str) -> list[dict[str, object]]:
    found = json.loads(CliRunner().invoke(ferry, ["list", *arguments, "--json"]).stdout)
    return list(found)


def test_an_experiment_says_what_has_run_of_it_and_what_ships(here: Path) -> None:
    found = {one["experiment"]: one for one in listed("experiments")}
    assert found["mnist-cnn"] == {
        "experiment": "mnist-cnn",
        "dataset": "mnist",
        "model": "cnn",
        "epochs": 12,
        "has_run": ["train", "parity", "benchmark", "bundle"],
        "parity": "failed",
        "ships": "int8",
    }
    assert found["digits-mlp"]["has_run"] == []
    layout.weights("mnist-cnn").write_bytes(b"others")
    assert all(one["has_run"] == [] for one in listed("experiments"))


def test_a_data_set_says_how_far_it_is(here: Path) -> None:
    layout.raw("mnist").mkdir()
    found = {one["dataset"]: one for one in listed("datasets")}
    layout.raw("mnist").rmdir()
    assert found["digits"] == {
        "dataset": "digits",
        "state": "ready",
        "kind": "image",
        "rows": 1797,
        "classes": 10,
    }
    states = [found[name]["state"] for name in ("mnist", "xor", "fashion_mnist")]
    assert states == ["pulled", "not pulled", "not in params.yaml"]


def test_a_model_says_what_it_takes_and_gives(here: Path) -> None:
    found = {one["model"]: one for one in listed("models")}
    assert found["mlp"] == {"model": "mlp", "takes": ["image", "table"], "gives": "logits"}
    assert set(found) == set(models.names())


def test_a_recipe_says_what_it_does(here: Path) -> None:
    found = listed("recipes")
    assert [one["recipe"] for one in found] == list(BASIC)
    assert found[-1]["variant"] == "fp16"


def test_without_a_kind_all_are_listed(here: Path) -> None:
    text = CliRunner().invoke(ferry, ["list"]).stdout
    header, *rows = text.split("\n\n")[0].splitlines()
    assert header.split() == [
        "experiment",
        "dataset",
        "model",
        "epochs",
        "has",
        "run",
        "parity",
        "ships",
    ]
    assert len(rows) == len(params.load().experiments)
    assert "\nmodels: autoencoder, cnn, " in text
    assert "\nrecipes: static-u8s8-reduced, " in text
    found = json.loads(CliRunner().invoke(ferry, ["list", "--json"]).stdout)
    assert list(found) == ["experiments", "datasets", "models", "recipes"]
