"""Lineages outside of DVC: what single commands made, what is not there, what is not ferry's."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from project import REPOSITORY, Project
from toy_registry import make_bundle, make_data

from pipeline.cli import ferry
from pipeline.config import layout
from pipeline.project.dvclock import LOCK
from pipeline.project.lineage import Lineage, lineage
from serving.errors import InputError, IntegrityError, MissingInputError
from serving.files import sha256_of_file

FERRYS = (REPOSITORY / layout.PARAMS).read_text()


@pytest.fixture
def made(exported: Project, tmp_path: Path) -> Path:
    """A folder with what was trained, exported and quantized, without params.yaml and dvc.lock."""
    root = tmp_path / "project"
    shutil.copytree(exported.root, root)
    return root


def states(found: Lineage) -> dict[str, str]:
    return {link.name: link.state for link in found.links}


def alter(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_without_dvc_the_chain_is_proven_by_the_reports(made: Path, exported: Project) -> None:
    name = exported.experiment.name
    found = lineage(str(made / layout.variant(name, "int8")), made)
    assert found.experiment == name
    assert states(found) == {
        "data": "proven",
        "params": "not here",
        "git": "claimed",  # the folder is no repository
        "weights": "proven",
        "onnx fp32": "proven",
        "onnx int8": "proven",
        "dvc.lock": "not here",
    }
    found.require()


def test_what_a_training_learned_from_is_a_link(made: Path, exported: Project) -> None:
    name = exported.experiment.name
    weights = made / layout.weights(name)
    taught_by = {
        "experiment": "large",
        "weights_sha256": sha256_of_file(weights),
        "validation_accuracy": 0.9,
        "views": 2,
        "augment": {},
        "data_sha256": "0" * 64,
    }
    alter(made / layout.details(name, "train"), teacher=taught_by)
    assert states(lineage(name, made))["teacher"] == "not here"
    teacher = made / layout.weights("large")
    teacher.parent.mkdir()
    shutil.copy(weights, teacher)
    assert states(lineage(name, made))["teacher"] == "proven"
    teacher.write_bytes(b"another")
    with pytest.raises(IntegrityError, match=r"breaks at teacher: models/large/"):
        lineage(name, made).require()


def test_what_was_cleaned_away_is_not_here_and_no_contradiction(
    made: Path, exported: Project
) -> None:
    name = exported.experiment.name
    shutil.rmtree(made / "data")
    (made / layout.weights(name)).unlink()
    found = states(lineage(name, made))
    assert (found["data"], found["weights"], found["onnx fp32"]) == (
        "not here",
        "not here",
        "proven",
    )


def test_a_commit_that_the_repository_lacks_is_told(made: Path, exported: Project) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=made, check=True)
    found = lineage(exported.experiment.name, made)
    assert [link.name for link in found.broken] == ["git"]
    with pytest.raises(IntegrityError, match=r"breaks at git: commit \w+… is not in this repos"):
        found.require()


def test_a_revision_is_no_option_of_git(made: Path, exported: Project) -> None:
    name = exported.experiment.name
    alter(made / layout.details(name, "train"), git_revision="--all")
    assert states(lineage(name, made))["git"] == "unknown"


def test_settings_that_changed_since_are_told_by_name(made: Path, exported: Project) -> None:
    name, text = exported.experiment.name, (REPOSITORY / "params.yaml").read_text()
    (made / layout.PARAMS).write_text(text)
    (link,) = lineage(name, made).broken
    # The experiment of the tests has two epochs.
    assert (link.name, link.detail) == (
        "params",
        "params.yaml: epochs is 40, the weights were trained with 2",
    )


def test_another_training_leaves_a_copy_of_the_old_model_without_its_chain(
    made: Path, exported: Project, tmp_path: Path
) -> None:
    name = exported.experiment.name
    copy = tmp_path / "old.onnx"
    shutil.copy(made / layout.model(name), copy)
    alter(made / layout.details(name, "train"), weights_sha256="0" * 64)
    alter(made / layout.details(name, "export"), weights_sha256="0" * 64, sha256="0" * 64)
    (link,) = lineage(str(copy), made).broken
    assert (link.name, link.detail) == (
        "onnx",
        f"{name} has other weights now, trained since or before",
    )
    found = lineage(str(copy), tmp_path / "elsewhere")
    assert {*states(found).values()} == {"claimed"}
    assert found.experiment is None


def test_a_model_of_another_program_is_told_as_that(tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes((REPOSITORY / "serving/runtime/probe.onnx").read_bytes())
    (link,) = lineage(str(path), tmp_path).links
    assert (link.state, link.detail) == ("unknown", "ferry did not export it: opset 13, IR 8")


def test_weights_that_no_training_wrote_are_told(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"weights")
    (link,) = lineage(str(path), made).broken
    assert link.detail == "no training of this project wrote this file"


def test_a_large_data_set_is_hashed_where_that_is_asked_for(
    made: Path, exported: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.project.chain.LARGE_BYTES", 1000)
    name = exported.experiment.name
    path = made / layout.ready(exported.experiment.dataset) / "test_inputs.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    quick, deep = lineage(name, made).links[0], lineage(name, made, deep=True).links[0]
    assert quick.state == "proven"
    assert quick.detail.endswith("of the manifest; --deep reads the arrays")
    assert deep.state == "broken"


def test_reports_that_lack_a_key_prove_nothing(made: Path, exported: Project) -> None:
    name = exported.experiment.name
    alter(made / layout.details(name, "quantize"), variants=[])
    (made / layout.details(name, "parity")).write_text('{"variants": {"fp32": {"rows": 1}}}')
    found = lineage(str(made / layout.variant(name, "int8")), made)
    assert states(found)["onnx int8"] == "unknown"
    assert "parity FAILED" in [link.detail for link in found.links if link.name == "onnx fp32"]


def test_a_bundle_of_a_model_that_no_report_is_about_is_told(tmp_path: Path) -> None:
    make_data(tmp_path)
    make_bundle(tmp_path, "first")
    alter(tmp_path / layout.details("first", "train"), git_revision="0" * 40)
    (link,) = (one for one in lineage("first", tmp_path).links if one.name == "bundle")
    assert (link.state, link.detail) == ("claimed", "ships file, which no report is about")


def test_a_lock_that_was_not_merged_is_refused(made: Path, exported: Project) -> None:
    (made / LOCK).write_text("stages:\n<<<<<<< HEAD\n")
    with pytest.raises(IntegrityError, match=r"dvc\.lock has the marks of a merge in it; `dvc rep"):
        lineage(exported.experiment.name, made)


def test_what_has_no_lineage_is_refused(made: Path) -> None:
    with pytest.raises(MissingInputError, match="nothing is not there"):
        lineage("nothing", made)
    with pytest.raises(MissingInputError, match="digits-cnn is not there"):
        lineage("../details/digits-cnn", made)
    with pytest.raises(InputError, match="no output of `ferry predict`"):
        lineage(str(made / layout.details("digits-cnn", "train")), made)


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        ("", "digits", "params.yaml is empty"),
        ("experiments:", "digits", "mirrors is missing"),
        (None, "digits", "digits is not there; it should be a bundle or an ONNX file"),
        (FERRYS, "digits-mpl", "no experiment named 'digits-mpl'; did you mean 'digits-mlp'?"),
        (FERRYS, "digits-mlp", "digits-mlp has not run; `dvc repro bundle@digits-mlp` runs it"),
    ],
)
def test_a_name_of_nothing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str | None, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if settings is not None:
        (tmp_path / layout.PARAMS).write_text(settings)
    done = CliRunner().invoke(ferry, ["lineage", name])
    assert message in done.stderr


def test_the_command_fails_where_the_chain_breaks(
    made: Path, exported: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    (made / layout.PARAMS).write_text((REPOSITORY / "params.yaml").read_text())
    done = CliRunner().invoke(ferry, ["lineage", exported.experiment.name])
    assert done.exit_code == 1
    assert "BROKEN" in done.stdout
    assert done.stderr.startswith("Error: the lineage of digits-cnn breaks at params: ")
