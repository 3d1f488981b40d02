"""What holds the code together: who imports what, what no file may do, and how large it grows."""

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from closure import PACKAGES, ROOT, closure, file_of, imports

from serving.bundles.bundle import runner_source

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
        *(f"pipeline/tracking/{name}.py" for name in ("app", "models", "store", "upload")),
        "pipeline/tracking/ferry_pyfunc.py",  # runs alone, copied into a model that MLflow keeps
    },
    "cryptography": {"serving/bundles/signing.py"},
    "cv2": {"serving/inputs/decoding.py"},
    "fsspec": {"serving/inputs/fetching.py"},
    "requests": {"pipeline/datasets/_download.py"},
    "yaml": {"pipeline/config/yamlfile.py"},
    "jinja2": {"pipeline/stages/report.py"},
    "sklearn": {"pipeline/datasets/moons.py", "pipeline/datasets/__init__.py"},
    "filelock": {
        "pipeline/datasets/_download.py",
        "pipeline/stages/pull.py",
        "pipeline/training/tuning/study.py",
    },
    "optuna": {"pipeline/training/tuning/study.py"},
    "pyarrow": {
        "pipeline/datasets/readers/_columns.py",
        "serving/batch/writers.py",
        *("serving/inputs/tables/arrow.py", "serving/inputs/tables/arrow_columns.py"),
        "serving/inputs/tables/delimited.py",
        "serving/inputs/streams.py",  # unpacks .zst
    },
    "onnxruntime": {
        "serving/runtime/providers.py",
        "serving/bundles/inference.py",  # runs alone, copied into a bundle
        "pipeline/quantization/apply.py",
        "pipeline/quantization/half.py",
        "pipeline/quantization/prepare.py",
        "pipeline/targets/lint/providers.py",  # the runtime's own checker
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


def test_serving_imports_nothing_of_training() -> None:
    assert not [source for source in SERVING if packages(source) & TRAINING]


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
    assert makers == {"serving/runtime/session.py", "serving/bundles/inference.py"}


def test_the_runner_stands_alone() -> None:
    parts = {f"serving/bundles/{name}.py" for name in ("inference", "integrity", "npz", "runner")}
    packages = {"serving/__init__.py", "serving/bundles/__init__.py"}
    assert closure("serving.bundles.runner") <= parts | packages
    tree = ast.parse(runner_source())
    shipped = {module.split(".")[0] for node in ast.walk(tree) for module in modules(node)}
    assert shipped - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


CORE = ("serving/model.py", "serving/runtime/", "serving/bundles/", "serving/machine/")
AROUND = tuple(f"serving/{room}/" for room in ("inputs", "batch", "drift", "measuring", "commands"))


def test_the_core_of_serving_knows_nothing_of_what_is_built_on_it() -> None:
    core = [source for source in SERVING if source.startswith(CORE)]
    assert {source.split("/")[1] for source in core} == {
        "model.py",
        "runtime",
        "bundles",
        "machine",
    }
    for source in core:
        assert not [path for path in imported_files(source) if path.startswith(AROUND)], source


def imported_files(source: str) -> set[str]:
    """The files of this repository that one file imports, without the packages they lie in."""
    own = Path(source).with_name("__init__.py").as_posix()
    found = {path.as_posix() for module in imports(ROOT / source) if (path := file_of(module))}
    return {path for path in found if path not in (source, own)}


def test_no_imports_go_round_in_circles() -> None:
    graph = {
        source: {path for path in imported_files(source) if not path.endswith("__init__.py")}
        for source in SOURCES
    }
    # Whoever imports nothing that is left is no part of a circle.
    while leaves := {source for source, found in graph.items() if not found & graph.keys()}:
        graph = {source: found for source, found in graph.items() if source not in leaves}
    assert not circles(graph)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Those of `graph` that lead back to themselves."""

    def reach(source: str) -> set[str]:
        seen: set[str] = set()
        waiting = [source]
        while waiting:
            new = (graph.get(waiting.pop(), set()) & graph.keys()) - seen
            seen |= new
            waiting += new
        return seen

    return [source for source in graph if source in reach(source)]


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


def test_nothing_is_printed_evaluated_or_unpickled() -> None:
    for source in SOURCES:
        assert not packages(source) & FORBIDDEN_MODULES, source
        for call in calls(source):
            name = ast.unparse(call.func)
            # `re.compile` and a model's `eval()` are something else.
            assert name not in FORBIDDEN_CALLS, line_of(source, call)
            assert name.rsplit(".", 1)[-1] not in FORBIDDEN_METHODS, line_of(source, call)
            assert name not in ("torch.load", "torch.save"), line_of(source, call)
            assert not any(keyword.arg == "shell" for keyword in call.keywords), source


def test_a_process_of_ferry_imports_no_folder_of_the_project() -> None:
    """A project may have a `serving/` of its own, and Python would look there first."""
    for source in SOURCES:
        for node in ast.walk(TREES[Path(source)]):
            words = list(map(ast.unparse, ast.iter_child_nodes(node)))
            if "sys.executable" in words[:-1] and isinstance(node, ast.List | ast.Call):
                after = words[words.index("sys.executable") + 1]
                assert after in ("'-P'", "'-I'"), line_of(source, node)


def test_numpy_never_unpickles() -> None:
    for source in SOURCES:
        for call in calls(source):
            allowed = [keyword for keyword in call.keywords if keyword.arg == "allow_pickle"]
            for keyword in allowed:
                assert ast.unparse(keyword.value) == "False", line_of(source, call)
            if ast.unparse(call.func) == "np.load":
                assert allowed, f"{line_of(source, call)}: say allow_pickle=False"


def test_exceptions_are_caught_by_name() -> None:
    for source in SOURCES:
        for node in ast.walk(TREES[Path(source)]):
            if isinstance(node, ast.ExceptHandler):
                line = line_of(source, node)
                assert node.type is not None, line
                caught = {ast.unparse(name) for name in getattr(node.type, "elts", [node.type])}
                if caught & BROAD:
                    assert re.search(r"# noqa: BLE001 - \w+", line), line


def test_every_escape_hatch_has_its_reason() -> None:
    for source in SOURCES:
        for line in (ROOT / source).read_text(encoding="utf-8").splitlines():
            if "# noqa" in line:
                assert re.search(r"# noqa: [A-Z]+\d+(, [A-Z]+\d+)* - \w+", line), line
            if "# type: ignore" in line:
                assert re.search(r"# type: ignore\[[\w-]+\]  # \w+", line), line
            assert "# pragma" not in line, source


def test_there_are_few_of_them() -> None:
    text = "\n".join((ROOT / source).read_text(encoding="utf-8") for source in SOURCES)
    hatches = len(re.findall(r"# noqa|# type: ignore", text))
    assert hatches <= 3 * text.count("\n") / 1000


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


def test_files_are_small() -> None:
    for source in SOURCES:
        assert len((ROOT / source).read_text(encoding="utf-8").splitlines()) <= 450, source


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


def children(folder: Path) -> list[str]:
    """The modules and packages that one meets in a folder."""
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    return modules + [path.parent.name for path in folder.glob("*/__init__.py")]


FOLDERS = {path.parent.as_posix() for path in FILES}


def test_a_folder_is_seen_at_a_glance() -> None:
    for folder in FOLDERS:
        assert len(children(ROOT / folder)) <= 15, folder


# What every module tells


def test_every_module_has_a_docstring() -> None:
    for source in SOURCES:
        text = ast.get_docstring(TREES[Path(source)])
        assert text, source
        assert text[0].isupper() or text[0] in "`'", source


def used_elsewhere() -> Iterator[tuple[str, str, str]]:
    """Names that one module of ours imports from another: (importer, module, name)."""
    for source in SOURCES:
        for node in ast.walk(TREES[Path(source)]):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            if isinstance(node, ast.ImportFrom) and module.split(".")[0] in PACKAGES:
                yield from ((source, module, alias.name) for alias in node.names)


def test_what_a_module_keeps_to_itself_is_used_there_alone() -> None:
    private = [
        f"{source} imports {name} of {module}"
        for source, module, name in used_elsewhere()
        if name.startswith("_") and file_of(f"{module}.{name}") is None
    ]
    assert not private
