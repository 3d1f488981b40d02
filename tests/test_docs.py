"""README and docs/ are true: their commands exist with these options, their links lead on."""

import ast
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from closure import ROOT

from pipeline.cli import ferry

TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)#:]+)\)")
SOURCE = re.compile(r"`((?:pipeline|serving|tests|benchmarks)/[a-z0-9_/]+(?:\.py)?)`")
INLINE = re.compile(r"`((?:ferry|dvc|make|python) [^`]+)`")
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
SETTINGS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
TARGETS = {
    target
    for line in (ROOT / "Makefile").read_text().splitlines()
    for target in line.split(":")[0].split()
}


def blocks(page: Path, language: str) -> Iterator[str]:
    """The fenced blocks of a page in one language."""
    return (
        found[2]
        for found in BLOCK.finditer(page.read_text(encoding="utf-8"))
        if found[1] == language
    )


def commands() -> list[tuple[str, str]]:
    """Every command that a page shows: `(page, line)`."""
    found = []
    for page in PAGES:
        shown = [line for block in blocks(page, "sh") for line in block.splitlines()]
        shown += [
            line.removeprefix("$ ")
            for block in blocks(page, "console")
            for line in block.splitlines()
            if line.startswith("$ ")
        ]
        shown += INLINE.findall(page.read_text(encoding="utf-8"))
        found += [(page.name, line) for line in shown if line.strip()]
    return found


def words(line: str) -> list[list[str]]:
    """The words of each command of a line, which a pipe parts, without comments and variables."""
    parts: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word == "|":
            parts.append([])
        elif parts[-1] or not re.fullmatch(r"[A-Z_]+=\S*", word):
            parts[-1].append(word)
    return parts


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_that_is_shown_can_be_given(page: str, line: str) -> None:
    for command in words(line):
        check = CHECKS.get(command[0]) if command else None
        if check:
            check(command[1:])


def check_ferry(arguments: list[str]) -> None:
    """Read a command line as click does; words in capitals stand for what a user has."""
    name, *rest = arguments
    command = ferry.commands[name]
    if "..." in rest or any(re.fullmatch(r"[A-Z][A-Z.]+", word) for word in rest) or not rest:
        return
    with click.Context(ferry, info_name="ferry") as parent:
        command.make_context(name, rest, parent=parent)


def check_dvc(arguments: list[str]) -> None:
    """Stages that are named exist, and so do settings; an experiment of DVC names its stages."""
    if arguments[:2] == ["exp", "run"] and "--run-all" not in arguments:
        assert any("@" in word for word in arguments), "it would run every experiment"
    for word in arguments if {"repro", "run"} & set(arguments) else ():
        stage, _, item = word.partition("@")
        if item:
            assert stage in STAGES, word
            assert item in {"NAME", *SETTINGS["experiments"], *SETTINGS["datasets"]}, word
        elif "=" in word:
            key = word.partition("=")[0]
            assert reaches(key.lstrip("+").split("."), new=key.startswith("+")), word


def reaches(path: list[str], *, new: bool) -> bool:
    """Whether params.yaml has the key, or, where it is new, all but its end in `defaults`."""
    node = SETTINGS
    for key in [*(["defaults", *path[2:]] if new else path)]:
        if key not in node:
            return False
        node = node[key]
    return True


def check_make(arguments: list[str]) -> None:
    assert set(arguments) <= TARGETS


def check_python(arguments: list[str]) -> None:
    if arguments[0].endswith(".py"):
        assert (ROOT / arguments[0]).is_file(), arguments[0]


CHECKS = {"ferry": check_ferry, "dvc": check_dvc, "make": check_make, "python": check_python}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_names_of_files_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        assert (page.parent / target).exists(), target
    for source in SOURCE.findall(text):
        assert (ROOT / source).exists(), source


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_that_is_shown_can_be_read_and_imports_what_there_is(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.parse(block).body:
            if isinstance(node, ast.ImportFrom):
                module = __import__(node.module or "", fromlist=["_"])
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_hints_of_the_demo_are_for_the_terminal_that_it_is_called_from() -> None:
    asked = ["make", "--dry-run", "--no-print-directory", "demo"]
    shown = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    last = shown.splitlines()[-1]
    assert last.startswith(f"PATH='{os.environ['PATH']}' .venv/bin/ferry results ")


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
