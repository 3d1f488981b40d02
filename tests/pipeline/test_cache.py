"""Objects of DVC's cache that rot, by DVC itself: what is told, and that the advice mends it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import ferry
from pipeline.project.cache import look_at_cache

STAGES = """
stages:
  numbers: {cmd: seq 1 500 > numbers.txt, outs: [numbers.txt]}
  copied: {cmd: cp numbers.txt copied.txt, deps: [numbers.txt], outs: [copied.txt]}
  words: {cmd: yes word | head -n 900 > words.txt, outs: [words.txt]}
  folder: {cmd: mkdir folder && seq 9 > folder/a.txt && seq 99 > folder/b.txt, outs: [folder]}
"""
WRITTEN = ("numbers.txt", "copied.txt", "words.txt", "folder/a.txt", "folder/b.txt")


def run(*command: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of DVC's that has run."""
    folder = tmp_path_factory.mktemp("dvc")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("dvc", "init", "--no-scm", "--quiet")
        Path("dvc.yaml").write_text(STAGES)
        run("dvc", "repro", "--quiet")
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that a test may spoil, where it works."""
    shutil.copytree(made, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def objects() -> list[Path]:
    return sorted(Path(".dvc/cache/files/md5").glob("??/*"))


def rot(path: Path) -> None:
    """Change a bit as a disk does, which keeps the time of the last change."""
    mode, times = path.stat().st_mode, path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    path.chmod(mode)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def contents() -> list[bytes]:
    return [Path(name).read_bytes() for name in WRITTEN]


def doctor(*words: str) -> Result:
    return CliRunner().invoke(ferry, ["doctor", "--cache", *words])


def test_a_whole_cache_is_said_to_be(project: Path) -> None:
    (project / ".dvc/cache/files/md5/00").mkdir(exist_ok=True)
    (project / ".dvc/cache/files/md5/00/half.tmp").touch()  # no object
    done = doctor()
    assert (done.exit_code, done.output) == (
        0,
        ".dvc/cache: 5 objects, 0.00 GiB, all as they were written\n",
    )


def spoil_nothing_here() -> None:
    pass


def check_out_what_rotted() -> None:
    for name in WRITTEN[:3]:
        Path(name).unlink()
    shutil.rmtree("folder")
    lists = [path for path in objects() if path.suffix == ".dir"]
    for path in lists:  # of which DVC would take the bit for the end of the list
        rot(path)
    run("dvc", "checkout", "--quiet")
    for path in lists:
        rot(path)


def rot_one_copy() -> None:
    rot(Path("copied.txt"))


@pytest.mark.parametrize("here", [spoil_nothing_here, check_out_what_rotted, rot_one_copy])
@pytest.mark.usefixtures("project")
def test_the_advised_commands_mend_the_cache_and_what_is_here(here: Callable[[], None]) -> None:
    wanted, names = contents(), {str(path) for path in objects()}
    for path in objects():
        rot(path)
    here()
    report = look_at_cache()
    assert {one.path for one in report.rotted} == names
    run("bash", "-ec", "\n".join(report.fix))
    assert look_at_cache().rotted == ()
    assert contents() == wanted
    run("dvc", "checkout", "--quiet")
    assert contents() == wanted
    assert {str(path) for path in objects()} == names


@pytest.mark.usefixtures("project")
def test_what_is_linked_to_an_object_has_rotted_with_it() -> None:
    wanted = contents()
    run("dvc", "config", "cache.type", "symlink")
    run("dvc", "checkout", "--relink", "--quiet")
    (path,) = (path for path in objects() if path.samefile("words.txt"))
    rot(path)
    assert contents() != wanted
    report = look_at_cache()
    (one,) = report.rotted
    assert [(use.path, use.stage, use.here) for use in one.uses] == [
        ("words.txt", "words", "rotted")
    ]
    assert report.fix == (f"rm -f {path}", "rm -f words.txt", "dvc repro words")
    run("bash", "-ec", "\n".join(report.fix))
    assert contents() == wanted
    assert look_at_cache().rotted == ()


def test_the_report_says_whose_object_it_is_and_what_mends_it(project: Path) -> None:
    (rotted,) = (path for path in objects() if path.read_bytes().startswith(b"word"))
    rot(rotted)
    unused = project / ".dvc/cache/files/md5/00" / ("0" * 30)
    unused.parent.mkdir(exist_ok=True)
    unused.write_text("of an earlier run")
    done = doctor()
    assert done.exit_code == 1
    assert f"{rotted}: its md5 is " in done.output
    assert "  words.txt of words, whole here\n" in done.output
    assert "  of no output in dvc.lock\n" in done.output
    assert f"  install -m 444 words.txt {rotted}\n" in done.output
    found = json.loads(doctor("--json").output)
    told = [one["path"] for one in found["rotted"]]
    assert told == [str(unused.relative_to(project)), str(rotted)]
    assert found["objects"] == 6


def test_the_cache_may_lie_elsewhere_and_the_project_above(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(".dvc/cache", project.parent / "shared cache")
    run("dvc", "cache", "dir", "--local", str(project.parent / "shared cache"))
    run("dvc", "remote", "add", "--default", "store", str(project.parent / "store"))
    (path,) = (project.parent / "shared cache").glob("files/md5/??/*.dir")
    rot(path)
    shutil.rmtree("folder")
    (project / "below").mkdir()
    monkeypatch.chdir("below")
    report = look_at_cache()
    assert report.objects == 5
    assert report.fix == (
        "cd ..",
        f"rm -f '../shared cache/files/md5/{path.parent.name}/{path.name}'",
        "dvc pull folder || dvc repro folder",
    )


def test_outside_of_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = doctor()
    assert done.exit_code == 1
    assert "Error: .dvc is not there, here or above" in done.output
