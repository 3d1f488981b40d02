"""What a file of settings may cost to read: whatever is too large or too deep is one line."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import yamlfile
from pipeline.config.params import load
from pipeline.config.yamlfile import MOST_BYTES, parse_yaml, read_value, read_yaml, text_of
from pipeline.errors import ConfigError

NINE = [f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 8)]
MERGES = [f"b{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 8)]
DEEP = "nested too deeply: more than 32 levels in line "
WRITTEN_OUT = "comes to more than 512 KiB with its aliases written out"
LARGE = "larger than 256 KiB, the most that is read"
UNBOUNDED = {
    "aliases of aliases": ("".join(["a: &a0 [x]\n", *NINE]), WRITTEN_OUT),
    "merges of merges": ("".join(["a: &a0 {x: 1}\n", *MERGES]), WRITTEN_OUT),
    "a long text over and over": (f"a: &a {'x' * 999}\nb: [{'*a,' * 9999}]", WRITTEN_OUT),
    "a chain of aliases": (
        "".join(["a: &a0 [x]\n", *(f"b{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 100))]),
        f"{DEEP}69",
    ),
    "a list that holds itself": ("a: &a [*a]", DEEP),
    "a merge into itself": ("a: &a {<<: *a}", DEEP),
    "lists in lists": (f"a:\n {'[' * 99_999}", f"{DEEP}2"),
    "blocks in blocks": ("- " * 99_999, f"{DEEP}1"),
    "ten megabytes": (f"a: [{'1,' * 5_000_000}]", LARGE),
    "ten megabytes of nothing": ("#" * 10_000_000, LARGE),
}


@pytest.mark.parametrize(("text", "expected"), UNBOUNDED.values(), ids=UNBOUNDED)
def test_what_is_too_large_or_too_deep(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert expected in refused(lambda: read_yaml(path, "experiments"), str(path))
    assert expected in refused(lambda: parse_yaml(text, "dvc.lock"), "dvc.lock")
    assert expected in refused(lambda: read_value(text, "--set lr"), "--set lr")


def refused(reads: Callable[[], object], where: str) -> str:
    with pytest.raises(ConfigError) as caught:
        reads()
    line = str(caught.value)
    assert line.startswith(where)
    assert len(line.splitlines()) == 1
    assert len(line) < 300
    return line


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: 1 ".ljust(MOST_BYTES - 1, "#") + "\n")
    assert read_yaml(path, "experiments")[0] == {"a": 1}


def test_no_file_without_aliases_comes_to_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"a: [{'{a,b},' * 999}]"  # no other text has as many values for its size
    monkeypatch.setattr(yamlfile, "MOST_WRITTEN_OUT", 2 * len(text))
    assert len(parse_yaml(text, "it")["a"]) == 999


def test_a_named_pipe_and_a_folder_are_no_settings(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    os.mkfifo(path)
    (tmp_path / "folder").mkdir()
    for one in (path, tmp_path / "folder"):
        assert refused(lambda one=one: load(one), f"{one} is no plain file")  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["utf-16", "utf-32", "latin-1"])
def test_another_encoding_is_named_by_its_first_byte(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes("mirrors: ['é']\n".encode(kind))
    assert "is not UTF-8" in refused(lambda: text_of(path), f"{path} is not YAML: byte ")
    path.write_bytes("mirrors: ['é']\n".encode("utf-8-sig"))
    assert read_yaml(path, "experiments")[0] == {"mirrors": ["é"]}


VALUES = ["0x_", "-0b_", "!!int x", "!!bool x", "!!float ''", f"1{':0' * 600}.5", "9" * 9999]


@pytest.mark.parametrize("text", [*VALUES, "2026-13-45", "!!timestamp x", "{[a]: b}", "<<: 3"])
def test_a_value_that_is_not_of_its_kind(text: str) -> None:
    assert refused(lambda: read_value(text, "--set lr"), "--set lr")
    assert refused(lambda: parse_yaml(f"a: {text}\nb: {{<<: 3}}", "dvc.yaml"), "dvc.yaml is not")


def test_a_mistake_is_told_with_its_line_and_column() -> None:
    line = refused(lambda: parse_yaml("a: 1\nb:\n\t- c\n", "dvc.yaml"), "dvc.yaml is not YAML")
    assert line.endswith(
        r"found character '\t' that cannot start any token at line 3, column 1: - c ^"
    )
    line = refused(lambda: parse_yaml(f"{'#' * 99_999}\n@", "dvc.yaml"), "dvc.yaml is not YAML")
    assert line.endswith("found character that cannot start any token at line 2, column 1")
