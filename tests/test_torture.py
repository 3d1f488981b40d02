"""The torture of `make torture`, with a few small cases of each kind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from closure import ROOT

FOLDER = ROOT / "benchmarks" / "torture"
KINDS = sorted(path.stem for path in (FOLDER / "kinds").glob("[!_]*.py"))


def torture(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, FOLDER, *words], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_everything_holds(kind: str, tmp_path: Path) -> None:
    ended = torture(kind, "--short", "--done", tmp_path)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    name, cases, held, *faults = ended.stdout.splitlines()[1].split()
    assert (name, held) == (kind, cases)
    assert int(cases.replace(",", "")) > 0
    assert set(faults) == {"0"}


def test_what_was_done_is_not_done_again(tmp_path: Path) -> None:
    """A line that a kill has cut is, and so is a case of other sources."""
    first = torture("graphs", "--short", "--done", tmp_path)
    kept = tmp_path / "graphs.jsonl"
    lines = kept.read_text().split("\n")
    altered = [json.loads(line) for line in lines if line]
    altered[0]["outcome"] |= {"held": 0, "lost": 7}
    kept.write_text("\n".join(map(json.dumps, altered)) + '\n{"key": "1')
    again = torture("graphs", "--short", "--done", tmp_path)
    assert (first.returncode, again.returncode) == (0, 1)
    assert again.stdout.splitlines()[1].split()[3] == "7"
    kept.write_text("\n".join(map(json.dumps, [{**altered[0], "key": "of other sources"}])))
    spent = torture("graphs", "--short", "--done", tmp_path, "--budget", "0")
    assert "the same command goes on at" in spent.stderr


def test_a_kind_that_is_not_there_is_named() -> None:
    ended = torture("no-such")
    assert ended.returncode == 2
    assert "'no-such' is none of" in ended.stderr
