"""Which sections of an experiment a function reads, found by following `experiment` in the sources.

A function reads what it takes as `experiment.X`, and what the functions and classes of the pipeline
read to which it hands its `experiment` on.
"""

import ast
from pathlib import Path

from closure import ROOT, file_of, parsed

NAME = "experiment"


def sections_read(module: str, function: str, seen: frozenset[str] = frozenset()) -> set[str]:
    """The attributes of `experiment` that `module.function` reads, by itself or through others."""
    path = file_of(module)
    if path is None or f"{module}.{function}" in seen:
        return set()
    tree = parsed(ROOT / path)
    body = definition(tree, function)
    if body is None:
        return set()
    seen |= {f"{module}.{function}"}
    found = {node.attr for node in ast.walk(body) if attribute_of(node)}
    sources = imported(tree)
    for node in ast.walk(body):
        if isinstance(node, ast.Call) and hands_on(node):
            target = callee(node.func, sources, module)
            if target:
                found |= sections_read(*target, seen)
    return found


def definition(tree: ast.Module, name: str) -> ast.AST | None:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
    return None


def attribute_of(node: ast.AST) -> bool:
    """Whether a node is `experiment.X`."""
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == NAME
    )


def hands_on(call: ast.Call) -> bool:
    """Whether a call has the whole `experiment` among its arguments."""
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    return any(isinstance(value, ast.Name) and value.id == NAME for value in arguments)


def imported(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Names that a module imports from this repository: `name: (module, what it is there)`."""
    names: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = (node.module, alias.name)
    return names


def callee(
    function: ast.expr, sources: dict[str, tuple[str, str]], module: str
) -> tuple[str, str] | None:
    """The module and the name of a function that is called by its name or as `module.name`."""
    if isinstance(function, ast.Name):
        return sources.get(function.id, (module, function.id))
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        package, name = sources.get(function.value.id, ("", ""))
        return (f"{package}.{name}", function.attr) if package else None
    return None


def takes_experiment(path: Path) -> set[str]:
    """The functions and methods of a file that have an argument `experiment`."""
    return {
        node.name
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef)
        and any(argument.arg == NAME for argument in (*node.args.args, *node.args.kwonlyargs))
    }
