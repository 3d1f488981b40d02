"""A bundle where nothing of ferry is: its runner as a program and as a module."""

import os
import subprocess
import sys
from pathlib import Path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the runner of a folder, with nothing but the installed packages on the path."""
    command = [sys.executable, "-I", "-B", str(folder / "runner.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, timeout=60)


def python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with that folder as the only place of our own on the path."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=60,
    )


def refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 1, done
    assert done.stderr.startswith("runner: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert done.stdout == ""
