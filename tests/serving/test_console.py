"""What all commands share: layouts, and errors told in one line with the right status."""

import contextlib
import errno
import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from packaging.requirements import Requirement
from tiny_classifier import images

from serving.cli import serving
from serving.console import (
    EXTRA_PACKAGES,
    Commands,
    json_option,
    log_to_stderr,
    note,
    program,
    progress,
    show,
    summary,
    table,
)
from serving.errors import FerryError, UnknownNameError, UsageError

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Report:
    name: str
    accuracy: float
    rows: int
    passed: bool
    values: tuple[int, ...] = (1, 2)


REPORT = Report(name="mine", accuracy=0.98765, rows=12345, passed=True)


def test_table_lays_out_columns() -> None:
    text = table(["name", "ms"], [["a", "1.5"], ["long one", "12.25"]])
    assert text == "name         ms\na           1.5\nlong one  12.25"


def test_table_refuses_a_row_of_another_length() -> None:
    with pytest.raises((ValueError, IndexError)):
        table(["name", "ms"], [["a"]])


def test_summary_shows_plain_values() -> None:
    assert summary(REPORT) == "name      mine\naccuracy  0.9877\nrows      12,345\npassed    yes"


def test_summary_takes_a_selection_and_a_mapping() -> None:
    assert summary(REPORT, ("rows", "name")) == "name  mine\nrows  12,345"
    assert summary({"a": 1e-05, "bcd": 123456.7, "no": None}) == "a    1e-05\nbcd  123,457"
    assert summary({"ready": False}) == "ready  no"


@pytest.mark.parametrize("as_json", [True, False])
def test_show_prints_one_of_both(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    show(REPORT, as_json=as_json, text="words")
    out, err = capsys.readouterr()
    assert err == ""
    assert out.endswith("\n")
    assert not out.endswith("\n\n")
    if as_json:
        assert json.loads(out)["values"] == [1, 2]
    else:
        assert out == "words\n"


def test_note_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    note("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_a_program_is_called_by_its_path_where_its_name_finds_another_one_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "a folder" / ".venv" / "bin" / "ferry"
    script.parent.mkdir(parents=True)
    script.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(script.with_name("python3")))
    monkeypatch.setattr(sys, "prefix", str(script.parents[1]))
    monkeypatch.chdir(script.parents[2])
    assert program() == ".venv/bin/ferry"
    monkeypatch.chdir(ROOT)
    assert program() == f"'{script}'"
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    assert program() == "ferry"


def test_log_lines_go_to_stderr_once(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr()
    log_to_stderr()
    logging.getLogger("pipeline.stages.train").info("epoch 1")
    logging.getLogger("serving.batch.predict").warning("slow")
    logging.getLogger("urllib3").info("no business of ours")
    assert capsys.readouterr() == ("", "epoch 1\nslow\n")


def run(error: Callable[[], BaseException]) -> Result:
    """The result of a command that raises `error()`."""

    @click.group(cls=Commands)
    def group() -> None:
        """Group."""

    @group.command()
    @json_option
    def work(as_json: bool) -> None:
        """Work."""
        raise error()

    return CliRunner().invoke(group, ["work"], prog_name="ferry")


def missing(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


MESSAGES = [
    (lambda: FerryError("all is lost"), 1, "all is lost"),
    (lambda: UsageError("not both"), 2, "not both"),
    (lambda: UnknownNameError("model", "x", ["y"]), 2, "no model named 'x'; there are y"),
    (lambda: OSError(errno.ENOSPC, "No space left on device", "a.csv"), 1, "a.csv: No space left"),
    (
        lambda: PermissionError(errno.EACCES, "Permission denied", "a", None, "b"),
        1,
        "b: Permission",
    ),
    (lambda: OSError("words alone"), 1, "words alone"),
    (lambda: missing("torch"), 1, "`ferry work` needs torch: pip install 'onnx-ferry[pipeline]'"),
]


@pytest.mark.parametrize(
    ("error", "status", "expected"), MESSAGES, ids=[message[2][:25] for message in MESSAGES]
)
def test_mistakes_are_one_line(
    error: Callable[[], BaseException], status: int, expected: str
) -> None:
    result = run(error)
    assert result.exit_code == status
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {expected}")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "error", [lambda: ZeroDivisionError("x"), lambda: KeyError("x"), lambda: missing("our_own")]
)
def test_faults_of_ferry_keep_their_traceback(error: Callable[[], BaseException]) -> None:
    result = run(error)
    assert type(result.exception) is type(error())


def test_every_package_of_the_extra_is_known() -> None:
    distributions: dict[str, set[str]] = {}
    for package, names in metadata.packages_distributions().items():
        for name in names:
            distributions.setdefault(name.lower().replace("_", "-"), set()).add(package)
    for line in metadata.requires("onnx-ferry") or []:
        requirement = Requirement(line)
        if requirement.marker and 'extra == "pipeline"' in str(requirement.marker):
            packages = distributions[requirement.name.lower().replace("_", "-")]
            assert packages & EXTRA_PACKAGES, requirement.name


def pipeline_of(command: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}} >status"],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_a_reader_that_leaves_is_no_error(tmp_path: Path, model_file: Path) -> None:
    np.save(tmp_path / "rows.npy", images(20_000))
    done = pipeline_of('"$PYTHON" -m serving predict tiny.onnx rows.npy | head -1', tmp_path)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert (tmp_path / "status").read_text().strip() == "141"


def test_the_same_of_a_command_that_echoes(tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text(
        "import click\n"
        "from serving.console import Commands\n"
        "@click.group(cls=Commands)\n"
        "def group(): pass\n"
        "@group.command()\n"
        "def words():\n"
        "    for number in range(200_000): click.echo(number)\n"
        "group()\n"
    )
    done = pipeline_of('"$PYTHON" words.py words | head -1', tmp_path)
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert (tmp_path / "status").read_text().strip() == "141"


def test_progress_is_one_line_of_a_terminal_and_gone_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress() as log:
        log("first")
        log("second " * 50)
    message = capsys.readouterr().err
    assert message.startswith("\r\x1b[Kfirst\r\x1b[Ksecond")
    assert message.endswith("\r\x1b[K")
    assert "\n" not in message
    assert len(message) < 150, "it is cut to the width of the terminal"


def test_without_a_terminal_there_is_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as log:
        log("first")
    assert capsys.readouterr().err == ""


CONTROLS = "\x1b]0;owned\x07\x9b\x7f\u202e\u2066\u2028\r\b\x00\ud800"
SEEN = r"\x1b]0;owned\x07\x9b\x7f\u202e\u2066\u2028\r\x08\x00\ud800"


def assert_seen(text: str, expected: str = SEEN) -> None:
    assert expected in text
    assert text.replace("\n", "").isprintable()


def test_nothing_that_is_shown_commands_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_stderr()
    note(CONTROLS)
    show({}, as_json=False, text=f"a\n{CONTROLS}\tb")
    logging.getLogger("serving.x").warning("%s", CONTROLS)
    sys.excepthook(RuntimeError, RuntimeError(CONTROLS), None)
    shown = capsys.readouterr()
    assert_seen(shown.out.replace("\t", ""))
    assert_seen(shown.err)
    assert shown.err.count(SEEN) >= 3
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress() as log:
        log(f"{CONTROLS}\nmore")
    assert_seen(capsys.readouterr().err.replace("\r\x1b[K", ""), rf"{SEEN}\nmore")


def test_json_holds_the_same_and_commands_none(capsys: pytest.CaptureFixture[str]) -> None:
    show({"name": CONTROLS}, as_json=True, text="")
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable()
    assert json.loads(shown) == {"name": CONTROLS}


ERRORS = [
    lambda: FerryError(f"{CONTROLS}\n!"),
    lambda: OSError(errno.EACCES, "Denied", f"{CONTROLS}\n!"),
    lambda: OSError(f"{CONTROLS}\n!"),
    lambda: click.UsageError(f"{CONTROLS}!"),
    lambda: click.BadParameter(f"{CONTROLS}!"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_no_error_commands_a_terminal(error: Callable[[], BaseException]) -> None:
    result = run(error)
    assert result.exit_code in (1, 2)
    assert_seen(result.stderr)


@pytest.mark.parametrize("words", [(CONTROLS,), (f"--{CONTROLS}",), (f"-{CONTROLS}",)])
def test_no_word_that_is_typed_commands_a_terminal(words: tuple[str, ...]) -> None:
    for more in ((), ("doctor",), ("predict", "a.onnx", "--batch-size")):
        result = CliRunner().invoke(serving, [*more, *words])
        assert result.exit_code == 2
        assert result.stderr.replace("\n", "").isprintable()
        assert r"\x1b" in result.stderr


def test_rows_are_exact_in_a_pipe_and_seen_on_a_terminal(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "\x1b]0;owned\x07\u202e.npy"
    np.save(name, images(1))
    command = [sys.executable, "-m", "serving", "predict", str(model_file), name]
    piped = subprocess.run(command, capture_output=True, check=True).stdout
    assert piped.decode().splitlines()[1].startswith(f"{name}:0,")
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL):
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # at its end
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    assert_seen(shown.decode().replace("\r\n", "\n"), r"\x1b]0;owned\x07\u202e.npy:0,")
