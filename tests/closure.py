"""The import closure of a module within this repository, read from the sources.

Imports inside of functions count, for they run as well, except in a package's `__init__`, where
they wait until somebody asks; those for type checkers alone do not. The modules of a registry are
imported by name and are no part of it; a file that a module names and that lies beside it is.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "serving")
FILE_NAME = re.compile(r"[\w.]+\.\w+")


@cache
def closure(module: str) -> frozenset[str]:
    """The files, relative to the root, that importing and running `module` reads."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        path = file_of(waiting.pop())
        if path is None or path.as_posix() in found:
            continue
        found |= {path.as_posix(), *named_files(path)}
        waiting += imports(ROOT / path)
    return frozenset(found)


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> tuple[str, ...]:
    """The modules of this repository that a file imports when it runs, with their packages."""
    return tuple(dict.fromkeys(_imports(path)))


def _imports(path: Path) -> Iterator[str]:
    tree = parsed(path)
    for node in _running(tree, lazily=path.name != "__init__.py"):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] in PACKAGES:
                yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


@cache
def named_files(path: Path) -> frozenset[str]:
    """The files beside a module that it reads: a template, a model, the source of a program."""
    names = {
        node.value
        for node in ast.walk(parsed(ROOT / path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    beside = (path.with_name(name) for name in names if FILE_NAME.fullmatch(name))
    return frozenset(
        named.as_posix() for named in beside if named != path and (ROOT / named).is_file()
    )


@cache
def file_of(module: str) -> Path | None:
    """The file of a module, relative to the root, or None when there is no such module."""
    path = Path(*module.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if (ROOT / candidate).is_file():
            return candidate
    return None


def _running(node: ast.AST, *, lazily: bool) -> Iterator[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING:` and, unless `lazily`, inside of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.FunctionDef) and not lazily:
            continue
        yield child
        yield from _running(child, lazily=lazily)
