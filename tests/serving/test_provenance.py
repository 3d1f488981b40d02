"""The git revision that a model names, in real repositories."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.machine.environment import git_revision

Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """Run git in a folder of its own, whatever the settings of this machine."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def run(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture
def repository(tmp_path: Path, git: Git) -> Path:
    """A checkout with one commit of everything that a project has."""
    for name in ("pipeline/stages/train.py", "serving/model.py", "metrics/x/train.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text("1\n")
    for name in ("params.yaml", "dvc.yaml", "README.md"):
        (tmp_path / name).write_text("1\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    return tmp_path


def test_a_clean_checkout_is_its_commit(repository: Path, git: Git) -> None:
    assert git_revision(repository) == git("rev-parse", "HEAD")
    assert len(git_revision(repository)) == 40


@pytest.mark.parametrize("name", ["pipeline/stages/train.py", "serving/model.py", "params.yaml"])
def test_a_changed_source_is_dirty(repository: Path, git: Git, name: str) -> None:
    (repository / name).write_text("2\n")
    assert git_revision(repository) == git("rev-parse", "HEAD") + "-dirty"
    git("add", ".")
    assert git_revision(repository).endswith("-dirty"), "a staged change is no commit"
    git("commit", "--quiet", "--message", "second")
    assert git_revision(repository) == git("rev-parse", "HEAD")


def test_a_new_or_a_removed_source_is_dirty(repository: Path) -> None:
    (repository / "pipeline" / "extra.py").write_text("")
    assert git_revision(repository).endswith("-dirty")
    (repository / "pipeline" / "extra.py").unlink()
    assert not git_revision(repository).endswith("-dirty")
    (repository / "serving" / "model.py").unlink()
    assert git_revision(repository).endswith("-dirty")


@pytest.mark.parametrize("name", ["metrics/x/train.json", "plots/x/history.csv", "README.md"])
def test_what_a_run_writes_does_not_count(repository: Path, git: Git, name: str) -> None:
    (repository / name).parent.mkdir(parents=True, exist_ok=True)
    (repository / name).write_text("3\n")
    assert git_revision(repository) == git("rev-parse", "HEAD")


def test_a_folder_without_git_is_unknown(tmp_path: Path) -> None:
    assert git_revision(tmp_path) == "unknown"


def test_a_folder_that_is_not_there_is_unknown(tmp_path: Path) -> None:
    assert git_revision(tmp_path / "nowhere") == "unknown"


def test_a_repository_without_a_commit_is_unknown(tmp_path: Path, git: Git) -> None:
    git("init", "--quiet")
    assert git_revision(tmp_path) == "unknown"


def test_a_machine_without_git_is_unknown(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    assert git_revision(repository) == "unknown"


def test_the_working_directory_is_the_default(
    repository: Path, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    assert git_revision() == git("rev-parse", "HEAD")
