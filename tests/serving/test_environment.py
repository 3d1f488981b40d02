import dataclasses
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serving.files import dump_json, read_record
from serving.machine import environment
from serving.machine.environment import (
    Environment,
    cpuinfo,
    describe,
    flags_of,
    processor_of,
    this_machine,
)
from serving.runtime.cores import allowed_cores

TWO = """processor\t: 0
model name\t: Tiny CPU @ 2.00GHz
flags\t\t: fpu avx2 fma avx512_vnni something

processor\t: 1
model name\t: Another
"""


def test_it_names_this_machine_and_its_software():
    found = describe()
    assert found.architecture == platform.machine()
    assert found.python == platform.python_version()
    assert found.numpy == np.__version__
    assert found.cores == os.cpu_count()
    assert 1 <= found.allowed_cores <= found.cores
    assert found.memory_bytes > 2**20
    assert len(found.load_average) == 3
    assert found.processor


def test_the_runtime_is_named_with_the_wheel_it_came_from():
    import onnxruntime

    found = describe()
    assert found.onnxruntime == onnxruntime.__version__
    assert found.onnxruntime_package in {"onnxruntime", "onnxruntime-gpu"}


def test_it_survives_json():
    found = describe()
    assert read_record(Environment, json.loads(dump_json(found)), "environment") == found


@pytest.mark.parametrize(("text", "expected"), [("1048576\n", 2**20), ("max\n", None)])
def test_a_container_memory_limit_counts(tmp_path, monkeypatch, text, expected):
    whole = describe().memory_bytes
    limit = tmp_path / "memory.max"
    limit.write_text(text)
    monkeypatch.setattr(environment, "MEMORY_LIMIT", limit)
    assert describe().memory_bytes == (expected or whole)


def test_the_graphics_card_comes_from_the_tool_of_its_driver(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100, 80GB HBM3, 580.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = describe()
    assert (found.gpu, found.gpu_driver) == ("NVIDIA H100, 80GB HBM3", "580.1")


@pytest.mark.parametrize("script", ["exit 9", "true"])
def test_a_driver_that_does_not_answer_is_no_card(tmp_path, monkeypatch, script):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert (describe().gpu, describe().gpu_driver) == (None, None)


def test_peak_memory_is_that_of_the_process_itself_not_of_its_parent():
    ballast = bytearray(200 * 2**20)
    ballast[:: 2**12] = b"x" * len(ballast[:: 2**12])
    program = (
        "from serving.machine.environment import peak_memory_bytes; print(peak_memory_bytes())"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True
    )
    assert environment.peak_memory_bytes() > len(ballast)
    assert 2**20 < int(done.stdout) < 150 * 2**20


def test_where_there_is_no_proc_peak_memory_is_still_told(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "STATUS", tmp_path / "missing")
    assert environment.peak_memory_bytes() > 10 * 2**20


def test_the_governor_is_told_where_the_system_shows_it(tmp_path, monkeypatch):
    shown = tmp_path / "scaling_governor"
    shown.write_text("performance\n")
    monkeypatch.setattr(environment, "GOVERNOR", shown)
    assert describe().governor == "performance"
    monkeypatch.setattr(environment, "GOVERNOR", tmp_path / "hidden")
    assert describe().governor is None


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
