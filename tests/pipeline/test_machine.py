import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import ferry
from pipeline.config import layout
from pipeline.stages.machine import machine
from serving.machine.environment import describe, this_machine


def test_the_same_machine_gives_the_same_bytes_and_another_one_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "machine.json"
    found = machine(path)
    first = path.read_bytes()
    machine(path)
    assert path.read_bytes() == first
    assert found.kind == this_machine("cuda")
    assert found.onnxruntime
    assert found.torch
    monkeypatch.setenv("FERRY_PROCESSOR", "another one")
    machine(path)
    assert path.read_bytes() != first
    assert describe().processor == "another one"


def test_the_command_writes_it_beside_the_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(ferry, ["machine", "--json"])
    assert json.loads(shown.stdout) == json.loads(layout.MACHINE.read_text())
    assert "flags" in CliRunner().invoke(ferry, ["machine"]).stdout
