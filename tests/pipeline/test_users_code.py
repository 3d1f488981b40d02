"""Finding the user's function, and one clear line for whatever is wrong with it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from pipeline.errors import first_line, running
from pipeline.exporting.signatures import load_module
from serving.errors import FerryError, ModelError, UnknownNameError, UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a package of the user's, which is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "ownnets").mkdir()
    (tmp_path / "ownnets" / "small.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Linear(4, 3)\n_hidden = build\n"
    )
    (tmp_path / "ownnets" / "broken.py").write_text("import package_that_is_nowhere\n")
    (tmp_path / "ownnets" / "script.py").write_text("raise SystemExit('usage: script.py DATA')\n")
    (tmp_path / "ownnets" / "typo.py").write_text("def build(:\n")
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("ownnets"):
            del sys.modules[name]


def test_the_working_directory_is_importable(folder: Path) -> None:
    made = load_module("ownnets.small:build")
    assert isinstance(made, nn.Linear)
    assert str(folder) in sys.path


@pytest.mark.parametrize(
    "path", ["foreign_nets", "foreign_nets:", ":plain", "foreign_nets.py:plain", "a/b:plain", ""]
)
def test_a_path_of_another_form_is_a_usage_error(path: str) -> None:
    with pytest.raises(UsageError, match=r"package\.file:function, got"):
        load_module(path)


@pytest.mark.parametrize("file", ["nowhere", "nowhere.at_all", "ownnets.smal", "ownnets.small.x"])
def test_a_module_that_is_not_there(folder: Path, file: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_module(f"{file}:build")
    assert f"no Python module named {file!r}" in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_function_that_is_not_there_is_answered_with_the_nearest(folder: Path) -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_module("ownnets.small:bild")
    assert str(caught.value) == "no function of ownnets.small named 'bild'; did you mean 'build'?"


def test_what_is_no_function_is_not_one(folder: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"no function of ownnets\.small named '__name__'"):
        load_module("ownnets.small:__name__")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("broken", "ModuleNotFoundError: No module named 'package_that_is_nowhere'"),
        ("script", "SystemExit: usage: script.py DATA"),
        ("typo", "SyntaxError: "),
    ],
)
def test_a_file_that_cannot_be_imported(folder: Path, file: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_module(f"ownnets.{file}:build")
    assert str(caught.value).startswith(f"importing ownnets.{file} failed: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("none", "foreign_nets:none must return a torch.nn.Module, it returned NoneType"),
        ("failing", "foreign_nets:failing failed: ValueError: no weights"),
        ("leaving", "foreign_nets:leaving failed: SystemExit: usage: train.py DATA"),
    ],
)
def test_a_function_that_makes_no_module(function: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_module(f"foreign_nets:{function}")
    assert str(caught.value) == message


def test_what_it_prints_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(load_module("foreign_nets:noisy"), nn.Sequential)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "this goes to stderr" in captured.err


def test_a_class_is_as_good_as_a_function() -> None:
    assert type(load_module("foreign_nets:Two")).__name__ == "Two"


# The block that all of the user's code runs in


def test_errors_of_ferry_pass() -> None:
    with pytest.raises(FerryError, match=r"^as it is$"), running("something"):
        raise UsageError("as it is")


def test_an_interrupt_passes() -> None:
    with pytest.raises(KeyboardInterrupt), running("something"):
        raise KeyboardInterrupt


def test_the_cause_is_kept() -> None:
    with pytest.raises(ModelError) as caught, running("something"):
        raise KeyError("a")
    assert isinstance(caught.value.__cause__, KeyError)
    assert str(caught.value) == "something: KeyError: 'a'"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("", "without a message"),
        ("\n\n  second \nthird", "second"),
        ("\x1b[96mblue\x1b[0m", "blue"),
        ("x" * 1000, "x" * 300 + "…"),
    ],
)
def test_an_error_in_one_line(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line
