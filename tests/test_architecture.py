"""What holds the code together: who imports what, what no file may do, and how large it grows."""

import ast
import importlib
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from closure import PACKAGES, ROOT, closure, file_of

FILES = sorted(
    path.relative_to(ROOT)
    for package in ("pipeline", "serving")
    for path in (ROOT / package).rglob("*.py")
)
TREES = {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in FILES}
SOURCES = [path.as_posix() for path in FILES]
SERVING = [source for source in SOURCES if source.startswith("serving/")]
TRAINING = {
    *("dvc", "matplotlib", "mlflow", "onnx", "onnxscript", "pipeline", "pydantic", "requests"),
    *("safetensors", "scipy", "sklearn", "torch", "yaml"),
}
OWNERS = {
    "mlflow": {
        f"pipeline/tracking/{name}.py"
        for name in ("models", "pyfunc", "runs", "signature", "store")
    },
    "cv2": {"serving/readers/decoding.py"},
    "fsspec": {"serving/readers/remote.py"},
    "requests": {"pipeline/download.py"},
    "yaml": {"pipeline/yamlfile.py"},
    "jinja2": {"pipeline/report.py"},
    "sklearn": {"pipeline/datasets/moons.py", "pipeline/split.py"},
    "filelock": {"pipeline/download.py", "pipeline/pull.py", "pipeline/tuning/study.py"},
    "optuna": {"pipeline/tuning/study.py"},
    "pyarrow": {
        "serving/arrow_writer.py",
        *(f"serving/readers/{name}.py" for name in ("arrow", "cells", "fitting")),
    },
    "onnxruntime": {
        "serving/runtime.py",
        "serving/runner.py",  # runs alone, copied into a bundle
        "pipeline/quantization/apply.py",
        "pipeline/quantization/prepare.py",
        "pipeline/quantization/weights.py",
    },
}
FORBIDDEN_CALLS = {"print", "eval", "exec", "compile", "__import__", "breakpoint", "input"}
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_METHODS = {"extract", "extractall", "unpack_archive", "system", "popen"}
BROAD = {"Exception", "BaseException"}


def modules(node: ast.AST) -> set[str]:
    """The modules that an import statement names, whole."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return {node.module or ""}
    return set()


def packages(source: str) -> set[str]:
    """The top-level packages that a file imports anywhere in it, for type checkers too."""
    return {
        module.split(".")[0] for node in ast.walk(TREES[Path(source)]) for module in modules(node)
    }


def line_of(source: str, node: ast.AST) -> str:
    number = getattr(node, "lineno", 1)
    return (ROOT / source).read_text(encoding="utf-8").splitlines()[number - 1]


# Who may import what


@pytest.mark.parametrize("source", SERVING)
def test_serving_imports_nothing_of_training(source: str) -> None:
    assert not packages(source) & TRAINING


@pytest.mark.parametrize("source", SERVING)
def test_nothing_of_serving_leads_to_the_pipeline(source: str) -> None:
    module = source.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert not [path for path in closure(module) if path.startswith("pipeline/")]


@pytest.mark.parametrize("package", OWNERS)
def test_a_heavy_package_has_its_owners(package: str) -> None:
    importers = {source for source in SOURCES if package in packages(source)}
    assert importers <= OWNERS[package]
    assert importers, f"nobody imports {package} any more"


def test_sessions_are_made_in_one_place() -> None:
    makers = {
        source
        for source in SOURCES
        for node in ast.walk(TREES[Path(source)])
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("InferenceSession")
    }
    assert makers == {"serving/session.py", "serving/runner.py"}


def test_the_runner_stands_alone() -> None:
    assert closure("serving.runner") <= {"serving/__init__.py", "serving/runner.py"}
    assert not packages("serving/runner.py") & {"pipeline", "serving", "click"}


def test_the_registries_do_not_know_their_files() -> None:
    for registry in ("datasets", "models"):
        names = {path.stem for path in (ROOT / "pipeline" / registry).glob("[!_]*.py")}
        for source in SOURCES:
            if not source.startswith(f"pipeline/{registry}/"):
                for node in ast.walk(TREES[Path(source)]):
                    for module in modules(node):
                        assert module not in {f"pipeline.{registry}.{name}" for name in names}


# What no file may do


def calls(source: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(TREES[Path(source)]) if isinstance(node, ast.Call))


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_is_printed_evaluated_or_unpickled(source: str) -> None:
    assert not packages(source) & FORBIDDEN_MODULES
    for call in calls(source):
        name = ast.unparse(call.func)
        # `re.compile` and a model's `eval()` are something else.
        assert name not in FORBIDDEN_CALLS, line_of(source, call)
        assert name.rsplit(".", 1)[-1] not in FORBIDDEN_METHODS, line_of(source, call)
        assert name not in ("torch.load", "torch.save"), line_of(source, call)


@pytest.mark.parametrize("source", SOURCES)
def test_numpy_never_unpickles(source: str) -> None:
    for call in calls(source):
        allowed = [keyword for keyword in call.keywords if keyword.arg == "allow_pickle"]
        for keyword in allowed:
            assert ast.unparse(keyword.value) == "False", line_of(source, call)
        if ast.unparse(call.func) == "np.load":
            assert allowed, f"{line_of(source, call)}: say allow_pickle=False"


@pytest.mark.parametrize("source", SOURCES)
def test_exceptions_are_caught_by_name(source: str) -> None:
    for node in ast.walk(TREES[Path(source)]):
        if isinstance(node, ast.ExceptHandler):
            line = line_of(source, node)
            assert node.type is not None, line
            caught = {ast.unparse(name) for name in getattr(node.type, "elts", [node.type])}
            if caught & BROAD:
                assert re.search(r"# noqa: BLE001 - \w+", line), line


@pytest.mark.parametrize("source", SOURCES)
def test_every_escape_hatch_has_its_reason(source: str) -> None:
    for line in (ROOT / source).read_text(encoding="utf-8").splitlines():
        if "# noqa" in line:
            assert re.search(r"# noqa: [A-Z]+\d+(, [A-Z]+\d+)* - \w+", line), line
        if "# type: ignore" in line:
            assert re.search(r"# type: ignore\[[\w-]+\]  # \w+", line), line
        assert "# pragma" not in line


def test_there_are_few_of_them() -> None:
    text = "\n".join((ROOT / source).read_text(encoding="utf-8") for source in SOURCES)
    hatches = len(re.findall(r"# noqa|# type: ignore", text))
    assert hatches <= 3 * text.count("\n") / 1000


@pytest.mark.parametrize("source", SOURCES)
def test_no_shell(source: str) -> None:
    for call in calls(source):
        assert not any(keyword.arg == "shell" for keyword in call.keywords), line_of(source, call)


# How large it grows


def functions() -> list[tuple[int, str]]:
    return [
        (node.end_lineno - node.lineno + 1, f"{source}:{node.name}")
        for source in SOURCES
        for node in ast.walk(TREES[Path(source)])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]


def test_functions_are_small() -> None:
    lengths = sorted(functions())
    assert lengths[-1][0] <= 60, lengths[-1]
    assert statistics.median(length for length, _ in lengths) <= 10
    assert lengths[int(0.9 * len(lengths))][0] <= 25


@pytest.mark.parametrize("source", SOURCES)
def test_files_are_small(source: str) -> None:
    assert len((ROOT / source).read_text(encoding="utf-8").splitlines()) <= 320


def test_functions_take_few_arguments() -> None:
    many = []
    total = 0
    for source in SOURCES:
        for node in ast.walk(TREES[Path(source)]):
            if isinstance(node, ast.FunctionDef):
                total += 1
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if len([one for one in arguments if one.arg not in ("self", "cls")]) > 6:
                    many.append(f"{source}:{node.name}")
    assert len(many) <= total / 100, many


def test_there_is_as_much_test_as_source() -> None:
    def lines(*folders: str) -> int:
        files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
        return sum(path.read_text(encoding="utf-8").count("\n") for path in files)

    assert lines("tests") >= lines("pipeline", "serving")


# What every module tells


@pytest.mark.parametrize("source", SOURCES)
def test_every_module_has_a_docstring(source: str) -> None:
    text = ast.get_docstring(TREES[Path(source)])
    assert text
    assert text[0].isupper() or text[0] in "`'"


@pytest.mark.parametrize(
    "source", [source for source in SOURCES if not source.endswith("__main__.py")]
)
def test_every_module_names_what_is_public(source: str) -> None:
    tree = TREES[Path(source)]
    own = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    if source.endswith("__init__.py") and not own:
        return
    module = importlib.import_module(
        source.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    )
    assert module.__all__
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), name


def used_elsewhere() -> Iterator[tuple[str, str, str]]:
    """Names that one module of ours imports from another: (importer, module, name)."""
    for source in SOURCES:
        for node in ast.walk(TREES[Path(source)]):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            if isinstance(node, ast.ImportFrom) and module.split(".")[0] in PACKAGES:
                yield from ((source, module, alias.name) for alias in node.names)


def is_public(module: str, name: str) -> bool:
    """Whether a module has the name in its `__all__`, or is a package that holds such a module."""
    return (
        file_of(f"{module}.{name}") is not None or name in importlib.import_module(module).__all__
    )


def test_modules_use_only_what_others_make_public() -> None:
    private = {
        f"{source} imports {name}, which is not in {module}.__all__"
        for source, module, name in used_elsewhere()
        if not is_public(module, name)
    }
    assert not private
