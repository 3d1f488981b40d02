"""What every test is spared: the loggers that a command set up in this process; and the wheel."""

import importlib.util
import logging
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator

import chromium
import pytest
from closure import ROOT
from once import Once

# As the command `ferry` does, and before torch is imported: idle threads that spin steal the cores
# from the other process that runs tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# A shell starts what runs in the background deaf to Ctrl-C, and so would be every program that a
# test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = ("test_dvc.py", "test_own_project.py", "test_torture.py")
"""With a project that takes a minute to make, or tests of many programs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: a process without work takes the last tests of the other, half of them."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(package) for package in ("pipeline", "serving")]
    before = [(one.level, one.propagate, list(one.handlers)) for one in loggers]
    yield
    for one, (level, propagate, handlers) in zip(loggers, before, strict=True):
        one.setLevel(level)
        one.propagate = propagate
        one.handlers[:] = handlers


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests measured, each with `record_property("shown", text)`."""
    for report in terminalreporter.stats.get("passed", []):
        for name, text in report.user_properties:
            if name == "shown":
                terminalreporter.write_line(text)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    return Once(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def commit_time() -> str:
    """When the last commit was, for who builds the wheel."""
    return "1800000000"


@pytest.fixture(scope="session")
def wheel(
    tmp_path_factory: pytest.TempPathFactory, once: Once, commit_time: str
) -> zipfile.ZipFile:
    """The wheel that `python -m build` makes, with the sdist beside it."""
    for package in ("build", "hatchling"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed, and a build of its own would need a network")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    env = {**os.environ, "SOURCE_DATE_EPOCH": commit_time}

    def make() -> None:
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    once("wheel", folder, make)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="session")
def browser() -> Iterator[chromium.Browser]:
    """Chromium without a window."""
    if chromium.find() is None:
        pytest.skip(f"no browser: none of {', '.join(chromium.NAMES)} is on PATH")
    with chromium.chromium() as running:
        yield running
