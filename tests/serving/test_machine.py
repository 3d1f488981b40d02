import dataclasses
import os
import sys
from pathlib import Path

import pytest

from serving.machine.environment import describe
from serving.machine.processor import cpuinfo, flags_of, processor_of, this_machine
from serving.runtime.cores import allowed_cores

TWO = """processor\t: 0
model name\t: Tiny CPU @ 2.00GHz
flags\t\t: fpu avx2 fma avx512_vnni something

processor\t: 1
model name\t: Another
"""


def test_only_the_first_processor_is_read(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(TWO)
    info = cpuinfo(tmp_path / "cpuinfo")
    assert processor_of(info) == "Tiny CPU @ 2.00GHz"
    assert flags_of(info) == ("avx2", "fma", "avx512_vnni")


def test_a_processor_of_arm_has_features(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd bf16 unknown\n")
    info = cpuinfo(tmp_path / "cpuinfo")
    assert flags_of(info) == ("asimd", "bf16")
    assert processor_of(info)


def test_no_such_file(tmp_path: Path) -> None:
    assert cpuinfo(tmp_path / "none") == {}
    assert flags_of({}) == ()
    assert processor_of({})


def test_it_says_what_the_environment_says() -> None:
    machine, environment = this_machine("cpu"), describe()
    assert machine.processor == environment.processor
    assert machine.flags == environment.flags
    assert machine.architecture == environment.architecture
    assert machine.allowed_cores == environment.allowed_cores == allowed_cores()
    assert machine.gpu is None


@pytest.fixture
def gpu_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `nvidia-smi` that names two cards and leaves a trace."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\necho Card A\necho Card B\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "asked"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for the tool")
def test_the_cards_are_asked_for_only_where_they_matter(gpu_tool: Path) -> None:
    cpu = this_machine("cpu")
    assert not gpu_tool.exists()
    cuda = this_machine("cuda")
    assert cuda == dataclasses.replace(cpu, gpu="Card A, Card B")
    assert gpu_tool.exists()
