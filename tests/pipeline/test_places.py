"""The same decisions on 64-bit Arm, which is emulated, row by row; and when there is no Arm."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from project import REPOSITORY, Project
from short_models import bundle_of_text, bundles_of_digits

from pipeline.config.experiment import Params
from serving.files import write_bytes

BENCHMARKS = REPOSITORY / "benchmarks"
ROWS = 200
# Runs the script and the arguments of each line as Python does.
SCRIPTS = """
import json, runpy, sys
for line in sys.stdin:
    sys.argv = json.loads(line)
    sys.path.insert(0, sys.argv[0].rpartition("/")[0])
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
    print("\\nended", flush=True)
"""


@pytest.fixture(scope="session")
def places() -> ModuleType:
    """The script benchmarks/places.py."""
    sys.path.append(str(BENCHMARKS))
    return importlib.import_module("places")


@pytest.fixture
def one_process(places: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runners in one emulated process: its start takes longer than most of their commands."""
    try:
        command = [*places.arm64.command(), "-c", SCRIPTS]
    except places.arm64.ArmError as error:
        pytest.skip(str(error))
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=places.arm64.environment(), **pipes) as process:

        def runner(_: Sequence[str], folder: Path, *arguments: str) -> str:
            script = [str((folder / "runner.py").resolve()), *arguments, "--threads", "1"]
            process.stdin.write(f"{json.dumps(script)}\n")
            process.stdin.flush()
            said = ""
            for line in process.stdout:
                if line == "ended\n":
                    return said
                said += line
            raise AssertionError(f"{script} failed: {said}")

        monkeypatch.setattr(places, "runner", runner)
        yield


@pytest.mark.slow
def test_64_bit_arm_decides_alike(
    places: ModuleType,
    one_process: None,
    exported: Project,
    params: Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """The runner passes its self-test there, answers the rows, and its bench runs."""
    monkeypatch.chdir(tmp_path)

    def alike(folder: Path) -> None:
        (report,) = places.on_arm(places.case(folder.name, folder, ROWS))
        told = f"{report.equal} alike, {report.near_ties} near-ties, {report.flips} flips"
        apart = f"{report.diff_of} differ by {report.largest_diff:.1e} at most"
        record_property("shown", f"{folder.name} on {report.machine}: {told}, {apart}")
        assert report.flips == 0
        assert report.equal + report.near_ties == report.rows == ROWS
        assert report.largest_diff < (1e-5 if report.variant == "fp32" else 1e-2)
        assert report.p50_ms is None

    for folder in bundles_of_digits(tmp_path, exported):
        alike(folder)
    mirror = os.environ.get("FERRY_MIRROR", "")
    if not (Path(mirror) / "rt-polarity").is_dir():
        pytest.skip("the images alone: FERRY_MIRROR names no mirror with rt-polarity")
    alike(bundle_of_text(tmp_path, params, mirror))


def arm64(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "arm64.py"), "-c", "print(1)"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def programs(folder: Path, **scripts: str) -> str:
    """A PATH with these shell scripts alone."""
    for name, script in scripts.items():
        path = folder / "bin" / name.replace("_", "-")
        write_bytes(path, f"#!/bin/sh\n{script}\n".encode())
        path.chmod(0o755)
    return str(folder / "bin")


@pytest.mark.parametrize(
    ("scripts", "message"),
    [
        ({}, "no qemu-aarch64-static here; on Debian `apt-get install qemu-user-static`"),
        ({"qemu_aarch64": ""}, "no apt-get here: the emulated Arm is made of Debian's packages"),
        (
            {"qemu_aarch64_static": "", "apt_get": "echo W: slow >&2; echo E: gone >&2; exit 100"},
            "apt-get ended with 100: E: gone",
        ),
        ({"qemu_aarch64_static": "", "apt_get": "exit 3"}, "apt-get ended with 3: without a word"),
    ],
)
def test_what_an_emulated_arm_lacks_is_one_line_and_nothing_is_left(
    tmp_path: Path, scripts: dict[str, str], message: str
) -> None:
    done = arm64(tmp_path, PATH=programs(tmp_path, **scripts))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"arm64: {message}\n")
    assert not [path for path in tmp_path.rglob("*") if path.is_dir() and "arm64" in path.name]


def test_what_a_killed_process_left_of_the_arm_root_goes(tmp_path: Path) -> None:
    path = programs(tmp_path, qemu_aarch64_static="", apt_get="exit 3")
    assert arm64(tmp_path, PATH=path).returncode == 1
    (lock,) = (tmp_path / "cache/ferry").iterdir()
    half = lock.with_name(f".{lock.name.removesuffix('.lock')}.x1y2") / "root"
    half.mkdir(parents=True)
    assert arm64(tmp_path, PATH=path).returncode == 1
    assert not half.parent.exists()


def test_what_cannot_be_had_is_told_and_the_other_places_are_measured(
    places: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusing(_: object) -> object:
        raise places.PlaceError("no browser here")

    def failing(_: object) -> object:
        raise places.FailedError("it flips")

    known = {"web": refusing, "c": failing, "x86": lambda one: [one, one]}
    monkeypatch.setattr(places, "PLACES", known)
    case = places.Case(subject="tiny", bundle=Named("bundles/tiny"), rows=None)
    failed: list[str] = []
    assert list(places.measured(case, [], failed)) == [case, case]
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "bundles/tiny: web: skipped: no browser here",
        "bundles/tiny: c: FAILED: it flips",
    ]
    assert failed == ["bundles/tiny: c: it flips"]
    assert list(places.measured(case, ["web"], failed)) == []


class Named:
    def __init__(self, folder: str) -> None:
        self.folder = folder


@pytest.mark.parametrize("rows", [np.zeros((3, 2), np.uint8), np.array(["a b", "é", ""], object)])
def test_the_runner_is_given_rows_as_a_user_gives_them(places: ModuleType, rows: Any) -> None:
    def run(command: str, asked: str, _: str, told: str) -> str:
        path = Path(asked)
        lines = path.read_text("utf-8").split("\n") if path.suffix == ".txt" else np.load(path)
        np.savez(told, count=np.array(len(lines)))
        return command

    assert places.runner_answers(run, rows)["count"] == len(rows) + (rows.dtype == object)


def test_a_runner_that_fails_is_no_measurement(places: ModuleType, tmp_path: Path) -> None:
    write_bytes(tmp_path / "runner.py", b"import sys; sys.exit('runner: altered')")
    with pytest.raises(
        places.FailedError, match=r"runner.py selftest ended with 1: runner: altered"
    ):
        places.runner([sys.executable], tmp_path, "selftest")
