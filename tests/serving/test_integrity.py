"""What of its folder a runner refuses before it imports anything, and what it imports then."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from on_device import python, refused, run
from tiny_classifier import forge

from serving.bundles.bundle import FileInfo, read_manifest
from serving.bundles.integrity import RunnerError, check
from serving.files import sha256_of_bytes

TRACE = "open({!r}, 'w').close()\n"
# What the runner imports, or what that imports: of the standard library, and from elsewhere.
PLANTED = (
    *("__future__", "_json", "argparse", "base64", "collections", "contextlib", "csv", "encodings"),
    *("functools", "hashlib", "io", "json", "linecache", "math", "numpy", "onnxruntime", "os"),
    *("pathlib", "re", "resource", "sitecustomize", "struct", "sys", "time", "typing", "zipfile"),
)


def planted(folder: Path, names: tuple[str, ...]) -> Path:
    """Put modules beside the runner that leave a trace when they are imported; the trace."""
    trace = folder.parent / "trace"
    for name in names:
        (folder / f"{name}.py").write_text(TRACE.format(str(trace)))
    return trace


def program(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The self-test as a user runs it: with the folder of the script on the path."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [sys.executable, "-B", *options, "runner.py", "selftest"]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment | variables
    )


@pytest.mark.parametrize("options", [(), ("-S",), ("-P",), ("-X", "frozen_modules=off")])
def test_a_module_beside_the_runner_is_refused_and_not_imported(
    device: Path, options: tuple[str, ...]
) -> None:
    trace = planted(device, PLANTED)
    refused(program(device, *options), "__future__.py was added: manifest.json does not list it")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["json", "numpy"])
def test_nor_is_one_that_the_manifest_lists(device: Path, name: str) -> None:
    trace = planted(device, (name,))
    content = (device / f"{name}.py").read_bytes()
    info = FileInfo(size=len(content), sha256=sha256_of_bytes(content))
    forge(device, files={**read_manifest(device).files, f"{name}.py": info})
    for variables in ({}, {"PYTHONPATH": "."}, {"PYTHONPATH": str(device)}):
        done = program(device, **variables)
        assert done.stdout.startswith("selftest: passed"), done
    done = python(device, "import runner; print(runner.selftest().rows)")
    assert (done.stdout, done.stderr) == ("6\n", "")
    assert not trace.exists()


def test_nor_where_the_folder_has_another_name(device: Path) -> None:
    trace = planted(device, ("json",))
    link = device.parent / "current"
    link.symlink_to(device)
    done = program(link, PYTHONPATH=f"{link}{os.pathsep}{device}{os.pathsep}.")
    refused(done, "json.py was added")
    assert not trace.exists()


def test_an_import_is_refused_too_and_leaves_the_path_alone(device: Path) -> None:
    (device / "notes.txt").touch()
    code = "import runner"
    done = python(device, code)
    assert done.returncode == 1
    assert done.stderr.endswith(
        "RunnerError: notes.txt was added: manifest.json does not list it\n"
    )
    (device / "notes.txt").unlink()
    done = python(
        device, "import sys; before = list(sys.path); import runner\nprint(before == sys.path)"
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def linked(folder: Path) -> None:
    (folder / "labels.txt").rename(folder.parent / "labels.txt")
    (folder / "labels.txt").symlink_to(folder.parent / "labels.txt")


def linked_folder(folder: Path) -> None:
    (folder / "more").symlink_to(folder.parent)


def cached(folder: Path) -> None:
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "runner.cpython-311.pyc").touch()


def longer(folder: Path) -> None:
    with (folder / "labels.txt").open("ab") as file:
        file.write(b"\n")


SURPRISES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a link": (linked, "labels.txt is a link or a device, not a plain file"),
    "a link to a folder": (linked_folder, "more is a link or a device, not a plain file"),
    "byte code": (cached, "__pycache__/ was added: manifest.json does not list it"),
    "an empty folder": (lambda at: (at / "empty").mkdir(), "empty/ was added"),
    "a pipe": (lambda at: os.mkfifo(at / "pipe"), "pipe is a link or a device"),
    "a path file": (lambda at: (at / "a.pth").touch(), "a.pth was added"),
    "an extension": (lambda at: (at / "numpy.so").touch(), "numpy.so was added"),
    "a name of two lines": (lambda at: (at / "a\nb\x1b[2J").touch(), r"a\nb\x1b[2J was added"),
    "a name that is no UTF-8": (
        lambda at: os.close(os.open(os.fsencode(at) + b"/\xff", os.O_CREAT)),
        r"\udcff was added",
    ),
    "another size": (longer, "labels.txt was altered: its size is not the one in manifest.json"),
    "a file gone": (lambda at: (at / "labels.txt").unlink(), "labels.txt is missing"),
}


@pytest.mark.parametrize("case", SURPRISES)
def test_a_surprise_is_one_line(device: Path, case: str) -> None:
    surprise, message = SURPRISES[case]
    surprise(device)
    refused(run(device, "selftest"), message)


def test_files_in_folders(device: Path) -> None:
    (device / "1").mkdir()
    (device / "1" / "config.pbtxt").write_bytes(b"name: 'tiny'\n")
    info = FileInfo(size=13, sha256=sha256_of_bytes(b"name: 'tiny'\n"))
    forge(device, files={**read_manifest(device).files, "1/config.pbtxt": info})
    assert run(device, "selftest").stdout.startswith("selftest: passed")
    (device / "1" / "more").touch()
    refused(run(device, "selftest"), "1/more was added")
    (device / "1" / "more").unlink()
    (device / "1" / "config.pbtxt").unlink()
    refused(run(device, "selftest"), "1/config.pbtxt is missing")


@pytest.mark.parametrize(
    "name", ["../rows.npy", "/etc/hostname", "./labels.txt", "model.sig", "manifest.json"]
)
def test_a_manifest_lists_files_of_its_folder_alone(device: Path, name: str) -> None:
    info = FileInfo(size=1, sha256="0" * 64)
    forge(device, files={**read_manifest(device).files, name: info})
    with pytest.raises(RunnerError, match=r"is missing|was altered|see its files"):
        check(device)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schema_version": 3}, "manifest.json is of schema 3, this runner reads 4"),
        ({"files": {}}, "manifest.json does not list golden.npz"),
    ],
)
def test_a_manifest_of_another_ferry_is_one_line(
    device: Path, changes: dict[str, object], told: str
) -> None:
    forge(device, **changes)
    refused(run(device, "selftest"), told)


def test_a_folder_that_cannot_be_read_is_named(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("serving.bundles.integrity.os.scandir", denied)
    with pytest.raises(RunnerError, match=rf"^{device}: Permission denied$"):
        check(device)


def test_an_output_does_not_lie_in_the_bundle(device: Path) -> None:
    done = run(device, "predict", "rows.npy", "--output", str(device / "out.csv"))
    refused(done, "out.csv would lie in the bundle")
    assert not (device / "out.csv").exists()


def test_a_runner_that_is_trusted_checks_another_folder(device: Path) -> None:
    trusted = device.parent / "trusted"
    trusted.mkdir()
    (device / "runner.py").rename(trusted / "runner.py")
    trace = device.parent / "trace"
    (device / "runner.py").write_text(TRACE.format(str(trace)))
    refused(run(trusted, "selftest", "--folder", str(device)), "runner.py was altered")
    assert not trace.exists()
