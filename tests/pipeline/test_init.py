"""A project that `ferry init` makes: what is in it, where it may begin, and that it is whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from project import REPOSITORY

from pipeline.cli import ferry
from pipeline.config import fitting, layout, params, reading
from pipeline.project.init import init, package_name, stages, templates
from pipeline.records.ready import open_manifest
from serving.errors import EngineError, OutputError, UnknownNameError

OWN = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
STAGES = yaml.safe_load(stages((REPOSITORY / "dvc.yaml").read_text(), "mine"))["stages"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, and no package of an earlier project."""
    monkeypatch.setenv(reading.OWN_PACKAGE, "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    return done.stdout.strip()


def fake_git(place: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (place / "bin").mkdir()
    (place / "bin" / "git").write_text(f"#!/bin/sh\n{script}\n")
    (place / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}")


# What is in it


def test_a_project_is_whole_and_its_experiments_fit(place: Path) -> None:
    made = init(Path("my project"))
    folder = place / "my project"
    assert (made.folder, made.package) == (folder, "my_project")
    assert {*made.files} <= {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    }
    assert git(folder, "rev-parse", "--show-toplevel") == str(folder)
    assert (folder / ".dvc/config").read_text() == "[core]\n    analytics = false\n"
    assert git(folder, "check-ignore", "data/a", "mlflow.db") == "data/a\nmlflow.db"
    artifacts = yaml.safe_load((folder / "dvc.yaml").read_text())["artifacts"]
    assert artifacts["digits-mlp"]["path"] == "bundles/digits-mlp"
    text = (folder / "README.md").read_text()
    assert text.startswith("# my project\n")
    assert "`my_project/models/NAME.py`" in text
    assert len(text.splitlines()) <= 25


@pytest.mark.parametrize("template", templates())
def test_the_experiment_of_a_template_fits_its_rows(
    place: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setattr("pipeline.project.init._initialise", lambda _folder: None)
    monkeypatch.chdir(init(Path("new"), template).folder)
    found = params.load()
    assert not found.broken
    (experiment,) = found.experiments.values()
    for stage in ("pull", "preprocess"):
        done = CliRunner().invoke(ferry, [stage, experiment.dataset])
        assert done.exit_code == 0, done.stderr
    rows = open_manifest(layout.ready(experiment.dataset))
    fitting.check(experiment, rows)


@pytest.mark.parametrize("name", list(STAGES))
def test_a_stage_depends_on_the_version_and_the_package_instead_of_sources(name: str) -> None:
    own, theirs = (stage.get("do", stage) for stage in (OWN[name], STAGES[name]))
    assert {**theirs, "deps": [], "params": []} == {**own, "deps": [], "params": []}
    assert theirs["params"] == ["ferry", *own.get("params", [])]
    deps = own.get("deps", [])
    data = [path for path in deps if not path.startswith(("pipeline", "serving"))]
    own_code = {"preprocess": ["mine/datasets"], "check": ["mine/datasets", "mine/models"]}
    expected = [*data, *own_code.get(name, [])]
    if "pipeline/models/${item.model.name}.py" in deps:
        expected = [*dict.fromkeys([*expected, "models/${key}/before"])]
    assert theirs.get("deps", []) == expected


def test_all_stages_are_there_but_the_one_that_gathers_many_experiments() -> None:
    assert [*STAGES, "short"] == list(OWN)


@pytest.mark.parametrize(
    ("folder", "package"),
    [
        ("my-project", "my_project"),
        ("Wine 2.0", "wine_2_0"),
        ("3d-things", "project_3d_things"),
        ("class", "project_class"),
        ("torch", "project_torch"),
        ("data", "project_data"),
        ("...", "project"),
    ],
)
def test_a_package_has_a_name_that_is_free(folder: str, package: str) -> None:
    assert package_name(folder) == package


# Where it may begin


def test_a_part_of_a_repository_has_no_repository_of_its_own(place: Path) -> None:
    git(place, "init", "--quiet")
    init(Path("part"))
    assert not (place / "part" / ".git").exists()
    assert (place / "part" / ".dvc" / "config").is_file()
    CliRunner().invoke(ferry, ["init", "."])
    assert not (place / "params.yaml").exists()


def test_an_empty_repository_is_a_place_to_begin(place: Path) -> None:
    git(place, "init", "--quiet")
    result = CliRunner().invoke(ferry, ["init", "."])
    assert result.exit_code == 0, result.stderr
    assert "cd " not in result.stderr
    assert (place / ".dvc").is_dir()


def test_a_folder_that_holds_something_is_refused(place: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (place / name).touch()
    with pytest.raises(OutputError, match=r"^\. is not empty: it holds a, b, c and 1 more; "):
        init(Path())
    with pytest.raises(OutputError, match=r"^a is a file; "):
        init(Path("a"))
    assert sorted(path.name for path in place.iterdir()) == ["a", "b", "c", "d"]


def test_an_unknown_template_is_answered_with_the_nearest(place: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        init(Path("new"), "digit")
    assert "digits" in templates()
    assert list(place.iterdir()) == []


# All or nothing


@pytest.mark.parametrize("there", [False, True], ids=["new folder", "empty folder"])
def test_nothing_is_left_where_git_fails(
    place: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    fake_git(place, monkeypatch, "echo no space left >&2; exit 1")
    folder = place / "deep" / "new"
    if there:
        folder.mkdir(parents=True)
    with pytest.raises(EngineError, match=r"^`git rev-parse --show-prefix` failed in .*: no space"):
        init(folder)
    assert folder.exists() == there == (place / "deep").exists()
    assert not there or list(folder.iterdir()) == []


def test_nothing_is_left_after_ctrl_c(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_git(place, monkeypatch, "kill -INT $PPID; sleep 1")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "pipeline.cli", "init", "deep/new"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "")
    assert not (place / "deep").exists()
