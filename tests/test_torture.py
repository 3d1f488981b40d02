"""The torture of `make torture`, with a few small cases of most kinds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from closure import ROOT

FOLDER = ROOT / "benchmarks" / "torture"
SLOW = {"kills", "predict_kills"}
"""Of whole programs, killed and run again; tests/serving/test_resume.py kills some as well."""
KINDS = sorted({path.stem for path in (FOLDER / "kinds").glob("[!_]*.py")} - SLOW)


def torture(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, FOLDER, *words], cwd=ROOT, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torture")


@pytest.mark.slow
def test_everything_holds(done: Path) -> None:
    ended = torture(*KINDS, "--short", "--done", done)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    _, *rows = (line.split() for line in ended.stdout.splitlines())
    assert [row[0] for row in rows] == KINDS
    for _, cases, held, *faults in rows:
        assert int(cases.replace(",", "")) > 0
        assert held == cases
        assert set(faults) == {"0"}


@pytest.mark.slow
def test_what_was_done_is_not_done_again(done: Path) -> None:
    """A line that a kill has cut is, and so is one of other sources."""
    kept = done / "mutations.jsonl"
    (line,) = filter(None, kept.read_text().split("\n"))
    other = json.loads(line)
    other["outcome"] |= {"held": 0, "lost": 7}
    kept.write_text("\n".join([json.dumps(other), '{"key": "1']))
    rows = done / "rows.jsonl"
    first, *others = filter(None, rows.read_text().split("\n"))
    rows.write_text("\n".join([first.replace('"key": "', '"key": "of others '), *others]))
    ended = torture("mutations", "rows", "--short", "--done", done, "--budget", "0")
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[1].split()[:4] == ["mutations", "7", "0", "7"]
    assert ended.stdout.splitlines()[2].split()[:4] == ["rows", "0", "0", "0"]
    assert "rows: the time is up; the same command goes on at rows.csv 0 to" in ended.stderr


def test_a_kind_that_is_not_there_is_named() -> None:
    ended = torture("no-such")
    assert ended.returncode == 2
    assert "'no-such' is none of" in ended.stderr
